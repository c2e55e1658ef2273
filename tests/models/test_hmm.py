"""Forward-backward and Viterbi against the sum over all paths.

Planted bugs, each run here against the oracle and seen to fail: a transition before the first observation; the
transition matrix transposed; the time index of a time-varying transition off by one.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.models import hmm_forward_backward, hmm_viterbi


class Paths(NamedTuple):
    evidence: float
    smoothed: np.ndarray
    best: tuple[int, ...]
    best_probability: float


def sum_over_paths(initial, transition, log_likelihoods) -> Paths:
    num_steps, k = log_likelihoods.shape
    transition = np.broadcast_to(transition, (num_steps, k, k))
    evidence, smoothed, best, most = 0.0, np.zeros((num_steps, k)), (), -1.0
    for path in itertools.product(range(k), repeat=num_steps):
        p = initial[path[0]] * np.exp(sum(log_likelihoods[t, s] for t, s in enumerate(path)))
        for t in range(1, num_steps):
            p *= transition[t, path[t - 1], path[t]]
        evidence += p
        for t, s in enumerate(path):
            smoothed[t, s] += p
        if p > most:
            best, most = path, p
    return Paths(evidence, smoothed / evidence if evidence else smoothed, best, most)


def example(num_steps=5, k=3, varying=False, zeros=False):
    rng = np.random.default_rng(7)
    initial = rng.dirichlet(np.ones(k))
    transition = rng.dirichlet(np.ones(k), size=(num_steps, k) if varying else k)
    if zeros:
        initial = np.append(rng.dirichlet(np.ones(k - 1)), 0)
        transition = np.triu(transition)
        transition = transition / transition.sum(axis=-1, keepdims=True)
    return initial, transition, rng.normal(size=(num_steps, k)) * 2


CASES = {
    "plain": {},
    "one step": {"num_steps": 1},
    "one state": {"k": 1},
    "varying": {"varying": True},
    "zeros": {"zeros": True},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_sum_over_paths(case, x64):
    arrays = example(**CASES[case])
    exact = sum_over_paths(*arrays)
    out = hmm_forward_backward(*arrays)
    np.testing.assert_allclose(out.log_evidence, np.log(exact.evidence), rtol=1e-12)
    np.testing.assert_allclose(out.smoothed, exact.smoothed, atol=1e-12)
    for t in range(len(arrays[2])):
        upto = sum_over_paths(arrays[0], arrays[1][: t + 1] if arrays[1].ndim == 3 else arrays[1], arrays[2][: t + 1])
        np.testing.assert_allclose(out.filtered[t], upto.smoothed[t], atol=1e-12)
        np.testing.assert_allclose(jnp.sum(out.log_increments[: t + 1]), np.log(upto.evidence), rtol=1e-11)
    np.testing.assert_allclose(out.predicted[0], arrays[0], atol=1e-12)
    np.testing.assert_allclose(jnp.sum(out.predicted, axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_viterbi_finds_the_best_of_all_paths(case, x64):
    arrays = example(**CASES[case])
    exact = sum_over_paths(*arrays)
    out = hmm_viterbi(*arrays)
    assert tuple(int(s) for s in out.path) == exact.best
    np.testing.assert_allclose(out.log_probability, np.log(exact.best_probability), rtol=1e-12)


PLANTED = {
    "transition before the first observation": lambda i, a, ll: (i @ a, a, ll),
    "transposed": lambda i, a, ll: (i, (a.T / a.T.sum(axis=1, keepdims=True)), ll),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(bug, x64):
    arrays = example()
    exact = sum_over_paths(*arrays)
    out = hmm_forward_backward(*PLANTED[bug](*arrays))
    assert abs(float(out.log_evidence) - np.log(exact.evidence)) > 1e-3


def test_planted_time_shift_is_caught(x64):
    initial, transition, rows = example(varying=True)
    exact = sum_over_paths(initial, transition, rows)
    out = hmm_forward_backward(initial, np.roll(transition, 1, axis=0), rows)
    assert abs(float(out.log_evidence) - np.log(exact.evidence)) > 1e-3


def test_impossible_observations_have_evidence_zero():
    initial, transition, rows = example()
    rows[2] = -np.inf
    out = hmm_forward_backward(initial, transition, rows)
    assert float(out.log_evidence) == -np.inf
    assert not any(bool(jnp.isnan(leaf).any()) for leaf in out)
    np.testing.assert_allclose(jnp.sum(out.filtered, axis=1), [1, 1, 0, 0, 0], atol=1e-6)
    assert float(jnp.max(out.smoothed)) == 0
    assert float(hmm_viterbi(initial, transition, rows).log_probability) == -np.inf


def test_far_apart_likelihoods_do_not_underflow():
    # State 1 is certain but 1000 nats less likely than state 0: a version with scaled probabilities gives -inf.
    out = hmm_forward_backward([0.0, 1.0], np.eye(2), np.array([[0.0, -1000.0]]))
    assert float(out.log_evidence) == -1000


def test_missing_row_is_skipped(x64):
    initial, transition, rows = example()
    rows[1] = 0
    two_steps = np.stack([transition, transition, transition @ transition, transition, transition])
    out = hmm_forward_backward(initial, transition, rows)
    short = hmm_forward_backward(initial, np.delete(two_steps, 1, axis=0), np.delete(rows, 1, axis=0))
    np.testing.assert_allclose(out.log_evidence, short.log_evidence, rtol=1e-12)


def test_no_steps():
    out = hmm_forward_backward([0.5, 0.5], np.eye(2), np.zeros((0, 2)))
    assert float(out.log_evidence) == 0
    assert out.smoothed.shape == (0, 2)
    assert hmm_viterbi([0.5, 0.5], np.eye(2), np.zeros((0, 2))).path.shape == (0,)


def test_gradient_is_the_smoothed_probability(x64):
    arrays = tuple(map(jnp.asarray, example(zeros=True)))
    gradient = jax.grad(lambda rows: hmm_forward_backward(arrays[0], arrays[1], rows).log_evidence)(arrays[2])
    np.testing.assert_allclose(gradient, hmm_forward_backward(*arrays).smoothed, atol=1e-12)
    by_parts = jax.grad(lambda a: hmm_forward_backward(arrays[0], a, arrays[2]).log_evidence)(arrays[1])
    assert bool(jnp.isfinite(by_parts).all())


def test_jit_and_vmap_agree_with_eager():
    initial, transition, rows = (jnp.asarray(a, jnp.float32) for a in example())
    eager = hmm_forward_backward(initial, transition, rows)
    both = jnp.stack([rows, rows + 1])
    mapped = jax.jit(jax.vmap(lambda r: hmm_forward_backward(initial, transition, r)))(both)
    np.testing.assert_allclose(mapped.smoothed[0], eager.smoothed, atol=1e-6)
    np.testing.assert_allclose(mapped.log_evidence[1], eager.log_evidence + 5, rtol=1e-5)
    assert eager.log_evidence.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("log_likelihoods", ([1.0], [[1.0]], np.zeros(3))),
        ("log_likelihoods", ([1.0], [[1.0]], np.full((2, 1), np.nan))),
        ("log_likelihoods", ([1.0], [[1.0]], np.full((2, 1), np.inf))),
        ("initial_probs", ([0.5, 0.5, 0.0], np.eye(2), np.zeros((3, 2)))),
        ("initial_probs", ([0.5, 0.6], np.eye(2), np.zeros((3, 2)))),
        ("transition_probs", ([0.5, 0.5], np.eye(3), np.zeros((3, 2)))),
        ("transition_probs", ([0.5, 0.5], [[2.0, -1.0], [0.0, 1.0]], np.zeros((3, 2)))),
        ("transition_probs", ([0.5, 0.5], [[np.nan, 1.0], [0.0, 1.0]], np.zeros((3, 2)))),
    ],
)
def test_bad_input_is_named(name, arrays):
    with pytest.raises(ValueError, match=f"`{name}`"):
        hmm_forward_backward(*arrays)
