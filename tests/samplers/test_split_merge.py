"""`split_merge`: exact matrices on compositions of a number, exact draws that must stay exact, a change-point model.

Planted bugs that must be caught: the Jacobian dropped; a merge that does not undo the split; a density of u without its
constant; moves drawn by a law that their probabilities do not know.
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from probinf.core import choose
from probinf.core._choices import categorical
from probinf.core._status import Status
from probinf.core._target import Target
from probinf.samplers import _split_merge
from probinf.samplers._birth_death import birth_death
from probinf.samplers._combine import cycle
from probinf.samplers._model_space import Components, Subsets
from probinf.samplers._split_merge import split_merge
from probinf.samplers._trans_dimensional import JumpProposal, TransDimensional, active_random_walk
from tests.samplers._trans_dimensional import Normal, balance_errors, run_chains, transition_matrix, z_scores

TOTAL, CAPACITY = 3, 3


class UpTo(eqx.Module):
    """The uniform law on 0 .. bound."""

    bound: Any

    def sample(self, key: Any) -> Any:
        inside = (jnp.arange(TOTAL + 1, dtype=jnp.int32) <= self.bound).astype(jnp.float64)
        return choose(key, categorical, inside[None])[0]

    def log_prob(self, u: Any) -> Any:
        return jnp.where((u >= 0) & (u <= self.bound), -jnp.log(self.bound.astype(jnp.float64) + 1), -jnp.inf)


def part_of(position: TransDimensional, slot: Any) -> UpTo:
    return UpTo(position.parameters[slot])


def take_away(whole: Any, u: Any) -> Any:
    return u, whole - u


def add(a: Any, b: Any) -> Any:
    return a + b, a


def compositions() -> list[TransDimensional]:
    return [
        TransDimensional(jnp.asarray(k, jnp.int32), jnp.asarray([*parts, *[0] * (CAPACITY - k)], jnp.int32))
        for k in range(1, CAPACITY + 1)
        for parts in itertools.product(range(TOTAL + 1), repeat=k)
        if sum(parts) == TOTAL
    ]


def composition_density(position: TransDimensional) -> Any:
    """Not exchangeable, and one composition, (0, 3), is impossible."""
    table = jnp.asarray([[0.2, 1.1, 0.3, 0.8], [0.9, 0.5, 1.3, 0.6], [1.7, 0.4, 0.7, 0.5]])
    slots = jnp.arange(CAPACITY, dtype=jnp.int32)
    logs = jnp.where(slots < position.model, jnp.log(table[slots, position.parameters]), 0)
    impossible = (position.model == 2) & (position.parameters[0] == 0)
    return jnp.where(impossible, -jnp.inf, jnp.sum(logs))


def composition_errors(weights: Any) -> float:
    kernel = split_merge(
        take_away, add, part_of, Components(CAPACITY), split_probability=0.35, merge_weights=weights, check=True
    )
    positions = [p for p in compositions() if np.isfinite(float(composition_density(p)))]
    target = Target(composition_density)
    density = np.exp([float(target.log_density(position)) for position in positions])
    return max(balance_errors(transition_matrix(kernel, target, positions), density))


def neighbours(position: TransDimensional) -> Any:
    """Only a component and the next one merge, with weights by place."""
    slots = jnp.arange(CAPACITY, dtype=jnp.int32)
    return jnp.where(slots[None, :] == slots[:, None] + 1, 1.0 + slots[:, None].astype(jnp.float64), 0.0)


@pytest.mark.parametrize("weights", [None, neighbours], ids=["all_pairs", "neighbours"])
def test_exact_law_on_compositions(weights: Any, x64: None) -> None:
    assert composition_errors(weights) < 1e-12


def test_enumeration_catches_a_density_of_u_left_out(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpTo, "log_prob", lambda self, u: jnp.zeros(()))
    assert composition_errors(None) > 1e-3


def test_enumeration_catches_a_merge_without_its_law(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges are drawn by weights that their probabilities do not know."""
    law = JumpProposal.law
    monkeypatch.setattr(JumpProposal, "log_prob", _with_law(lambda self, p: jnp.ones_like(law(self, p)) / 19))
    assert composition_errors(neighbours) > 1e-3


def _with_law(wrong: Any) -> Any:
    def log_prob(self: Any, target: Any, state: Any, v: Any) -> Any:
        position = state.point.position
        return jnp.log(wrong(self, position)[v.choice]) + self.moves.log_prob_noise(position, v)

    return log_prob


def test_exact_law_on_subsets(x64: None) -> None:
    """Slots 0 .. 2 are places of their own; a part moves to an empty place."""
    positions = [
        TransDimensional(jnp.asarray(mask), jnp.asarray(parts, jnp.int32))
        for mask in itertools.product([False, True], repeat=3)
        for parts in itertools.product(range(TOTAL + 1), repeat=3)
        if sum(parts) == TOTAL and any(mask) and all(m or p == 0 for m, p in zip(mask, parts, strict=True))
    ]

    def density(p: TransDimensional) -> Any:
        table = jnp.asarray([[0.2, 1.1, 0.3, 0.8], [0.9, 0.5, 1.3, 0.6], [1.7, 0.4, 0.7, 0.5]])
        return jnp.sum(jnp.where(p.model, jnp.log(table[jnp.arange(3), p.parameters]), 0))

    kernel = split_merge(take_away, add, part_of, Subsets(3, minimum=1))
    weights = np.exp([float(density(position)) for position in positions])
    matrix = transition_matrix(kernel, Target(density), positions)
    assert max(balance_errors(matrix, weights)) < 1e-12


# Three models of 1, 2 or 3 exponential weights: a split takes a uniform fraction, |J| = the weight.
MODEL_PROBABILITIES = np.array([0.2, 0.5, 0.3])


class Uniform(eqx.Module):
    def sample(self, key: Any) -> Any:
        return jax.random.uniform(key)

    def log_prob(self, u: Any) -> Any:
        return jnp.where((u >= 0) & (u <= 1), 0.0, -jnp.inf)


def break_off(weight: Any, u: Any) -> Any:
    return weight * u, weight * (1 - u)


def join(a: Any, b: Any) -> Any:
    return a + b, a / (a + b)


def exponential_density(p: TransDimensional) -> Any:
    active = jnp.arange(3) < p.model
    logs = jnp.where(p.parameters > 0, -p.parameters, -jnp.inf)
    return jnp.log(jnp.asarray(MODEL_PROBABILITIES, jnp.float32))[p.model - 1] + jnp.sum(jnp.where(active, logs, 0))


EXPONENTIAL = Target(exponential_density)


def exact_draws(key: Any, num: int) -> TransDimensional:
    key_model, key_weights = jax.random.split(key)
    models = 1 + jax.random.choice(key_model, 3, (num,), p=jnp.asarray(MODEL_PROBABILITIES)).astype(jnp.int32)
    weights = jax.random.exponential(key_weights, (num, 3))
    return TransDimensional(models, jnp.where(jnp.arange(3)[None] < models[:, None], weights, 0))


def stationary_z(key: Any, kernel: Any, num: int = 20_000, steps: int = 6) -> np.ndarray:
    """z-scores of model probabilities, and of the first and the last weight, after some steps from exact draws."""
    key_draws, key_run = jax.random.split(key)
    states, _ = run_chains(key_run, kernel, EXPONENTIAL, exact_draws(key_draws, num), steps, lambda p: p.model)
    model, weights = (np.asarray(leaf) for leaf in states.position[:2])
    last = weights[np.arange(num), np.maximum(model - 1, 0)]
    seen = np.concatenate([model[:, None] == np.arange(1, 4), np.stack([weights[:, 0] > 1, last > 1], 1)], 1)
    return z_scores(seen[None], [*MODEL_PROBABILITIES, np.exp(-1), np.exp(-1)])


def test_exact_draws_stay_exact(key: Any) -> None:
    # 5 fractions of 20,000 independent chains: |z| > 6 has probability below 5 * 4e-9 in all.
    kernel = split_merge(break_off, join, Uniform(), Components(3, minimum=1))
    assert np.abs(stationary_z(key, kernel)).max() < 6


def no_jacobian(function: Any, first: Any, second: Any) -> Any:
    return function(first, second), jnp.zeros(())


@pytest.mark.slow
def test_a_dropped_jacobian_is_caught(key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_split_merge, "_with_log_det", no_jacobian)
    kernel = split_merge(break_off, join, Uniform(), Components(3, minimum=1))
    key_z, key_draws, key_run = jax.random.split(key, 3)
    assert np.abs(stationary_z(key_z, kernel, num=60_000)).max() > 6
    checked = split_merge(break_off, join, Uniform(), Components(3, minimum=1), check=True)
    states, _ = run_chains(key_run, checked, EXPONENTIAL, exact_draws(key_draws, 64), 4, lambda p: p.model)
    assert np.mean(np.asarray(states.status) == int(Status.BAD_INVOLUTION)) > 0.9


@pytest.mark.slow
def test_check_passes_the_right_maps_and_flags_a_wrong_merge(key: Any) -> None:
    def wrong(a: Any, b: Any) -> Any:
        return a + b, b / (a + b)

    for merge, expected in ((join, 0), (wrong, int(Status.BAD_INVOLUTION))):
        kernel = split_merge(break_off, merge, Uniform(), Components(3, minimum=1), check=True)
        key, key_draws, key_run = jax.random.split(key, 3)
        states, _ = run_chains(key_run, kernel, EXPONENTIAL, exact_draws(key_draws, 64), 4, lambda p: p.model)
        status = np.asarray(states.status)
        assert np.all((status == 0) | (status == expected))
        assert np.any(status) == (expected != 0)


def test_with_within_model_steps_it_converges(key: Any) -> None:
    """Normal components, split into (t - u, t + u): from one model to all, with random-walk steps between."""

    def density(p: TransDimensional) -> Any:
        logs = -0.5 * p.parameters**2 - 0.5 * jnp.log(2 * jnp.pi)
        prior = jnp.log(jnp.asarray(MODEL_PROBABILITIES, jnp.float32))[p.model - 1]
        return prior + jnp.sum(jnp.where(jnp.arange(3) < p.model, logs, 0))

    space = Components(3, minimum=1)
    kernel = cycle(
        split_merge(lambda t, u: (t - u, t + u), lambda a, b: ((a + b) / 2, (b - a) / 2), Normal(), space),
        active_random_walk(space, 1.2),
    )
    start = TransDimensional(jnp.ones(400, jnp.int32), jnp.zeros((400, 3)))
    states, seen = run_chains(key, kernel, Target(density), start, 250, lambda p: p.model)
    assert not np.any(np.asarray(states.status))
    # 3 means of 400 chains; 6.5 standard errors have probability below 1e-9.
    assert np.abs(z_scores(seen[50:, :, None] == np.arange(1, 4), MODEL_PROBABILITIES)).max() < 6.5


# Change points of a normal mean with known variance, the heights integrated out: the posterior of their number is a
# finite sum over the gaps of the data in which they lie.
SERIES = np.array([0.3, -0.4, 0.1, 1.6, 1.9, 1.2, 1.7, -0.2, 0.4, -0.6])
TIMES = (np.arange(10) + 0.5) / 10
HEIGHT = 1.5
PRIOR = np.array([0.4, 0.35, 0.25])


def log_marginal(points: Any) -> Any:
    """Of the series, given change points of which those at infinity do not count."""
    segment = jnp.sum(jnp.asarray(TIMES)[:, None] > points[None], axis=1)
    member = segment[:, None] == jnp.arange(points.shape[0] + 1)[None]
    number = jnp.sum(member, axis=0).astype(points.dtype)
    total = jnp.sum(jnp.where(member, jnp.asarray(SERIES, points.dtype)[:, None], 0), axis=0)
    spread = 1 + HEIGHT**2 * number
    return jnp.sum(-0.5 * jnp.log(spread) + 0.5 * HEIGHT**2 * total**2 / spread)


def change_point_posterior() -> np.ndarray:
    edges = np.concatenate([[0], TIMES, [1]])
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    evidence = []
    for k in range(3):
        terms = [
            np.prod(widths[list(gaps)]) * np.exp(float(log_marginal(jnp.asarray(middles[list(gaps)]))))
            for gaps in itertools.product(range(len(widths)), repeat=k)
        ]
        evidence.append(PRIOR[k] * np.sum(terms))
    return np.array(evidence) / np.sum(evidence)


def test_change_points(key: Any) -> None:
    def density(p: TransDimensional) -> Any:
        active = jnp.arange(2) < p.model
        inside = jnp.all(jnp.where(active, (p.parameters > 0) & (p.parameters < 1), True))
        value = log_marginal(jnp.where(active, p.parameters, jnp.inf))
        return jnp.where(inside, value + jnp.log(jnp.asarray(PRIOR, jnp.float32))[p.model], -jnp.inf)

    kernel = cycle(birth_death(Uniform(), Components(2)), active_random_walk(Components(2), 0.2))
    start = TransDimensional(jnp.zeros(300, jnp.int32), jnp.zeros((300, 2)))
    states, seen = run_chains(key, kernel, Target(density), start, 400, lambda p: p.model)
    assert not np.any(np.asarray(states.status))
    # 3 means of 300 chains; 6.5 standard errors have probability below 1e-9.
    assert np.abs(z_scores(seen[80:, :, None] == np.arange(3), change_point_posterior())).max() < 6.5


def test_dimensions_must_match() -> None:
    kernel = split_merge(lambda t, u: (t - u[0], t + u[1]), lambda a, b: (a, b), Normal(shape=(2,)), Components(2))
    target = Target(lambda p: jnp.zeros(()))
    state = kernel.init(jax.random.key(0), target, TransDimensional(jnp.asarray(1), jnp.zeros(2)))
    with pytest.raises(ValueError, match=r"`merge` returned noise .* as many numbers as two components"):
        kernel.step(jax.random.key(1), target, state)


def test_noise_that_no_split_draws_is_rejected_without_a_flag(key: Any) -> None:
    """x becomes x -+ sqrt(u) with u on (0, 1): far pairs have u over 1, close ones a derivative without bound."""

    class Unit(eqx.Module):
        def sample(self, key: Any) -> Any:
            return jax.random.uniform(key)

        def log_prob(self, u: Any) -> Any:
            return jnp.where((u > 0) & (u < 1), 0.0, -jnp.inf)

    def split(x: Any, u: Any) -> Any:
        return x - jnp.sqrt(u), x + jnp.sqrt(u)

    def merge(a: Any, b: Any) -> Any:  # backwards pairs have u below zero
        return (a + b) / 2, jnp.sign(b - a) * ((b - a) / 2) ** 2

    kernel = split_merge(split, merge, Unit(), Components(2, 1))
    target = Target(lambda p: jnp.sum(jnp.where(jnp.arange(2) < p.model, -0.5 * p.parameters**2, 0)))
    start = TransDimensional(jnp.full(100, 2, jnp.int32), jax.random.normal(jax.random.key(9), (100, 2)))
    states, seen = run_chains(key, kernel, target, start, 5, lambda p: p.model)
    assert not np.any(np.asarray(states.status))
    assert np.any(seen == 1)


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="noise"):
        split_merge(break_off, join, 3, Components(2))
    with pytest.raises(TypeError, match="space"):
        split_merge(break_off, join, Uniform(), 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_merge(break_off, join, Uniform(), Components(2), split_probability=1.5)


def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the hook of the tests would answer first
    space = Components(2)
    with pytest.raises(TypeError, match=r"`split` must be a function .* but is 3"):
        split_merge(3, join, Uniform(), space)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"`merge` must be a function .* but is None"):
        split_merge(break_off, None, Uniform(), space)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"`noise` must have `sample` .* but is 3"):
        split_merge(break_off, join, 3, space)
    with pytest.raises(TypeError, match=r"`merge_weights` must be a function .*\[capacity, capacity\].* but is Array"):
        split_merge(break_off, join, Uniform(), space, merge_weights=jnp.ones((2, 2)))  # pyright: ignore[reportArgumentType]
    for bad in (1.5, "a", None):
        with pytest.raises(ValueError, match=rf"`split_probability` must be a scalar .* but is {bad!r}"):
            split_merge(break_off, join, Uniform(), space, split_probability=bad)
