"""Exact laws by enumeration: known answers, control flow, what is refused.

Planted bugs, each shown to be caught below: a coin with another bias; a second choice that ignores the first; a
second choice made with the first one's law; a loop that makes one choice too few; a NaN of probability zero let
into an expectation.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probinf as pb
from probinf.core._choices import categorical
from probinf.core._effects import choose, cond, enumerating, map_items, repeat, scan
from probinf.validity import Law, enumerate_algorithm

pytestmark = pytest.mark.usefixtures("x64")

COIN = [0.3, 0.7]
STEP = np.array([[0.8, 0.2], [0.35, 0.65]])


def flip(key, probabilities):
    return choose(key, categorical, jnp.asarray(probabilities)[None])[0]


def table(law, num_choices):
    """Probability of each outcome, a tuple of `num_choices` integers."""
    outcomes = np.asarray(law.outcomes).reshape(-1, num_choices).tolist()
    result: dict[tuple[int, ...], float] = {}
    for outcome, probability in zip(outcomes, np.asarray(law.probabilities).tolist(), strict=True):
        result[tuple(outcome)] = result.get(tuple(outcome), 0.0) + probability
    return result


def assert_law(algorithm, expected):
    law = enumerate_algorithm(algorithm)
    np.testing.assert_allclose(np.sum(law.probabilities), 1, rtol=1e-12)
    assert np.all(np.asarray(law.probabilities) >= 0)
    found = table(law, len(next(iter(expected))))
    assert {outcome for outcome, p in found.items() if p > 0} == {outcome for outcome, p in expected.items() if p > 0}
    for outcome, probability in expected.items():
        np.testing.assert_allclose(found.get(outcome, 0.0), probability, rtol=1e-12, atol=0)


def assert_broken(algorithm, expected):
    with pytest.raises(AssertionError):
        assert_law(algorithm, expected)


TWO_COINS = {(a, b): COIN[a] * [0.9, 0.1][b] for a in range(2) for b in range(2)}
DEPENDENT = {(a, b): COIN[a] * STEP[a, b] for a in range(2) for b in range(2)}
MARKOV = {
    path: COIN[path[0]] * np.prod([STEP[a, b] for a, b in itertools.pairwise(path)])
    for path in itertools.product(range(2), repeat=4)
}


def two_coins(key, first=COIN):
    keys = jax.random.split(key)
    return jnp.stack([flip(keys[0], first), flip(keys[1], [0.9, 0.1])])


def dependent(key):
    keys = jax.random.split(key)
    first = flip(keys[0], COIN)
    return jnp.stack([first, flip(keys[1], jnp.asarray(STEP)[first])])


def test_two_coins():
    assert_law(two_coins, TWO_COINS)
    assert_broken(lambda key: two_coins(key, [0.31, 0.69]), TWO_COINS)


def test_a_second_choice_that_depends_on_the_first():
    assert_law(dependent, DEPENDENT)

    def ignores(key):
        keys = jax.random.split(key)
        return jnp.stack([flip(keys[0], COIN), flip(keys[1], STEP[0])])

    assert_broken(ignores, DEPENDENT)
    assert_broken(two_coins, DEPENDENT)
    assert_broken(lambda key: jnp.stack([flip(key, COIN)] * 2), DEPENDENT)


def test_unnormalised_probabilities_and_three_sides():
    assert_law(lambda key: flip(key, [1.0, 0.0, 3.0])[None], {(0,): 0.25, (1,): 0.0, (2,): 0.75})


def test_outcomes_are_trees_and_expectations_are_exact():
    def run(key):
        pair = dependent(key)
        return {"pair": pair, "sum": jnp.sum(pair).astype(jnp.float64)}

    law = enumerate_algorithm(run)
    assert isinstance(law, Law)
    assert law.outcomes["pair"].shape == (4, 2)
    np.testing.assert_allclose(
        law.expectation(lambda out: out["sum"]), sum(p * sum(pair) for pair, p in DEPENDENT.items()), rtol=1e-12
    )
    np.testing.assert_allclose(
        law.expectation(lambda out: out["pair"]),
        [sum(p * pair[i] for pair, p in DEPENDENT.items()) for i in range(2)],
        rtol=1e-12,
    )
    np.testing.assert_allclose(law.expectation(lambda out: out["sum"] == 2), DEPENDENT[1, 1], rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3, 16, 1000])
def test_batches_change_nothing(batch_size):
    expected = enumerate_algorithm(dependent)
    law = enumerate_algorithm(dependent, batch_size=batch_size)
    np.testing.assert_array_equal(law.outcomes, expected.outcomes)
    np.testing.assert_array_equal(law.probabilities, expected.probabilities)


def by_scan(key):
    keys = jax.random.split(key, 4)
    first = flip(keys[0], COIN)

    def body(x, key):
        x = flip(key, jnp.asarray(STEP)[x])
        return x, x

    return jnp.concatenate([first[None], scan(body, first, keys[1:], 3)[1]])


def by_repeat(key, num_steps=3):
    keys = jax.random.split(key, 4)
    path = jnp.zeros(4, jnp.int32).at[0].set(flip(keys[0], COIN))
    return repeat(num_steps, lambda i, p: p.at[i + 1].set(flip(keys[i + 1], jnp.asarray(STEP)[p[i]])), path)


def test_loops():
    assert_law(by_scan, MARKOV)
    assert_law(by_repeat, MARKOV)
    assert_broken(lambda key: by_repeat(key, 2), MARKOV)


def test_items_choose_apart():
    rows = jnp.asarray([[0.3, 0.7], [0.9, 0.1]])
    assert_law(lambda key: map_items(flip, jax.random.split(key), rows), TWO_COINS)


def test_both_branches_of_a_condition():
    """A choice in the branch that is not taken has weight one, summed over its outcomes."""

    def run(key, wrong=False):
        keys = jax.random.split(key, 3)
        first = flip(keys[0], COIN)
        second = cond(first == (1 if wrong else 0), lambda: flip(keys[1], STEP[0]), lambda: flip(keys[2], [0.35, 0.65]))
        return jnp.stack([first, second])

    assert_law(run, DEPENDENT)
    assert_broken(lambda key: run(key, wrong=True), DEPENDENT)


class Grow(eqx.Module):
    """Doubles every particle and adds a coin, where `when` says; the coin's law depends on the particle."""

    when: int

    def __call__(self, key, population, step):
        keys = jax.random.split(key, population.num_particles)

        def grow(x):
            return map_items(lambda k, one: 2 * one + flip(k, jnp.asarray(STEP)[one % 2]), keys, x)

        particles = cond(step >= self.when, grow, lambda x: x, population.particles)
        return eqx.tree_at(lambda p: p.particles, population, particles), None


def test_nested_iterate_with_cond_and_map_items():
    """Two particles, an outer loop of two passes over an inner loop of two steps, of which one grows."""

    def run(key):
        start, loop = jax.random.split(key)
        population = pb.spawn(lambda k: flip(k, COIN), 2)(start)
        inner = pb.iterate(Grow(1), over=jnp.arange(2))
        population, _ = pb.iterate(inner, over=jnp.arange(2))(loop, population)
        return population.particles

    single: dict[int, float] = {}
    for a, b, c in itertools.product(range(2), repeat=3):
        value = 4 * a + 2 * b + c
        single[value] = single.get(value, 0.0) + COIN[a] * STEP[a, b] * STEP[b, c]
    expected = {(x, y): single[x] * single[y] for x in single for y in single}
    # 2 first coins and 8 in the branches (also where they are not taken): 2**10 scripts.
    assert_law(run, expected)

    def eager(key):
        start, loop = jax.random.split(key)
        population = pb.spawn(lambda k: flip(k, COIN), 2)(start)
        inner = pb.iterate(Grow(0), over=jnp.arange(1))
        return pb.iterate(inner, over=jnp.arange(1))(loop, population)[0].particles

    assert_broken(eager, expected)


def test_too_many_scripts_are_refused():
    def many(key):
        return jnp.stack([flip(k, COIN) for k in jax.random.split(key, 5)])

    assert enumerate_algorithm(many, max_outcomes=32).probabilities.shape == (32,)
    with pytest.raises(ValueError, match=r"has 32 scripts \(\[2, 2, 2, 2, 2\]\); `max_outcomes` is 31"):
        enumerate_algorithm(many, max_outcomes=31)
    with pytest.raises(ValueError, match="1099511627776 scripts"):  # found before a list of them is made
        enumerate_algorithm(lambda key: jnp.stack([flip(k, COIN) for k in jax.random.split(key, 40)]))


def test_no_choice_is_refused():
    with pytest.raises(ValueError, match="no choice"):
        enumerate_algorithm(lambda key: jax.random.normal(key))


def half_defined(key):
    """NaN where the coin shows what it never shows, infinity likewise."""
    side = flip(key, [0.25, 0.0, 0.75])
    return jnp.array([2.0, jnp.nan, 4.0])[side]


def test_nan_of_probability_zero_is_not_looked_at():
    law = enumerate_algorithm(half_defined)
    assert np.isnan(law.outcomes[1])
    np.testing.assert_allclose(law.expectation(lambda x: x), 3.5, rtol=1e-12)
    np.testing.assert_allclose(law.expectation(lambda x: jnp.stack([x, 1 / (x - x)])[:1]), [3.5], rtol=1e-12)
    naive = jnp.sum(law.probabilities * law.outcomes)  # the planted bug
    assert np.isnan(naive)


def test_nan_of_positive_probability_is_seen():
    law = enumerate_algorithm(lambda key: jnp.array([2.0, jnp.nan])[flip(key, COIN)])
    assert np.isnan(law.expectation(lambda x: x))


def test_the_enumerator_is_put_away_after_an_error():
    def fails(key):
        flip(key, COIN)
        raise RuntimeError("in the algorithm")

    with pytest.raises(RuntimeError, match="in the algorithm"):
        enumerate_algorithm(fails)
    drawn = jax.vmap(lambda k: flip(k, COIN))(jax.random.split(jax.random.key(0), 100))
    assert set(np.asarray(drawn).tolist()) == {0, 1}


@pytest.mark.no_key_reuse  # keys scanned under vmap
def test_draws_follow_the_enumerated_law(key):
    # 40,000 draws, 16 cells, each within 6 standard errors: false alarm 3e-8; a cell off by 0.03 is not missed.
    n = 40_000
    law = table(enumerate_algorithm(by_scan), 4)
    paths = np.asarray(jax.jit(jax.vmap(by_scan))(jax.random.split(key, n)))
    cells = np.asarray(list(law))
    shares = (paths[:, None, :] == cells[None]).all(-1).mean(0)
    p = np.asarray(list(law.values()))
    assert np.all(np.abs(shares - p) < 6 * np.sqrt(p * (1 - p) / n))


def test_a_handler_sees_the_choices_in_order():
    class Recorder:
        def __init__(self):
            self.seen = []

        def decide(self, outcomes, probabilities):
            self.seen.append(np.asarray(probabilities).tolist())
            return jax.tree.map(lambda leaf: leaf[-1], outcomes)

    recorder = Recorder()
    with enumerating(recorder):
        outcome = dependent(jax.random.key(0))
    np.testing.assert_array_equal(outcome, [1, 1])
    np.testing.assert_allclose(recorder.seen, [COIN, STEP[1]])
