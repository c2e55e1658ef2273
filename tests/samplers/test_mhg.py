"""`mhg`: exact transition matrices by enumeration, Jacobians, and the check mode.

Planted bugs that must be caught: the acceptance ratio upside down, the auxiliary mass left out, the reverse mass taken
at the old state (each breaks invariance of the enumerated matrix); the Jacobian dropped, halved, or of the wrong
sign; a map that is no involution (each sets `BAD_INVOLUTION`, and the dropped Jacobian moves the exact answer).
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core._effects import choose, enumerating
from probinf.core._status import Status
from probinf.core._target import Target
from probinf.samplers import _mhg
from probinf.samplers._mhg import MHGState, mhg, relocate
from tests._slow import slow_after

# Skewed, with an impossible state, and a proposal that is asymmetric and cannot always be reversed (2 -> 0).
WEIGHTS = np.array([0.5, 2.0, 0.9, 0.0])
PROPOSAL = np.array([[0.1, 0.6, 0.0, 0.3], [0.2, 0.3, 0.5, 0.0], [0.4, 0.25, 0.25, 0.1], [0.1, 0.2, 0.3, 0.4]])


class Table(eqx.Module):
    """A choice among 0 .. n-1 with given probabilities."""

    def sample(self, key: Any, probabilities: Any) -> Any:
        return jax.random.categorical(key, jnp.log(probabilities))

    def law(self, probabilities: Any) -> Any:
        return jnp.arange(probabilities.shape[0]), probabilities


class Candidate(eqx.Module):
    matrix: Any

    def sample(self, key: Any, target: Any, state: Any) -> Any:
        return choose(key, Table(), self.matrix[state.position])

    def log_prob(self, target: Any, state: Any, v: Any) -> Any:
        return jnp.log(self.matrix[state.position, v])


def swap(target: Any, state: Any, v: Any) -> Any:
    return relocate(target, state, v), state.position, jnp.zeros(())


class Path:
    """Follows one path through the tree of choices, and knows the next."""

    def __init__(self) -> None:
        self.todo: list[tuple[int, ...]] = [()]
        self.path: tuple[int, ...] = ()
        self.at, self.probability = 0, 1.0

    def runs(self, function: Any) -> Any:
        while self.todo:
            self.path, self.at, self.probability = self.todo.pop(), 0, 1.0
            with enumerating(self):
                result = function()
            yield result, self.probability

    def decide(self, outcomes: Any, probabilities: Any) -> Any:
        if self.at == len(self.path):
            self.todo += [(*self.path, i) for i in range(1, len(probabilities))]
            self.path = (*self.path, 0)
        index = self.path[self.at]
        self.at += 1
        self.probability *= float(probabilities[index])
        return outcomes[index]


def transition_matrix(kernel: Any) -> np.ndarray:
    target = Target(lambda x: jnp.log(jnp.asarray(WEIGHTS))[x])
    matrix = np.zeros((4, 4))
    for start in range(4):
        state = kernel.init(jax.random.key(0), target, jnp.asarray(start))
        state = MHGState(state.point, jnp.zeros_like(state.status))  # state 3 is impossible; not frozen here
        for (new, _), probability in Path().runs(lambda state=state: kernel.step(jax.random.key(0), target, state)):
            matrix[start, int(new.position)] += probability
    return matrix


def test_law_of_mhg_by_enumeration(x64: None) -> None:
    matrix = transition_matrix(mhg(Candidate(jnp.asarray(PROPOSAL)), swap))
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-12)
    assert np.abs(WEIGHTS @ matrix - WEIGHTS).max() < 1e-12
    flow = WEIGHTS[:, None] * matrix
    assert np.abs(flow - flow.T).max() < 1e-12
    # By hand: 0 -> 1 with .6 * min(1, 2 * .2 / (.5 * .6)); 2 -> 0 has no reverse; from 3 every proposal is taken.
    assert matrix[0, 1] == pytest.approx(0.6)
    assert matrix[1, 0] == pytest.approx(0.2 * 0.5 * 0.6 / (2.0 * 0.2))
    assert matrix[2, 0] == 0.0
    # From 3 each proposal with a reverse is taken; 1 has none, and .4 proposes 3 itself.
    np.testing.assert_allclose(matrix[3], [0.1, 0.0, 0.3, 0.6], atol=1e-12)


@pytest.mark.parametrize("bug", slow_after(2, ["upside_down", "stale_reverse", "no_mass"]))
def test_enumeration_catches_planted_bugs(bug: str, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug == "upside_down":
        monkeypatch.setattr(_mhg, "choose", lambda key, choice, ratio: choose(key, choice, -ratio))
    if bug == "no_mass":
        monkeypatch.setattr(Candidate, "log_prob", lambda self, target, state, v: jnp.zeros(()))
    if bug == "stale_reverse":
        forward = Candidate.log_prob
        monkeypatch.setattr(
            Candidate, "log_prob", lambda self, target, state, v: forward(self, target, state, state.position)
        )
    matrix = transition_matrix(mhg(Candidate(jnp.asarray(PROPOSAL)), swap))
    assert np.abs(WEIGHTS @ matrix - WEIGHTS).max() > 1e-3


def test_reverse_probability_zero_is_a_rejection_not_a_nan() -> None:
    target = Target(lambda x: jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[x])
    kernel = mhg(Candidate(jnp.asarray(PROPOSAL, jnp.float32)), swap)
    state = kernel.init(jax.random.key(0), target, jnp.asarray(2))
    for seed in range(20):
        new, info = kernel.step(jax.random.key(seed), target, state)
        assert int(new.status) == 0
        assert not np.isnan(float(info.energy_error))
        assert int(new.position) != 0


class Normal(eqx.Module):
    def sample(self, key: Any, target: Any, state: Any) -> Any:
        return jax.random.normal(key, jnp.shape(state.point.log_prior), state.point.log_prior.dtype)

    def log_prob(self, target: Any, state: Any, v: Any) -> Any:
        return -0.5 * v * v


def scaling(log_det: Any) -> Any:
    """x -> x e^v, v -> -v, with a Jacobian of choice; the right one is v."""

    def involution(target: Any, state: Any, v: Any) -> Any:
        return relocate(target, state, state.position * jnp.exp(v)), -v, log_det(v)

    return involution


EXPONENTIAL = Target(lambda x: jnp.where(x > 0, -x, -jnp.inf))


def mean_after(key: Any, kernel: Any, num: int = 20_000, steps: int = 8) -> tuple[float, float]:
    """Mean and its standard error under Exponential(1), from exact draws."""
    key_start, key_run = jax.random.split(key)
    states = jax.vmap(lambda x: kernel.init(jax.random.key(0), EXPONENTIAL, x))(
        jax.random.exponential(key_start, (num,))
    )

    def body(i: Any, states: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key_run, i), num)
        return jax.vmap(lambda k, s: kernel.step(k, EXPONENTIAL, s)[0])(keys, states)

    x = np.asarray(jax.jit(lambda s: jax.lax.fori_loop(0, steps, body, s))(states).position, np.float64)
    return float(x.mean()), 1 / math.sqrt(num)


@pytest.mark.parametrize("log_det", [lambda v: v, lambda v: None], ids=["given", "autodiff"])
def test_jacobian_of_scaling_gives_the_right_mean(log_det: Any, key: Any) -> None:
    # The mean of 20,000 draws of Exponential(1): 5.5 standard errors are exceeded with probability below 1e-7 (its
    # skewness 2 / sqrt(20,000) adds little).
    mean, error = mean_after(key, mhg(Normal(), scaling(log_det)))
    assert abs(mean - 1) < 5.5 * error


def test_dropped_jacobian_is_caught_by_the_mean(key: Any) -> None:
    mean, error = mean_after(key, mhg(Normal(), scaling(jnp.zeros_like)))
    assert abs(mean - 1) > 5.5 * error


def check_status_of(involution: Any, x: Any = 0.7) -> int:
    kernel = mhg(Normal(), involution, check=True)
    state = kernel.init(jax.random.key(0), EXPONENTIAL, jnp.asarray(x))
    return int(jax.jit(lambda k: kernel.step(k, EXPONENTIAL, state)[0].status)(jax.random.key(1)))


def no_involution(target: Any, state: Any, v: Any) -> Any:
    return relocate(target, state, state.position * jnp.exp(v)), v, v


@pytest.mark.parametrize("log_det", [lambda v: v, lambda v: None], ids=["given", "autodiff"])
def test_check_mode_passes_a_right_involution(log_det: Any) -> None:
    assert check_status_of(scaling(log_det)) == 0


@pytest.mark.parametrize(
    "involution",
    [scaling(jnp.zeros_like), scaling(lambda v: 0.5 * v), scaling(lambda v: -v), scaling(jnp.abs), no_involution],
    ids=["dropped", "halved", "sign", "not_cancelling", "not_an_involution"],
)
def test_check_mode_flags_planted_bugs(involution: Any) -> None:
    assert check_status_of(involution) == int(Status.BAD_INVOLUTION)


def test_bad_involution_freezes_the_chain() -> None:
    kernel = mhg(Normal(), no_involution, check=True)
    state = kernel.init(jax.random.key(0), EXPONENTIAL, jnp.asarray(0.7))
    for seed in range(3):
        state, info = kernel.step(jax.random.key(seed), EXPONENTIAL, state)
        assert not bool(info.accepted)
    assert float(state.position) == pytest.approx(0.7)


def test_discrete_mask_of_the_state_must_come_back_exactly() -> None:
    class Flip(eqx.Module):
        def __call__(self, target: Any, state: Any, v: Any) -> Any:
            x, mask = state.position
            return relocate(target, state, (x * jnp.exp(v), ~mask if self.honest else mask | True)), -v, v

        honest: bool

    target = Target(lambda x: jnp.where(x[0] > 0, -x[0], -jnp.inf))
    for honest, expected in ((True, 0), (False, int(Status.BAD_INVOLUTION))):
        kernel = mhg(_NormalFor(), Flip(honest), check=True)
        state = kernel.init(jax.random.key(0), target, (jnp.asarray(0.7), jnp.asarray(False)))
        assert int(kernel.step(jax.random.key(1), target, state)[0].status) == expected


class _NormalFor(eqx.Module):
    def sample(self, key: Any, target: Any, state: Any) -> Any:
        return jax.random.normal(key, dtype=state.position[0].dtype)

    def log_prob(self, target: Any, state: Any, v: Any) -> Any:
        return -0.5 * v * v


def test_dimensions_of_an_involution_must_match() -> None:
    def widening(target: Any, state: Any, v: Any) -> Any:
        return relocate(target, state, state.position), jnp.stack([v, v]), None

    kernel = mhg(Normal(), widening)
    state = kernel.init(jax.random.key(0), EXPONENTIAL, jnp.asarray(0.7))
    with pytest.raises(ValueError, match="continuous coordinates"):
        kernel.step(jax.random.key(1), EXPONENTIAL, state)


def test_birth_and_death_with_its_jacobian(key: Any) -> None:
    """Two models in a padded position (k, t1, t2): birth t2 = 2u has |J| = 2, death 1/2; model 2 holds .7.

    With the Jacobian dropped the answer is 7/13. 400 chains of 200 steps, thinned to their means, whose spread gives
    the standard error; 6 of them is a false alarm below 1e-7 (t with 399 degrees).
    """

    class Birth(eqx.Module):
        def sample(self, key: Any, target: Any, state: Any) -> Any:
            return jax.random.normal(key)

        def log_prob(self, target: Any, state: Any, v: Any) -> Any:
            return jnp.where(state.position[0] == 1, -0.5 * v * v - 0.5 * math.log(2 * math.pi), 0.0)

    def involution(jacobian: Any) -> Any:
        def phi(target: Any, state: Any, u: Any) -> Any:
            k, t1, t2 = state.position
            born = (jnp.int32(2), t1, 2 * u)
            died = (jnp.int32(1), t1, jnp.zeros_like(t2))
            new = jax.tree.map(lambda a, b: jnp.where(k == 1, a, b), born, died)
            back = jnp.where(k == 1, jnp.zeros_like(u), t2 / 2)
            return relocate(target, state, new), back, jnp.where(k == 1, 1.0, -1.0) * jacobian

        return phi

    def normal(t: Any) -> Any:
        return -0.5 * t * t - 0.5 * math.log(2 * math.pi)

    target = Target(
        lambda p: jnp.where(p[0] == 1, math.log(0.3) + normal(p[1]), math.log(0.7) + normal(p[1]) + normal(p[2]))
    )

    def occupancy(key: Any, jacobian: float) -> np.ndarray:
        kernel = mhg(Birth(), involution(jacobian))
        start = (jnp.ones(400, jnp.int32), jnp.zeros(400), jnp.zeros(400))
        states = jax.vmap(lambda p: kernel.init(jax.random.key(0), target, p))(start)

        def body(states: Any, i: Any) -> Any:
            keys = jax.random.split(jax.random.fold_in(key, i), 400)
            states = jax.vmap(lambda k, s: kernel.step(k, target, s)[0])(keys, states)
            return states, states.position[0] == 2

        _, in_two = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(220)))(states)
        return np.asarray(in_two)[20:].mean(0)

    key_right, key_wrong = jax.random.split(key)
    right, wrong = occupancy(key_right, math.log(2)), occupancy(key_wrong, 0.0)
    error = right.std(ddof=1) / math.sqrt(400)
    assert abs(right.mean() - 0.7) < 6 * error
    assert abs(wrong.mean() - 0.7) > 6 * error
    assert abs(wrong.mean() - 7 / 13) < 6 * wrong.std(ddof=1) / math.sqrt(400)


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="auxiliary"):
        mhg(3, swap)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="involution"):
        mhg(Normal(), 3)  # pyright: ignore[reportArgumentType]


def test_accept_law_agrees_with_its_sampler(key: Any) -> None:
    accept = _mhg.Accept()
    for ratio in (-jnp.inf, -0.7, 0.0, 2.0, jnp.inf):
        outcomes, probabilities = accept.law(jnp.asarray(ratio))
        key, key_one = jax.random.split(key)
        hits = jax.vmap(lambda k, r=ratio: accept.sample(k, jnp.asarray(r)))(jax.random.split(key_one, 20_000))
        assert outcomes.tolist() == [True, False]
        # 5.5 standard errors of a fraction, exact at the ends.
        p = float(probabilities[0])
        assert abs(float(hits.mean()) - p) <= 5.5 * math.sqrt(p * (1 - p) / 20_000)
