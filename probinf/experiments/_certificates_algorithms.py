"""Certificates of algorithms: filters, smoothers and SMC samplers."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from probinf import core, models, samplers, validity
from probinf.core import Target
from probinf.experiments._claims import student_bound
from probinf.experiments._smc_targets import one_by_one, poisson_counts
from probinf.validity import Check, FiniteAhead, FiniteModel, Report

RUNS, RATE = 400, 1e-6
BIAS = 2.0  # over N, allowed where a sampler tunes itself on the way, which is consistent and not unbiased


def _filter(scheme: str, threshold: float) -> Callable[[Any, FiniteModel], Array]:
    def run(key: Any, model: FiniteModel) -> Array:
        options = {"num_particles": 2, "resampling": scheme, "ess_threshold": threshold}
        return samplers.particle_filter(key, model, **options).log_evidence

    return run


def _filters() -> Report:
    cases = [(name, 0.8) for name in samplers.ALL_SCHEMES] + [("systematic", 1.0)]
    checks = [
        validity.evidence_law(_filter(name, threshold), validity.skewed_model(3), subject=f"{name}, ESS < {threshold}")
        for name, threshold in cases
    ]
    return Report(tuple(checks))


def _auxiliary() -> Report:
    plain = validity.skewed_model(3)
    model = FiniteAhead(plain.initial, plain.transition, plain.potentials)
    return Report((validity.evidence_law(_filter("systematic", 1.0), model, subject="look-ahead"),))


def _filters_drawn() -> Report:
    """The same with real keys: runs of a filter, each against the sum over paths."""
    model = validity.skewed_model(4)
    exact = float(validity.path_masses(model).sum())

    def run(key: Any) -> Array:
        return samplers.particle_filter(key, model, num_particles=8, throw=False).log_evidence

    ratios = np.exp(np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(5), 40_000)), float)) / exact
    keys = validity.key_reuse(run, jax.random.key(6), subject="particle_filter")
    return Report((_mean_is_one(ratios, "particle_filter, drawn"), keys))


def _mean_is_one(ratios: np.ndarray, subject: str, bias: float = 0.0) -> Check:
    """A t test, after what is allowed as the bias of a consistent estimate; the ratios are far from heavy-tailed."""
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    found, bound = max(abs(ratios.mean() - 1) - bias, 0) / error, student_bound(1, len(ratios), alpha=RATE)
    law = "consistent evidence" if bias else "unbiased evidence"
    return Check(law, subject, float(found), bound, RATE, f"a factor of {1 + bias + 8 * error:.3f}")


def _evidence_ratios(key: int, exact: float, run: Callable[[Any], Array]) -> np.ndarray:
    """Estimated over exact evidence, of independent runs."""
    logs = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(key), RUNS)), float)
    return np.exp(logs - exact)


def _guided() -> Report:
    """Proposals that look at the datum: the locally optimal one and one of the user's, against Kalman."""
    ssm = models.StateSpaceModel(
        lambda: dist.Normal(0.5, 1.0),
        lambda t, x: dist.Normal(0.9 * x, 0.7),
        lambda t, x: dist.Normal(2 * x + 0.3, 0.4),
    )
    ys = jnp.array([1.9, 0.2, jnp.nan, -1.1, 2.5])
    exact = float(
        models.kalman_filter(models.LinearGaussian(0.5, 1.0, 0.9, 0.49, 2.0, 0.16, 0.0, 0.3), ys).log_evidence
    )

    def proposal(t: Array, x: Array, y: Array) -> dist.Distribution:
        return dist.StudentT(8.0, 0.45 * (y - 0.3), 0.5)

    guides = {
        "locally optimal": ssm.guided(ys),
        "own proposal": ssm.guided(ys, proposal),
        "auxiliary": ssm.auxiliary(ys),
    }

    def run(model: core.FeynmanKac) -> Callable[[Any], Array]:
        return lambda key: samplers.particle_filter(key, model, num_particles=64, throw=False).log_evidence

    checks = [_mean_is_one(_evidence_ratios(11, exact, run(model)), name) for name, model in guides.items()]
    return Report(tuple(checks))


def _two_filters() -> Report:
    """For every time and state the expected weight of the state is its unnormalised smoothing mass."""
    model = validity.skewed_model(2, path_dependent=False)
    _, transition, potentials = (np.asarray(x, float) for x in (model.initial, model.transition, model.potentials))
    seen, proposal = potentials[:, 0], np.array([[0.6, 0.4], [0.25, 0.75]])
    gamma = np.array([[2.0, 0.7], [0.9, 0.4]])
    # The backward filter: from x' at time t + 1 to x at time t, by any proposal.
    rows = [np.repeat((gamma[1] * seen[1] / 0.5)[None], 2, axis=0)]
    rows.append(gamma[0] * transition.T * seen[0] / (gamma[1][:, None] * proposal))
    backward = FiniteModel(jnp.array([0.5, 0.5]), jnp.asarray(proposal), jnp.asarray(np.stack(rows)))
    log_gamma = jnp.log(jnp.asarray(gamma))

    def run(key: Any) -> Array:
        options = {"num_particles": 2, "history": True, "ess_threshold": 0.9}
        keys = jax.random.split(key)
        ahead = samplers.particle_filter(keys[0], model, **options)
        behind = samplers.particle_filter(keys[1], backward, **options)
        out = samplers.two_filter_smoother(ahead, behind, lambda t, x: log_gamma[t, x])
        weights = jax.nn.softmax(out.log_weights, axis=-1)
        assert ahead.history is not None
        states = jax.nn.one_hot(ahead.history.particles, 2, dtype=weights.dtype)
        return jnp.exp(out.log_evidence)[:, None] * jnp.sum(weights[..., None] * states, axis=1)

    masses = np.asarray(validity.path_masses(model))
    axes = range(masses.ndim)
    expected = np.stack([masses.sum(axis=tuple(other for other in axes if other != t)) for t in axes])
    return Report((validity.measure_law(run, expected, subject="two_filter_smoother"),))


def _conditional(name: str) -> Callable[[], Report]:
    """Conditional SMC: a path is pinned to slot 0, and a new one drawn."""

    def certificate() -> Report:
        model, scheme = validity.skewed_model(2, path_dependent=False), samplers.ALL_SCHEMES[name]

        def step(key: Any, path: Array) -> Array:
            keys = jax.random.split(key, 3)
            population = core.spawn(model, 3, reference=path[0])(keys[0])
            first = population.particles
            both = core.sequence(core.resample(scheme, pinned=True), core.extend(model, reference=path))
            population, (resampling, _) = both(keys[1], population, 1)
            slots = jnp.stack([first, population.particles])
            return core.trace_back(keys[2], population.log_weights, slots, resampling.ancestors[None])[:, 0]

        return validity.path_kernel_law(step, model, subject=f"conditional SMC, {name}")

    return certificate


def _smoothers() -> Report:
    def run(method: str) -> Callable[[Any, FiniteModel], tuple[Array, Array]]:
        def paths(key: Any, model: FiniteModel) -> tuple[Array, Array]:
            key, path_key = jax.random.split(key)
            out = samplers.particle_filter(key, model, num_particles=2, history=True, ess_threshold=1.0)
            return out.log_evidence, samplers.backward_sample(path_key, out, 1, method=method)

        return paths

    checks = (
        validity.path_law(run("exact"), validity.skewed_model(3), subject="backward_sample, exact"),
        validity.path_law(run("mcmc"), validity.skewed_model(3), subject="backward_sample, MCMC"),
    )
    return Report(checks)


def _online() -> Report:
    model = validity.skewed_model(3)
    table = jnp.array([[0.5, -1.0], [2.0, 0.3]])

    def additive(t: Array, x_prev: Array | None, x: Array) -> Array:
        return jnp.array([1.0, 3.0])[x] if x_prev is None else table[x_prev, x] * jnp.asarray(t + 1, table.dtype)

    def run(key: Any) -> Array:
        out = samplers.paris(key, model, additive, num_particles=2, num_backward=1, ess_threshold=1.0)
        return jnp.exp(out.log_evidence) * out.estimate[-1]

    masses = validity.path_masses(model)
    at = np.indices(masses.shape)
    sums = np.array([1.0, 3.0])[at[0]]
    for t in range(1, masses.ndim):
        sums = sums + np.asarray(table)[at[t - 1], at[t]] * (t + 1)
    return Report((validity.measure_law(run, np.asarray((masses * sums).sum()), subject="paris"),))


def _lagged() -> Report:
    def run(key: Any, model: FiniteModel) -> tuple[Array, Array]:
        lagged = samplers.fixed_lag(model, 2)
        out = samplers.particle_filter(key, lagged, num_particles=2, ess_threshold=1.0)
        window = out.population.particles
        weights = out.population.log_weights
        slot = core.choose(key, core.categorical, jnp.exp(weights - jnp.max(weights))[None])[0]
        return out.log_evidence, window[slot][:, None]

    return Report((validity.path_law(run, validity.skewed_model(3), subject="fixed_lag of the whole past"),))


COUNTS = (0.0, 6.0)


def _tempered(name: str, **options: Any) -> Callable[[], Report]:
    """Frozen schedules give unbiased evidence; independent runs are compared with quadrature."""

    def certificate() -> Report:
        target, exact, _ = poisson_counts(COUNTS)
        first = samplers.tempered_smc(jax.random.key(8), target, num_particles=256, throw=False, **options)

        def run(key: Any) -> Array:
            again = samplers.tempered_smc(
                key, target, num_particles=256, schedule=first.schedule, throw=False, **options
            )
            return again.log_evidence

        ratios = _evidence_ratios(9, exact, run)
        reached = Check("reaches one", name, 1 - float(first.temperatures[-1]), 0.0, 0.0, "any")
        return Report((_mean_is_one(ratios, name), reached))

    return certificate


def _importance() -> Report:
    target, exact, _ = poisson_counts(COUNTS)
    proposal = _Prior(target)

    def run(key: Any) -> Array:
        return samplers.importance(key, target, proposal, 256, throw=False).log_evidence

    return Report((_mean_is_one(_evidence_ratios(10, exact, run), "importance"),))


def _persistent() -> Report:
    """Temperatures are chosen on the way, so that a bias of order 1 / N is allowed."""
    target, exact, _ = poisson_counts(COUNTS)

    def run(key: Any) -> Array:
        return samplers.persistent_smc(key, target, num_particles=64, throw=False).log_evidence

    return Report((_mean_is_one(_evidence_ratios(12, exact, run), "persistent_smc", BIAS / 64),))


def _path() -> Report:
    """Data one by one: without renewal the evidence is unbiased; moves are tuned on the way, with a bias."""
    path, exact = one_by_one(8)

    def run(key: Any, threshold: Array) -> Array:
        options = {"num_particles": 256, "ess_threshold": threshold, "throw": False}
        return samplers.path_smc(key, path, **options).log_evidence

    never, always = jnp.repeat(jnp.array([[0.0], [1.0]]), RUNS, axis=1)
    keys = jax.random.split(jax.random.key(13), 2 * RUNS)
    logs = jax.jit(jax.vmap(run))(keys, jnp.concatenate([never, always]))
    plain, renewed = np.exp(np.asarray(logs, float).reshape(2, RUNS) - exact[-1])
    return Report(
        (_mean_is_one(plain, "path_smc, never renewed"), _mean_is_one(renewed, "path_smc, renewed", BIAS / 256))
    )


class _Prior(eqx.Module):
    """The prior as a proposal."""

    target: Target

    def sample(self, key: Array) -> Array:
        return self.target.draw_prior(key)

    def log_prob(self, value: Array) -> Array:
        return self.target.log_prior(value)


ALGORITHMS: Mapping[str, Callable[[], Report]] = {
    "particle filters": _filters,
    "auxiliary filter": _auxiliary,
    "guided filters": _guided,
    "particle filters, drawn": _filters_drawn,
    "conditional SMC": _conditional("systematic"),
    **{f"conditional SMC, {name}": _conditional(name) for name in samplers.ALL_SCHEMES if name != "systematic"},
    "backward sampling": _smoothers,
    "two filters": _two_filters,
    "paris": _online,
    "fixed lag": _lagged,
    "tempered_smc": _tempered("tempered_smc, frozen"),
    "tempered_smc, waste-free": _tempered("waste-free, frozen", waste_free=True, num_steps=3),
    "persistent_smc": _persistent,
    "path_smc": _path,
    "importance": _importance,
}
