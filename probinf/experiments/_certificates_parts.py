"""Certificates of the parts that algorithms are made of: random numbers, choices, schemes, verbs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Array, Float

from probinf import core, samplers, validity
from probinf.core import Population
from probinf.experiments._certificates_kernels import finite_kernel, finite_target
from probinf.samplers import AbstractScheme
from probinf.samplers._adaptation import start_welford, update_welford
from probinf.samplers._mhg import Accept
from probinf.samplers._stage import next_temperature
from probinf.validity import Check, Report

DRAWS = 100_000
WEIGHTS = (0.7, 0.0, 0.9, 0.6)  # of each scheme at least two slots are random


def _exact(law: str, subject: str, found: Any, expected: Any, bound: float = 1e-12) -> Check:
    error = np.max(np.abs(np.asarray(found, float) - np.asarray(expected, float)), initial=0.0)
    return Check(law, subject, float(error), bound, 0.0, f"{bound:.0e}")


def _random_numbers() -> Report:
    key = jax.random.key(7)
    bits = jax.random.bits(key, (1000,), jnp.uint32)
    fast = core.fast_key(key)
    equal = _exact("same bits as JAX", "fast_key", jax.random.bits(fast, (1000,), jnp.uint32), bits)
    parts = jax.random.key_data(jax.random.split(key, 5))
    split = _exact("same keys as JAX", "fast_key", jax.random.key_data(jax.random.split(fast, 5)), parts)
    drawn = jax.vmap(lambda k: jax.random.bits(k, (4,), jnp.uint32))(core.particle_keys(key, 10_000))
    twice = 40_000 - len(np.unique(np.asarray(drawn)))
    # Forty thousand words of 32 bits hold .19 pairs of equal ones on average, and over 8 with probability 1e-12.
    apart = Check("particles draw apart", "particle_keys: equal words", float(twice), 8.0, 1e-12, "one draw for all")
    normal = np.asarray(core.standard_normal(key, (1000,), jnp.float32), float)
    odd = 2.0 * (np.asarray(bits).astype(np.int32) >> 8) + 1
    quantiles = np.sqrt(2) * scipy.special.erfinv(odd * 2.0**-24)
    return Report((equal, split, apart, _exact("normal quantiles", "standard_normal", normal, quantiles, 1e-5)))


def _choices() -> Report:
    rows = jnp.array([[0.1, 0.0, 0.9], [0.5, 0.3, 0.2]])
    checks = [validity.choice_agreement(jax.random.key(1), core.categorical, rows, num_draws=DRAWS)]
    for ratio in (-1.3, 0.4):
        choice, log_ratio = Accept(), jnp.asarray(ratio)
        name = f"accept at log ratio {ratio}"
        checks.append(validity.choice_agreement(jax.random.key(2), choice, log_ratio, num_draws=DRAWS, subject=name))
    return Report(tuple(checks))


def _scheme(name: str) -> Callable[[], Report]:
    def certificate() -> Report:
        scheme, weights = samplers.ALL_SCHEMES[name], jnp.array(WEIGHTS)
        shares = np.asarray(weights / weights.sum())
        count = len(WEIGHTS)

        def offspring(key: Any) -> Float[Array, " n"]:
            ancestors = scheme(key, weights)
            return jnp.mean(ancestors[:, None] == jnp.arange(count)[None], axis=0, dtype=weights.dtype)

        checks = [validity.measure_law(offspring, shares, subject=f"{name}: offspring")]
        checks += [_conditional(name, scheme)]
        for pinned in (False, True):
            law = f"{name}{', pinned' if pinned else ''}"
            options = {"num_draws": DRAWS, "subject": law}
            checks.append(validity.choice_agreement(jax.random.key(3), _Bound(scheme, pinned), weights, **options))
        return Report(tuple(checks))

    return certificate


class _Bound:
    """A scheme as a choice of weights alone; pinned, its slots are sorted, for only their numbers have a stated law."""

    def __init__(self, scheme: AbstractScheme, pinned: bool) -> None:
        self.scheme, self.pinned = scheme, pinned

    def sample(self, key: Any, weights: Array) -> Array:
        ancestors = self.scheme.sample(key, weights, self.pinned)
        return jnp.sort(ancestors) if self.pinned else ancestors

    def law(self, weights: Array) -> tuple[Array, Array]:
        ancestors, probabilities = self.scheme.law(weights, self.pinned)
        return (jnp.sort(ancestors, axis=1) if self.pinned else ancestors), probabilities


def _conditional(name: str, scheme: AbstractScheme) -> Check:
    """The pinned law times W_0 is that part of the whole law, made symmetric, in which slot 0 has ancestor 0."""
    weights = jnp.array([0.7, 1.1, 0.4])
    outcomes, chances = (np.asarray(x) for x in scheme.law(weights, True))
    counts = np.stack([(outcomes == i).sum(axis=1) for i in range(3)], axis=1)
    pinned = {}
    for row, chance in zip(map(tuple, counts), chances, strict=True):
        pinned[row] = pinned.get(row, 0.0) + chance
    whole: dict[tuple[int, ...], float] = {}
    for turn in range(3):
        free, probabilities = (np.asarray(x) for x in scheme.law(jnp.roll(weights, turn), False))
        turned = np.stack([(free == (i + turn) % 3).sum(axis=1) for i in range(3)], axis=1)
        for row, chance in zip(map(tuple, turned), probabilities, strict=True):
            # Probability that a random slot has ancestor 0, given these offspring.
            whole[row] = whole.get(row, 0.0) + chance * row[0] / 9
    total = sum(whole.values())
    error = max(abs(pinned.get(row, 0.0) - chance / total) for row, chance in whole.items())
    return Check("law given slot 0", f"{name}: offspring", error, 1e-9, 0.0, "1e-9")


def _some() -> Population:
    population = core.fresh_population(jnp.array([0, 1, 1], jnp.int32))
    weights = jnp.log(jnp.array([0.5, 0.9, 0.2]))
    return core.with_changes(population, log_weights=weights, log_scale=jnp.array(0.3))


def _mass(population: Population) -> np.ndarray:
    return np.asarray(validity.measure(population, 2))


def _law_of(name: str, transformer: Callable, expected: np.ndarray, step: Any = None) -> Check:
    def run(key: Any) -> Array:
        return validity.measure(transformer(key, _some(), step)[0], 2)

    return validity.measure_law(run, expected, subject=name)


def _verbs() -> Report:
    model, before = validity.skewed_model(3), _mass(_some())
    moved, weight = np.asarray(model.transition), jnp.log(jnp.array([0.3, 2.0]))

    def flip(key: Any, step: Any, x: Array) -> Array:
        del step
        return core.choose(key, core.categorical, model.transition[x][None])[0]

    def start(key: Any) -> Array:
        return validity.measure(core.spawn(model, 3)(key), 2)

    first = np.asarray(model.initial * model.potentials[0, 0])
    twice = before @ np.asarray(model.transition * model.potentials[1])
    twice = twice @ np.asarray(model.transition * model.potentials[2])
    loop = core.iterate(core.extend(model), over=jnp.arange(1, 3))
    dropped = core.reweight(lambda _, x: jnp.where(x == 0, jnp.nan, 0.0))
    checks = (
        validity.measure_law(start, first, subject="spawn"),
        _law_of("extend", core.extend(model), before @ np.asarray(model.transition * model.potentials[2]), 2),
        _law_of("propagate", core.propagate(flip), before @ moved),
        _law_of("reweight", core.reweight(lambda _, x: weight[x]), before * np.exp(np.asarray(weight))),
        _law_of("reweight, NaN is zero", dropped, before * np.array([0.0, 1.0])),
        _law_of("iterate", loop, twice),
    )
    return Report(checks)


def _resample() -> Report:
    before, scheme = _mass(_some()), samplers.systematic

    def ahead(step: Any, x: Array) -> Array:
        del step
        return jnp.log(jnp.array([0.4, 3.0]))[x]

    verbs = {
        "always": core.resample(scheme),
        "not due": core.resample(scheme, when=core.ess_below(0.1)),
        "look-ahead": core.resample(scheme, look_ahead=ahead),
        "multinomial": core.resample(samplers.multinomial),
    }
    return Report(tuple(_law_of(f"resample, {name}", verb, before) for name, verb in verbs.items()))


def _move() -> Report:
    target, kernel = finite_target(), finite_kernel()
    masses = np.exp(np.asarray(jax.vmap(target.log_density)(jnp.arange(4))))
    population = core.fresh_population(jnp.array([0, 1, 3], jnp.int32))
    population = core.with_changes(population, log_weights=jnp.log(jnp.asarray(3 * masses[[0, 1, 3]])))

    def run(key: Any) -> Array:
        return validity.measure(core.move(kernel, target, 2)(key, population)[0], 4)

    return Report((validity.measure_law(run, masses, subject="move"),))


def _adaptation() -> Report:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 2)) @ np.array([[1.0, 0.4], [0.0, 0.7]]) + 3
    state = start_welford(2, dense=True, dtype=jnp.zeros(()).dtype)
    for block in np.split(rows, 5):
        state = update_welford(state, jnp.asarray(block), jnp.ones(6, bool))
    covariance = np.asarray(state.sum_squares / (state.num - 1))
    values = -5 * rng.gamma(0.5, size=50)
    at = float(next_temperature(jnp.full(50, 0.02), jnp.asarray(values), jnp.asarray(0.1), jnp.asarray(0.6)))
    powers = np.exp((at - 0.1) * values)
    ess = powers.sum() ** 2 / (powers**2).sum() / 50
    return Report(
        (
            _exact("two-pass moments", "Welford", covariance, np.cov(rows.T)),
            _exact("conditional ESS", "next_temperature", ess if at < 1 else 0.6, 0.6, 1e-6),
        )
    )


PARTS: Mapping[str, Callable[[], Report]] = {
    "random numbers": _random_numbers,
    "choices": _choices,
    "scheme": _scheme("systematic"),
    **{f"scheme, {name}": _scheme(name) for name in samplers.ALL_SCHEMES if name != "systematic"},
    "verbs": _verbs,
    "resample": _resample,
    "move": _move,
    "adaptation": _adaptation,
}
