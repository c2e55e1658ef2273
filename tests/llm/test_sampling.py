"""`Sampling`: temperature and filters against their definitions in NumPy, their edges, and what must not recompile.

Exact: no test draws. Planted bugs, shown to be caught: top-p that leaves out the token which reaches p, min-p of the
law before the temperature, filters in another order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.llm._sampling import at_least

LOGITS = np.random.default_rng(0).normal(size=(6, 11)) * 2


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kept(probabilities, keep):
    cut = np.where(keep, probabilities, 0)
    return cut / cut.sum(axis=-1, keepdims=True)


def nucleus(probabilities, top_p):
    """The fewest tokens whose probability reaches `top_p`, by sorting."""
    keep = np.zeros(probabilities.shape, bool)
    for row, marks in zip(probabilities, keep, strict=True):
        order = np.argsort(-row)
        before = np.cumsum(row[order]) - row[order]
        marks[order[before < top_p]] = True
    return keep


def law(logits, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    probabilities = softmax(logits / temperature)
    if top_k is not None:
        probabilities = kept(probabilities, probabilities >= -np.sort(-probabilities, axis=-1)[:, top_k - 1 : top_k])
    if top_p < 1:
        probabilities = kept(probabilities, nucleus(probabilities, top_p))
    return kept(probabilities, probabilities >= min_p * probabilities.max(axis=-1, keepdims=True))


def found(logits, dtype=jnp.float32, **options):
    return np.exp(np.asarray(llm.Sampling(**options).log_probs(jnp.asarray(logits, dtype)), np.float64))


OPTIONS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 11},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.2},
    {"temperature": 1.7, "top_k": 7, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_law_is_the_definition(options):
    np.testing.assert_allclose(found(LOGITS, **options), law(LOGITS, **options), rtol=2e-5, atol=1e-7)


def test_double_precision(x64):
    options = OPTIONS[-1]
    assert llm.Sampling(**options).log_probs(jnp.asarray(LOGITS)).dtype == jnp.float64
    np.testing.assert_allclose(found(LOGITS, jnp.float64, **options), law(LOGITS, **options), rtol=1e-12)


def test_half_precision_is_widened():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    log_probs = llm.Sampling(0.7).log_probs(logits)
    assert log_probs.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1, rtol=1e-5)


def test_planted_bugs_are_caught():
    probabilities = softmax(LOGITS)
    too_few = nucleus(probabilities, 0.5) & (np.cumsum(-np.sort(-probabilities), axis=-1) < 0.5)
    assert not np.array_equal(too_few, nucleus(probabilities, 0.5))
    before = kept(softmax(LOGITS / 0.3), softmax(LOGITS) >= 0.2 * softmax(LOGITS).max(axis=-1, keepdims=True))
    assert not np.allclose(found(LOGITS, temperature=0.3, min_p=0.2), before, atol=1e-6)
    other_order = law(np.log(np.maximum(law(LOGITS, top_p=0.8), 1e-300)), top_k=3)
    assert not np.allclose(found(LOGITS[:, ::1] * 0.3, top_k=3, top_p=0.8), other_order, atol=1e-3)


def test_temperature_zero_is_the_most_probable_token():
    log_probs = np.asarray(llm.Sampling(0.0).log_probs(jnp.asarray(LOGITS, jnp.float32)))
    assert np.array_equal(np.argmax(LOGITS, axis=-1), np.argmax(log_probs, axis=-1))
    assert np.all(log_probs.max(axis=-1) == 0)
    assert np.sum(log_probs > -np.inf) == len(LOGITS)
    both = llm.Sampling(0.0).log_probs(jnp.asarray([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(np.exp(both), [[0.5, 0.5, 0.0]])


def test_nan_stays_nan():
    for temperature in (0.0, 0.7):
        assert jnp.isnan(llm.Sampling(temperature).log_probs(jnp.full((2, 4), jnp.nan))).all()


def test_tokens_of_probability_zero_stay_there():
    logits = jnp.asarray([[0.0, -jnp.inf, 1.0, -jnp.inf]])
    for options in ({}, {"top_k": 3}, {"top_p": 0.9999999}, {"temperature": 0.0}, {"min_p": 1.0}):
        log_probs = np.asarray(llm.Sampling(**options).log_probs(logits))
        assert np.all(log_probs[0, [1, 3]] == -np.inf)
        np.testing.assert_allclose(np.exp(log_probs).sum(), 1, rtol=1e-6)


def test_ties_at_the_edge_are_all_kept():
    logits = jnp.asarray([[2.0, 1.0, 1.0, 0.0]])
    assert np.sum(np.asarray(llm.Sampling(top_k=2).log_probs(logits)) > -np.inf) == 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_at_least_keeps_the_fewest_of_the_largest(x64, dtype):
    rng = np.random.default_rng(1)
    values = jnp.asarray(rng.gamma(0.3, size=(40, 17)), dtype)
    wanted = jnp.asarray(rng.uniform(0.01, 1.2, size=(40, 1)), dtype) * jnp.sum(values, axis=1, keepdims=True)
    keep = np.asarray(at_least(values, values, wanted))
    numbers, goal = np.asarray(values, np.float64), np.asarray(wanted, np.float64)
    for row, marks, least in zip(numbers, keep, goal[:, 0], strict=True):
        assert marks.all() or row[marks].sum() >= least * (1 - 1e-5)
        if marks.all() and row.sum() < least:
            continue
        assert row[marks].sum() - row[marks].min() < least * (1 + 1e-5)
        assert marks.all() or row[marks].min() > row[~marks].max()


def test_other_numbers_are_the_same_program():
    traces = []

    @jax.jit
    def run(sampling, logits):
        traces.append(1)
        return sampling.log_probs(logits)

    logits = jnp.asarray(LOGITS, jnp.float32)
    for temperature, top_k, top_p, min_p in [(1.0, 3, 0.9, 0.0), (0.5, 5, 0.2, 0.1), (0.0, 1, 0.5, 1.0)]:
        run(llm.Sampling(temperature, top_k, top_p, min_p), logits)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": -0.1}, "`temperature` is -0.1; needed a finite number, at least 0"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"top_p": 0.0}, r"`top_p` is 0.0; needed a number in \(0, 1\]"),
        ({"top_p": 1.5}, "`top_p` is 1.5"),
        ({"min_p": 2.0}, "`min_p` is 2.0"),
        ({"top_k": 0}, "`top_k` is 0; needed at least 1"),
    ],
)
def test_bad_numbers(options, text):
    with pytest.raises(ValueError, match=text):
        llm.Sampling(**options)


def test_a_count_must_be_whole():
    with pytest.raises(TypeError, match="`top_k` must be an integer"):
        llm.Sampling(top_k=2.5)
