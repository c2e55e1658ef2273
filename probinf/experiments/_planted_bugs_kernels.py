"""One-line faults in Markov kernels, each with the certificate that should see it."""

from probinf.experiments._planted_bug import PlantedBug

MHG = "samplers._mhg"
HMC = "samplers._hmc"
WALK = "samplers._random_walk"
NUTS = "samplers._nuts"

KERNEL_BUGS = (
    PlantedBug("proposal ratio left out", MHG, "(after - before) + (log_q_back - log_q)", "(after - before)", "hmc"),
    PlantedBug("proposal ratio left out, finite", MHG, " + (log_q_back - log_q)", "", "finite kernel"),
    PlantedBug("proposal ratio upside down", MHG, "(log_q_back - log_q)", "(log_q - log_q_back)", "finite kernel"),
    PlantedBug("Jacobian left out", MHG, "(log_q_back - log_q) + log_det\n", "(log_q_back - log_q)\n", "mhg, scaling"),
    PlantedBug(
        "Jacobian with the wrong sign",
        MHG,
        "(log_q_back - log_q) + log_det\n",
        "(log_q_back - log_q) - log_det\n",
        "mhg, scaling",
    ),
    PlantedBug("density ratio upside down", MHG, "(after - before)", "(before - after)", "random_walk"),
    PlantedBug("everything is accepted", MHG, "<= log_ratio", "<= log_ratio + 1e9", "choices"),
    PlantedBug("accepted half as willingly", MHG, "<= log_ratio", "<= 2 * log_ratio", "choices"),
    PlantedBug(
        "accepted and rejected swapped",
        MHG,
        "jnp.where(accepted, new, old), proposal",
        "jnp.where(accepted, old, new), proposal",
        "random_walk",
    ),
    PlantedBug(
        "a NaN density is accepted",
        MHG,
        "invalid | (numerator == -jnp.inf), -jnp.inf, jnp",
        "invalid | (numerator == -jnp.inf), jnp.inf, jnp",
        "mhg, boundary",
    ),
    PlantedBug("momentum not flipped", HMC, "Momentum(-z, v.num_steps)", "Momentum(z, v.num_steps)", "hmc"),
    PlantedBug("last half step missing", HMC, "z + 0.5 * epsilon * pull, pull", "z, pull", "hmc"),
    PlantedBug("first half step whole", HMC, "z = z + 0.5 * epsilon", "z = z + epsilon", "hmc"),
    PlantedBug("stale gradient", HMC, "    pull = force(target, factor, point)\n", "", "hmc"),
    PlantedBug(
        "momentum too wide", HMC, "Momentum(standard_normal(key_z", "Momentum(1.1 * standard_normal(key_z", "hmc"
    ),
    PlantedBug("density of the momentum halved", HMC, "-0.5 * jnp.sum(v.z", "-0.25 * jnp.sum(v.z", "hmc"),
    PlantedBug("leapfrog stretches space", HMC, "+ epsilon * times(", "* 1.02 + epsilon * times(", "hmc"),
    PlantedBug("the walk drifts", WALK, "times(self.factor, v)))", "times(self.factor, v) + 0.05))", "random_walk"),
    PlantedBug("the walk does not turn back", WALK, "-v, jnp.nan", "v, jnp.nan", "random_walk"),
    PlantedBug(
        "steps grow with the position",
        WALK,
        "times(self.factor, v)))",
        "times(self.factor, v) * (1 + flat**2)))",
        "random_walk",
    ),
    PlantedBug(
        "cached density of the last point",
        MHG,
        "return MHGState(point, state.status)\n\n\nclass Acc",
        "return MHGState(point._replace(log_prior=state.point.log_prior), state.status)\n\n\nclass Acc",
        "random_walk",
    ),
    PlantedBug(
        "likelihood left out",
        "core._kernel",
        "likelihood(position), None, None",
        "0 * likelihood(position), None, None",
        "finite kernel",
    ),
    PlantedBug(
        "temperature ignored",
        "core._target",
        "log_prior + raised(beta, log_likelihood)",
        "log_prior + log_likelihood",
        "hmc, temperature zero",
    ),
    PlantedBug(
        "force with the wrong sign",
        HMC,
        "transposed_times(factor, ravel",
        "-transposed_times(factor, ravel",
        "hmc",
        "any force keeps the target invariant: this one only makes most proposals bad",
    ),
    PlantedBug(
        "parts of the trajectory may turn",
        NUTS,
        "jnp.any(ending & ((first <= 0) | (last <= 0)))",
        "jnp.zeros((), bool)",
        "nuts",
    ),
    PlantedBug(
        "only the shortest parts checked",
        NUTS,
        "ones = jax.lax.population_count(index & ~(index + 1))",
        "ones = jnp.minimum(jax.lax.population_count(index & ~(index + 1)), 1)",
        "nuts, small steps",
    ),
    PlantedBug(
        "newest half always chosen",
        NUTS,
        "_where(merged & wins, head_chosen, tree.chosen)",
        "_where(merged, head_chosen, tree.chosen)",
        "nuts",
    ),
    PlantedBug(
        "all points of a half alike",
        NUTS,
        "_uniform(words[0], change.dtype) < jnp.exp(log_weight - half_weight)",
        "_uniform(words[0], change.dtype) < 1 / (tree.head_steps + 1)",
        "nuts",
    ),
    PlantedBug(
        "trajectories only forward",
        NUTS,
        "words[0] & 1 == 1, tree.forward)",
        "words[0] & 0 == 0, tree.forward)",
        "nuts",
    ),
)

CHEES = "samplers._chees"
BARKER, BRACKET, ELLIPSE = "samplers._barker", "samplers._bracket", "samplers._elliptical_slice"
FLOW, ADJUSTED = "samplers._microcanonical", "samplers._adjusted_mclmc"
GIBBS, SITES, LADDER = "samplers._gibbs", "samplers._on_sites", "samplers._parallel_tempering"

MCMC_BUGS = (
    PlantedBug(
        "no trajectory where there is one",
        CHEES,
        "jnp.where(ratio > 0, usual, 0)",
        "jnp.where(ratio > 0, 0, usual)",
        "chees_hmc",
    ),
    PlantedBug("signs against the gradient", BARKER, "jnp.where(kept, z, -z)", "jnp.where(kept, -z, z)", "barker"),
    PlantedBug(
        "density of the signs left out",
        BARKER,
        " + jax.nn.softplus(-self._slope(target, state) * v)",
        "",
        "barker",
    ),
    PlantedBug(
        "level at the density itself", BRACKET, "value - noise.drop.astype(value.dtype)", "value", "slice_sampling"
    ),
    PlantedBug(
        "expansions to one side",
        BRACKET,
        "left_steps = jax.random.randint(key_split, (), 0, max_expansions + 1, jnp.int32)",
        "left_steps = jnp.full((), max_expansions, jnp.int32)",
        "slice_sampling, coordinates",
    ),
    PlantedBug(
        "bracket not placed at random",
        BRACKET,
        "-width * noise.place",
        "-0.3 * width",
        "slice_sampling, coordinates",
    ),
    PlantedBug(
        "Gaussian not taken off",
        BRACKET,
        "log_density + curve(t)[1].astype(log_density.dtype)",
        "log_density",
        "elliptical_slice",
    ),
    PlantedBug(
        "second axis of another covariance",
        ELLIPSE,
        "times(self.root, n), squares)",
        "n, squares)",
        "elliptical_slice",
    ),
    PlantedBug(
        "kinetic change of one dimension more", FLOW, "(u.size - 1) * (delta", "u.size * (delta", "adjusted_mclmc"
    ),
    PlantedBug(
        "direction not turned round",
        ADJUSTED,
        "Direction(-length * end.u",
        "Direction(length * end.u",
        "adjusted_mclmc",
    ),
    PlantedBug(
        "determinant with the wrong sign",
        ADJUSTED,
        "v.num_steps), -end.kinetic",
        "v.num_steps), end.kinetic",
        "adjusted_mclmc",
    ),
    PlantedBug(
        "turn by d instead of d - 1", FLOW, "norm(pull) / (u.size - 1)", "norm(pull) / u.size", "mclmc, small steps"
    ),
    PlantedBug(
        "present value not weighed", GIBBS, "[before[None], possible]", "[jnp.max(possible)[None], possible]", "gibbs"
    ),
    PlantedBug(
        "Liu's update without its correction",
        GIBBS,
        "law / jnp.maximum(1 - law[0], 1 - law)",
        "law / (1 - law[0])",
        "gibbs",
    ),
    PlantedBug("values outside the support", GIBBS, "allowed = steps < count", "allowed = steps <= count", "gibbs"),
    PlantedBug(
        "fixed sites at zero",
        SITES,
        "{**self.fixed, **part}",
        "{**jax.tree.map(jnp.zeros_like, self.fixed), **part}",
        "on_sites",
    ),
    PlantedBug(
        "exchange ratio upside down",
        LADDER,
        "(betas[:-1] - betas[1:]) * difference",
        "(betas[1:] - betas[:-1]) * difference",
        "parallel tempering, finite",
    ),
    PlantedBug(
        "every exchange is accepted",
        LADDER,
        "return choose(key, Accept(), log_ratio)",
        "return choose(key, Accept(), jnp.where(log_ratio == -jnp.inf, log_ratio, 0))",
        "parallel tempering",
    ),
    PlantedBug(
        "what is cached stays behind",
        LADDER,
        "    return jax.tree.map(lambda a: a[source], points)",
        "    return points._replace(position=jax.tree.map(lambda a: a[source], points.position))",
        "parallel tempering",
    ),
    PlantedBug(
        "the hot replica is cooled",
        LADDER,
        "target.at_temperature(beta), start)",
        "target, start)",
        "parallel tempering",
    ),
)
