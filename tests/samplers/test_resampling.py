"""Resampling schemes: exact laws, laws of the fast path, dead particles, large N.

Planted bugs, shown to be caught: a plain cumulative sum with a left search picks a dead first particle; an
offspring number from rounded float positions is off by more than 1; sorted uniforms made from log(0).
"""

import functools
from collections import Counter

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from probinf.samplers import ALL_SCHEMES, multinomial, residual, ssp, stratified, systematic
from probinf.samplers._fixed_point import cumulative_offspring, fraction_bits
from probinf.samplers._resampling import positions_to_ancestors
from tests._slow import slow_after

WEIGHTS = [
    [0.5, 0.3, 0.2],
    [0.1, 0.0, 0.9],
    [1.0, 1.0, 1.0],
    [0.25, 0.75],
    [0.7, 0.1, 0.1, 0.1],
    [0.4, 1.1, 0.2, 0.6],
    [0.01, 0.5, 0.49],
]
# A multinomial chi-square with at most 70 cells: one test in 1e6 exceeds this quantile.
ALPHA = 1e-6


@functools.cache  # one compilation a scheme and size, whatever the weights
def law_of(name, pinned):
    return jax.jit(lambda w: ALL_SCHEMES[name].law(w, pinned))


@functools.cache
def draws_of(name, pinned, count):
    return jax.jit(
        lambda w: jax.vmap(lambda k: ALL_SCHEMES[name](k, w, pinned))(jax.random.split(jax.random.key(3), count))
    )


def counts_law(outcomes, probabilities):
    law = Counter()
    for outcome, probability in zip(np.asarray(outcomes).tolist(), np.asarray(probabilities).tolist(), strict=True):
        law[tuple(sorted(outcome))] += probability
    return law


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("name", ALL_SCHEMES)
def test_law_has_expected_offspring_in_proportion_to_weight(name, weights, x64):
    w = jnp.array(weights)
    outcomes, probabilities = law_of(name, False)(3.7 * w)
    offspring = np.stack([(np.asarray(outcomes) == i).sum(1) for i in range(w.size)], 1)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(probabilities) @ offspring, w.size * w / w.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", [w for w in WEIGHTS if w[0] > 0], ids=str)
@pytest.mark.parametrize("name", ALL_SCHEMES)
def test_pinned_law_keeps_slot_0(name, weights, x64):
    w = jnp.array(weights)
    outcomes, probabilities = law_of(name, True)(w)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-9)
    assert np.all(np.asarray(outcomes)[np.asarray(probabilities) > 0][:, 0] == 0)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("weights", slow_after(1, [WEIGHTS[5], WEIGHTS[0], WEIGHTS[4]]), ids=str)
@pytest.mark.parametrize("name", ALL_SCHEMES)
def test_draws_follow_the_law(name, weights, pinned, x64):
    # Chi-square on offspring numbers, 40,000 draws: false alarm 1e-6, a cell off by 0.03 is missed less than 1e-6.
    w, draws = jnp.array(weights), 40_000
    law = counts_law(*law_of(name, pinned)(w))
    drawn = Counter(map(tuple, np.sort(draws_of(name, pinned, draws)(w), axis=1).tolist()))
    cells = [cell for cell, probability in law.items() if probability * draws >= 5]
    expected = np.array([law[cell] * draws for cell in cells])
    observed = np.array([drawn[cell] for cell in cells])
    rest = draws - observed.sum()
    assert rest <= stats.poisson.isf(ALPHA, max(draws - expected.sum(), 1e-3))
    if len(cells) > 1:
        statistic = np.sum((observed - expected) ** 2 / expected)
        assert statistic < stats.chi2.isf(ALPHA, len(cells))
    assert set(drawn) <= {cell for cell, probability in law.items() if probability > -1e-12}


@pytest.mark.parametrize("core", ["systematic", "stratified"])
@pytest.mark.parametrize("uniform", [0.0, np.nextafter(np.float32(1), np.float32(0))])
@pytest.mark.parametrize("count", slow_after(3, [1, 3, 2**24 + 1, 2, 2**20]))
def test_extreme_uniforms(count, uniform, core):
    w = jax.random.exponential(jax.random.key(0), (count,)).at[-1].set(0 if count > 1 else 1)
    uniforms = jnp.float32(uniform) if core == "systematic" else jnp.full(count, uniform, jnp.float32)
    ancestors = np.asarray(jax.jit(positions_to_ancestors)(w, uniforms))
    assert ancestors.min() >= 0
    assert ancestors.max() < count
    assert np.all(np.asarray(w)[ancestors] > 0)


def dead_weights(where, count):
    w = jax.random.exponential(jax.random.key(1), (count,))
    if where == "first":
        return w.at[0].set(0)
    if where == "last":
        return w.at[-1].set(0)
    return w.at[1:-1:2].set(0)


@pytest.mark.parametrize("where", ["first", "last", "interior"])
@pytest.mark.parametrize("name", ["systematic", "stratified", "multinomial", "residual", "ssp"])
def test_dead_particles_are_never_chosen(name, where):
    w = dead_weights(where, 1_000_000)
    # The scan of SSP takes 0.1 s a draw: fewer keys, the same arithmetic as the other schemes.
    keys = jax.random.split(jax.random.key(2), 40 if name in ("systematic", "stratified") else 3)

    @jax.jit
    def dead(key, w):
        return jnp.sum(w[ALL_SCHEMES[name](key, w)] == 0)

    assert sum(int(dead(key, w)) for key in keys) == 0


def test_dead_particles_are_chosen_by_the_planted_bug():
    def plain(u, w):
        sums = jnp.cumsum(w)
        return jnp.searchsorted(sums, (jnp.arange(w.size, dtype=jnp.float32) + u) / w.size * sums[-1])

    w = dead_weights("first", 1_000_000)
    assert int(jnp.sum(w[jax.jit(plain)(jnp.float32(0), w)] == 0)) > 0


@pytest.mark.parametrize("count", [1_000, 100_000, 4_000_000])
def test_systematic_offspring_within_one(count):
    w = np.asarray(jax.random.exponential(jax.random.key(5), (count,)))
    ancestors = np.asarray(jax.jit(systematic)(jax.random.key(6), jnp.asarray(w)))
    exact = count * w.astype(np.float64) / w.astype(np.float64).sum()
    error = np.abs(np.bincount(ancestors, minlength=count) - exact)
    slack = 2.0**-17 + exact * 2.0**-22
    assert np.max(error - slack) < 1
    # Planted: float32 positions resolve no fraction of an offspring at 4e6.
    if count == 4_000_000:
        sums = np.cumsum(w, dtype=np.float32)
        ends = np.ceil(sums / sums[-1] * np.float32(count) - np.float32(0.3))
        plain = np.abs(np.diff(ends, prepend=0) - exact)
        assert np.max(plain - slack) > 1


def test_one_dominating_weight():
    for scheme in ALL_SCHEMES.values():
        w = jnp.full(100, 1e-12, jnp.float32).at[17].set(1.0)
        assert np.all(np.asarray(jax.jit(scheme)(jax.random.key(0), w)) == 17)


def test_zero_uniforms_do_not_collapse_independent_draws():
    # Sorted uniforms made by -log(u) are infinite when a uniform is 0, and all ancestors are then equal.
    w = jnp.ones(100_000, jnp.float32)
    for scheme in (multinomial, residual):
        skewed = w.at[::2].set(1.5)
        for seed in range(20):
            distinct = np.unique(np.asarray(jax.jit(scheme)(jax.random.key(seed), skewed))).size
            assert distinct > 0.6 * w.size
    u = jax.random.uniform(jax.random.key(0), (100_001,)).at[7].set(0.0)
    sums = jnp.cumsum(-jnp.log(u))
    planted = jnp.searchsorted(jnp.cumsum(w) / w.size, sums[:-1] / sums[-1])
    assert np.unique(np.asarray(planted)).size < 0.6 * w.size


def test_equal_weights_keep_every_particle():
    for scheme in (systematic, stratified, residual, ssp):
        for value in (0.3, 1.0, 1e-20):
            ancestors = jax.jit(scheme)(jax.random.key(0), jnp.full(1001, value, jnp.float32))
            np.testing.assert_array_equal(np.sort(ancestors), np.arange(1001))


@pytest.mark.parametrize("name", ALL_SCHEMES)
def test_all_weights_zero_gives_the_identity(name):
    np.testing.assert_array_equal(jax.jit(ALL_SCHEMES[name])(jax.random.key(0), jnp.zeros(5)), np.arange(5))


@pytest.mark.no_key_reuse  # the same keys are used by each transformation, on purpose
@pytest.mark.parametrize("name", slow_after(3, ALL_SCHEMES))
def test_compiles_maps_and_differentiates(name):
    scheme = ALL_SCHEMES[name]
    keys = jax.random.split(jax.random.key(0), 3)
    w = jax.random.exponential(jax.random.key(1), (3, 64))
    mapped, single = jax.jit(jax.vmap(scheme))(keys, w), jax.jit(scheme)
    for i in range(3):
        np.testing.assert_array_equal(mapped[i], single(keys[i], w[i]))
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(v[scheme(keys[0], v)])))(w[0])
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", ALL_SCHEMES)
@pytest.mark.parametrize(
    ("weights", "pinned"),
    [
        (np.ones((3, 1), np.float32), False),
        (np.ones(0, np.float32), False),
        (np.ones(1, np.float32), True),
        (np.ones(3, np.int32), False),
    ],
)
def test_bad_weights(name, weights, pinned):
    # The jaxtyping hook of the tests raises its own TypeError before ours where the annotation says it all.
    with pytest.raises((ValueError, TypeError), match="weights"):
        ALL_SCHEMES[name](jax.random.key(0), jnp.asarray(weights), pinned)


@hypothesis.given(
    weights=hnp.arrays(
        np.float32,
        st.sampled_from([1, 2, 3, 32]),  # few sizes: each compiles once
        elements=st.one_of(
            st.just(0.0), st.just(float("nan")), st.just(1e-40), st.just(-1.0), st.floats(0, 2.0**99, width=32)
        ),
    ),
    seed=st.integers(0, 2**31 - 1),
    name=st.sampled_from(sorted(ALL_SCHEMES)),
)
@pytest.mark.slow
def test_any_weights_give_indices_in_range(weights, seed, name):
    ancestors = np.asarray(jax.jit(ALL_SCHEMES[name])(jax.random.key(seed), jnp.asarray(weights)))
    assert ancestors.dtype == np.int32
    assert ancestors.min() >= 0
    assert ancestors.max() < weights.size
    usable = (weights > np.finfo(np.float32).tiny) & np.isfinite(weights)
    if np.any(usable) and np.sum(weights[usable], dtype=np.float64) < 1e38:
        assert np.all(weights[ancestors] > 0)


def test_cumulative_numbers_are_exact_sums():
    w = jax.random.exponential(jax.random.key(0), (1_000_003,)).at[::3].set(0)
    number = jax.jit(cumulative_offspring, static_argnums=1)(w, 1_000_003)
    position = np.asarray(number.whole, np.float64) + np.asarray(number.part) / 2.0 ** fraction_bits(w.size, w.dtype)
    exact = np.cumsum(np.asarray(w, np.float64))
    assert position[-1] == 1_000_003
    assert np.all(np.diff(position) >= 0)
    assert np.all(np.diff(position)[np.asarray(w)[1:] == 0] == 0)
    # Rounding to 2**-bits a weight walks at random: far below one offspring after 1e6 of them.
    np.testing.assert_allclose(position, exact / exact[-1] * 1_000_003, atol=0.05)
