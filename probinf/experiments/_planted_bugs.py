"""One-line faults, planted in the library's own source, each with the certificate that should see it."""

from probinf.experiments._planted_bug import PlantedBug
from probinf.experiments._planted_bugs_kernels import KERNEL_BUGS, MCMC_BUGS

RESAMPLE = "core._resample"
SPAWN = "core._spawn"
VERBS = "core._verbs"
COMPOSE = "core._compose"
SCHEMES = "samplers._resampling"
FIXED = "samplers._fixed_point"

JUMP_BUGS = (
    PlantedBug(
        "density of the newborn left out",
        "samplers._birth_death",
        "return jnp.where(born, jnp.sum(law.log_prob(move.noise)), zero)",
        "return zero",
        "birth_death",
    ),
    PlantedBug(
        "probability of the move left out",
        "samplers._trans_dimensional",
        "return log_choice.astype(dtype) + jnp.where(stays",
        "return 0 * log_choice.astype(dtype) + jnp.where(stays",
        "birth_death, subsets",
    ),
    PlantedBug(
        "Jacobian of the split left out",
        "samplers._split_merge",
        "jnp.where(place.splits, log_det, -log_det)",
        "jnp.zeros(())",
        "split_merge",
    ),
    PlantedBug(
        "Jacobian of the merge upside down",
        "samplers._split_merge",
        "jnp.where(place.splits, log_det, -log_det)",
        "log_det",
        "split_merge",
    ),
    PlantedBug(
        "component of another slot split",
        "samplers._model_space",
        "return jnp.where(slot > inserted, slot - 1, slot)",
        "return jnp.broadcast_to(slot, jnp.broadcast_shapes(slot.shape, inserted.shape))",
        "split_merge",
    ),
    PlantedBug(
        "others not shifted on insertion",
        "samplers._model_space",
        "put(_shifted(values, above, 1), slot, new)",
        "put(values, slot, new)",
        "birth_death",
    ),
    PlantedBug(
        "noise of the way back lost",
        "samplers._between_models",
        "_pad(left, noise.size, noise.dtype), _unpad",
        "jnp.zeros_like(noise), _unpad",
        "between_models",
    ),
)

PART_BUGS = (
    PlantedBug(
        "wrong rotation in threefry", "core._particle_keys", "(13, 15, 26, 6)", "(13, 15, 26, 7)", "random numbers"
    ),
    PlantedBug(
        "all particles draw alike",
        "core._particle_keys",
        "threefry((first, second), (index, counter))",
        "threefry((first, second), (0 * index, counter))",
        "random numbers",
    ),
    PlantedBug("normals too narrow", "core._normal", "math.sqrt(2) * value", "1.4 * value", "random numbers"),
    PlantedBug(
        "offspring without their fraction",
        SCHEMES,
        "number.whole + (offset < number.part)",
        "number.whole + (offset < 0 * number.part)",
        "scheme",
    ),
    PlantedBug(
        "ancestors off by one",
        FIXED,
        "marks = marks.reshape(columns, rows)",
        "marks = jnp.roll(marks, 1).reshape(columns, rows)",
        "scheme",
    ),
    PlantedBug(
        "one uniform for all slots",
        SCHEMES,
        "positions_to_ancestors(weights, jax.random.uniform(key, weights.shape, weights.dtype))",
        "positions_to_ancestors(weights, jax.random.uniform(key, (), weights.dtype))",
        "scheme, stratified",
    ),
    PlantedBug(
        "search stops early",
        SCHEMES,
        "low, high = first[whole], first[whole + 1]",
        "low, high = first[whole], first[whole]",
        "scheme, multinomial",
    ),
    PlantedBug(
        "remainders not drawn by weight",
        SCHEMES,
        "_independent(key, rest))",
        "_independent(key, jnp.ones_like(rest)))",
        "scheme, residual",
    ),
    PlantedBug(
        "pairing keeps the wrong one",
        "samplers._ssp",
        "keep = uniform * scale < chance",
        "keep = uniform * scale > chance",
        "scheme, ssp",
    ),
    PlantedBug(
        "slots not turned where one is pinned",
        SCHEMES,
        "pin_slot(jnp.roll(positions_to_ancestors(weights, offset), -slot))",
        "pin_slot(positions_to_ancestors(weights, offset))",
        "scheme",
        "the same offspring in another order, and the order of slots means nothing",
    ),
    PlantedBug(
        "slot 0 overwritten where it is pinned",
        SCHEMES,
        "slot, offset = _pinned_position(key, weights, 0)",
        "slot, offset = 0, jax.random.uniform(key, dtype=weights.dtype)",
        "scheme",
    ),
    PlantedBug(
        "law of a pinned scheme not weighted",
        "samplers._scheme",
        "offspring.astype(probabilities.dtype)",
        "(offspring > 0).astype(probabilities.dtype)",
        "scheme, stratified",
    ),
    PlantedBug(
        "evidence not banked",
        RESAMPLE,
        "jnp.where(due, weighed.log_mean, shift)",
        "jnp.where(due, 0, shift)",
        "resample",
    ),
    PlantedBug(
        "look-ahead not divided out",
        RESAMPLE,
        "left = -log_psi[ancestors]",
        "left = -0 * log_psi[ancestors]",
        "resample",
    ),
    PlantedBug("look-ahead of another particle", RESAMPLE, "left = -log_psi[ancestors]", "left = -log_psi", "resample"),
    PlantedBug(
        "weights lost where not due",
        RESAMPLE,
        "jnp.where(due, left, log_weights - shift)",
        "jnp.where(due, left, 0 * log_weights)",
        "resample",
    ),
    PlantedBug(
        "weights kept after resampling",
        RESAMPLE,
        "jnp.where(due, left, log_weights - shift)",
        "log_weights - shift",
        "resample",
    ),
    PlantedBug(
        "earlier weights forgotten",
        SPAWN,
        "raised = population.log_weights + log_potential.astype(population.log_weights.dtype)",
        "raised = log_potential.astype(population.log_weights.dtype)",
        "verbs",
    ),
    PlantedBug(
        "NaN counts as one",
        SPAWN,
        "log_weights = jnp.where(jnp.isnan(raised), -jnp.inf, raised)",
        "log_weights = jnp.where(jnp.isnan(raised), 0, raised)",
        "verbs",
    ),
    PlantedBug(
        "weights look at the old particle",
        VERBS,
        "model.log_potential(step, before, particles)",
        "model.log_potential(step, before, before)",
        "verbs",
    ),
    PlantedBug(
        "potential of another time",
        VERBS,
        "model.log_potential(step, before, particles)",
        "model.log_potential(step - 1, before, particles)",
        "verbs",
    ),
    PlantedBug(
        "moved before the target was chosen",
        VERBS,
        "kernel.step(k, target, state), keys",
        "kernel.step(k, target.at_temperature(0.5), state), keys",
        "move",
    ),
    PlantedBug(
        "mean weight over one too few",
        "core._population",
        "shift + jnp.log(safe / count)",
        "shift + jnp.log(safe / (count - 1))",
        "particle filters",
    ),
    PlantedBug(
        "batches of moments not joined",
        "samplers._adaptation",
        "state.sum_squares + within + between * (state.num * number / total)",
        "state.sum_squares + within",
        "adaptation",
    ),
    PlantedBug(
        "wrong power in the temperature solver",
        "samplers._stage",
        "jnp.sum(weights * powers * powers)",
        "jnp.sum(weights * powers)",
        "adaptation",
    ),
)

ALGORITHM_BUGS = (
    PlantedBug(
        "first and later keys the same",
        "samplers._particle_filter",
        "start_key, loop_key = jax.random.split(key)",
        "start_key, loop_key = key, key",
        "particle filters, drawn",
    ),
    PlantedBug(
        "the same key at every step",
        COMPOSE,
        "keys = jax.vmap(jax.random.fold_in, (None, 0))(fast_key(key), jnp.arange(length))",
        "keys = jax.vmap(jax.random.fold_in, (None, 0))(fast_key(key), 0 * jnp.arange(length))",
        "particle filters, drawn",
    ),
    PlantedBug(
        "reference path not pinned",
        SPAWN,
        "leaf.at[0].set(kept)",
        "leaf.at[0].set(leaf[0])",
        "conditional SMC, multinomial",
    ),
    PlantedBug(
        "ancestors of another time",
        COMPOSE,
        "        slot = row[slot]\n        return slot, slot",
        "        return row[slot], slot",
        "conditional SMC, multinomial",
    ),
    PlantedBug(
        "last slot drawn without weights",
        COMPOSE,
        "relative = weigh(log_weights).relative",
        "relative = jnp.ones_like(log_weights)",
        "conditional SMC",
    ),
    PlantedBug(
        "backward weights without the past",
        "samplers._backward_kernels",
        "rows = log_weights + pair_up(",
        "rows = 0 * log_weights + pair_up(",
        "backward sampling",
    ),
    PlantedBug(
        "likelihood raised the wrong way",
        "samplers._tempered_smc",
        "return after - before",
        "return 0.9 * (after - before)",
        "tempered_smc",
    ),
    PlantedBug(
        "moves at temperature one",
        "samplers._moves",
        "target = self.target.at_temperature(context.stage.inverse_temperature)\n        fast =",
        "target = self.target\n        fast =",
        "tempered_smc",
    ),
    PlantedBug(
        "waste-free moves at temperature one",
        "samplers._moves",
        "target = self.target.at_temperature(context.stage.inverse_temperature)\n        offset_key",
        "target = self.target\n        offset_key",
        "tempered_smc, waste-free",
    ),
    PlantedBug(
        "chains start from the first particles",
        "samplers._moves",
        "started = jnp.arange(count) * self.length + offset",
        "started = jnp.arange(count)",
        "tempered_smc, waste-free",
        "the draws of the prior are exchangeable, so that the first are as good as any, but for a bias of order 1/N",
    ),
    PlantedBug(
        "importance without the proposal",
        "samplers._importance",
        "self.target.log_density(position) - self.proposal.log_prob(position)",
        "self.target.log_density(position)",
        "importance",
    ),
    PlantedBug(
        "window stays behind",
        "samplers._fixed_lag",
        "            return take(particles, ancestors)\n",
        "            return jax.tree.map(lambda leaf: leaf.at[:, -1].set(leaf[ancestors, -1]), particles)\n",
        "fixed lag",
    ),
    PlantedBug(
        "density of the proposal forgotten",
        "models._guided",
        "return PriorProposal().log_density(fk, at, x_prev, x) - log_q",
        "return PriorProposal().log_density(fk, at, x_prev, x)",
        "guided filters",
    ),
    PlantedBug(
        "gamma not divided out",
        "samplers._two_filter",
        "(_log_normalised(ahead.log_weights) - gamma.astype(ahead.log_weights.dtype))",
        "_log_normalised(ahead.log_weights)",
        "two filters",
    ),
    PlantedBug(
        "mixture without its newest law",
        "samplers._persistent_smc",
        "old = jnp.logaddexp(kept.log_mixture, raised(at, _log_likelihood(population)) - population.log_evidence)",
        "old = kept.log_mixture",
        "persistent_smc",
    ),
    PlantedBug(
        "moves for all the data",
        "samplers._path_smc",
        "target, step_size = self.path.target(step), population.context",
        "target, step_size = self.path.target(jnp.asarray(self.path.num_steps)), population.context",
        "path_smc",
    ),
    PlantedBug(
        "statistics of the new particles",
        "samplers._paris",
        "before = take(past.particles, drawn.slots)",
        "before = take(population.particles, drawn.slots)",
        "paris",
    ),
)

PLANTED_BUGS = (*KERNEL_BUGS, *MCMC_BUGS, *JUMP_BUGS, *PART_BUGS, *ALGORITHM_BUGS)
