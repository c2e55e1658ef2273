"""Certificates of algorithms: filters, smoothers and SMC samplers."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probinf import core, samplers, validity
from probinf.core import Target
from probinf.experiments._claims import student_bound
from probinf.experiments._smc_targets import poisson_counts
from probinf.validity import Check, FiniteAhead, FiniteModel, Report

RUNS, RATE = 400, 1e-6


def _filter(scheme: str, threshold: float) -> Callable[[Any, FiniteModel], Array]:
    def run(key: Any, model: FiniteModel) -> Array:
        options = {"num_particles": 2, "resampling": scheme, "ess_threshold": threshold}
        return samplers.particle_filter(key, model, **options).log_evidence

    return run


def _filters() -> Report:
    checks = [
        validity.evidence_law(_filter(name, threshold), validity.skewed_model(3), subject=f"{name}, ESS < {threshold}")
        for name in samplers.ALL_SCHEMES
        for threshold in (1.0, 0.8)
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


def _mean_is_one(ratios: np.ndarray, subject: str) -> Check:
    """A t test; the ratios are far from heavy-tailed."""
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    found, bound = abs(ratios.mean() - 1) / error, student_bound(1, len(ratios), alpha=RATE)
    return Check("unbiased evidence", subject, float(found), bound, RATE, f"a factor of {1 + 8 * error:.3f}")


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

        logs = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(9), RUNS)), float)
        ratios = np.exp(logs - exact)
        reached = Check("reaches one", name, 1 - float(first.temperatures[-1]), 0.0, 0.0, "any")
        return Report((_mean_is_one(ratios, name), reached))

    return certificate


def _importance() -> Report:
    target, exact, _ = poisson_counts(COUNTS)
    proposal = _Prior(target)

    def run(key: Any) -> Array:
        return samplers.importance(key, target, proposal, 256, throw=False).log_evidence

    logs = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(10), RUNS)), float)
    return Report((_mean_is_one(np.exp(logs - exact), "importance"),))


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
    "particle filters, drawn": _filters_drawn,
    **{f"conditional SMC, {name}": _conditional(name) for name in samplers.ALL_SCHEMES},
    "backward sampling": _smoothers,
    "paris": _online,
    "fixed lag": _lagged,
    "tempered_smc": _tempered("tempered_smc, frozen"),
    "tempered_smc, waste-free": _tempered("waste-free, frozen", waste_free=True, num_steps=3),
    "importance": _importance,
}
