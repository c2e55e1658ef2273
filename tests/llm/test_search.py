"""Beam search and DVTS: what is kept at a step, by hand and against NumPy.

Planted bugs, shown to be caught by the same comparison: the worst kept instead of the best, and trees that are ranked
together.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import fresh_population, with_changes
from probinf.llm._keep_best import keep_best, score_of_steps
from probinf.llm._rows import with_fields
from probinf.llm._search import beam, dvts
from tests.llm._tiny import models, tiny_task, value_of

STEPS = {"step": llm.block(1), "max_steps": 3}


@pytest.fixture(scope="module")
def rows():
    """Eight empty rows."""
    lm, _ = models(2, 3)
    task = tiny_task(lm)
    return task.setup.model(task.prompt(0)).empty_rows(8).with_heavy()


def population(rows, scores, *, tokens=None, finished=None, log_weights=None):
    changes = {"scores": rows.scores.at[:, 0].set(jnp.asarray(scores))}
    if tokens is not None:
        changes |= {"tokens": jnp.asarray(tokens, jnp.int32), "length": jnp.full(8, 1, jnp.int32)}
    if finished is not None:
        changes["finished"] = jnp.asarray(finished)
    start = fresh_population(with_fields(rows, **changes))
    return start if log_weights is None else with_changes(start, log_weights=jnp.asarray(log_weights))


def kept(rule, start):
    """Ancestors, as a sorted list."""
    after, info = rule(jax.random.key(0), start)
    np.testing.assert_array_equal(after.particles.scores, start.particles.scores[info.ancestors])
    np.testing.assert_array_equal(after.eve, info.ancestors)
    return sorted(info.ancestors.tolist())


SCORES = [0.1, 0.8, 0.3, 0.8, 0.9, 0.2, 0.7, 0.4]


def test_beam_keeps_the_best(rows):
    assert kept(keep_best(1, 4), population(rows, SCORES)) == [1] * 4 + [4] * 4  # of equal ones the first
    assert kept(keep_best(1, 2), population(rows, SCORES)) == [1, 1, 3, 3, 4, 4, 6, 6]
    assert kept(keep_best(1, 1), population(rows, SCORES)) == list(range(8))


def test_the_comparison_sees_the_planted_bugs(rows):
    worst = population(rows, [-score for score in SCORES])
    assert kept(keep_best(1, 4), worst) != [1] * 4 + [4] * 4
    assert kept(keep_best(1, 4), population(rows, SCORES)) != kept(keep_best(2, 4), population(rows, SCORES[::-1]))


def test_trees_are_searched_apart(rows):
    """Two trees of four, four of two: the best of each, whatever the others score."""
    start = population(rows, [0.9, 0.8, 0.7, 0.6, 0.1, 0.4, 0.2, 0.3])
    assert kept(keep_best(2, 4), start) == [0] * 4 + [5] * 4
    after, info = keep_best(4, 2)(jax.random.key(0), start)
    np.testing.assert_array_equal(info.ancestors, [0, 0, 2, 2, 5, 5, 7, 7])
    assert after.num_resampled == 1


def test_ended_texts_count_once_and_impossible_ones_last(rows):
    tokens = np.zeros((8, 3), int)
    tokens[:, 0] = [1, 1, 1, 0, 0, 0, 0, 0]
    finished = np.arange(8) < 3
    scores = [0.9, 0.9, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert kept(keep_best(1, 4), population(rows, scores, tokens=tokens, finished=finished)) == [0] * 4 + [3] * 4
    equal_rows = kept(keep_best(1, 4), population(rows, scores, tokens=tokens))
    assert equal_rows == [0] * 4 + [1] * 4  # rows that go on may be equal
    assert kept(keep_best(1, 4, distinct=True), population(rows, scores, tokens=tokens)) == [0] * 4 + [3] * 4
    log_weights = np.where(np.arange(8) == 0, -np.inf, 0.3).astype(np.float32)
    start = population(rows, scores, log_weights=log_weights)
    assert kept(keep_best(1, 4), start) == [1] * 4 + [2] * 4
    after, _ = keep_best(1, 1)(jax.random.key(0), start)
    np.testing.assert_array_equal(np.sort(after.log_weights), [-np.inf] + [0] * 7)
    none = with_changes(start, log_weights=jnp.full(8, -jnp.inf))
    assert kept(keep_best(1, 4), none) == list(range(8))


def test_scores_of_steps_agree_with_those_of_results():
    scores = np.array([[0.5, 0.2, np.nan], [0.9, np.nan, np.nan], [np.nan] * 3, [0.3, 0.6, 0.9]])
    for aggregate in ("last", "min", "mean", "prod"):
        found = np.asarray(score_of_steps(jnp.asarray(scores), aggregate))
        found = np.exp(found) if aggregate == "prod" else found
        np.testing.assert_allclose(found, llm.aggregate_scores(scores, aggregate), rtol=1e-6)


def test_a_search_finds_what_all_of_its_draws_could_reach(key):
    """64 rows of two tokens: every first token is there, the better one goes on, and nothing else does."""
    lm, judge = models(2, 3)
    found = beam(key, lm, [0], num_particles=64, width=64, scorer=judge, **STEPS)
    texts = [tuple(int(token) for token in ids) for ids in found.token_ids]
    prefix: tuple[int, ...] = ()
    for _ in range(2):
        children: list[tuple[int, ...]] = [(*prefix, token) for token in (0, 1)]
        prefix = max(children, key=lambda text: value_of(judge, text))
    assert {text[:2] for text in texts} == {prefix}
    assert found.tokens_used == 3 * 64
    assert np.isnan(found.log_evidence)
    assert np.all(found.log_weights == 0)
    assert found.select("argmax").value == np.nanmax(found.scores[:, -1])


@pytest.mark.slow
def test_dvts_keeps_one_of_each_tree(key):
    lm, judge = models(2, 3)
    found = dvts(key, lm, [[0], [1]], num_particles=16, width=4, scorer=judge, **STEPS)
    for one in found:
        for parents in one.ancestors:
            trees = parents.reshape(4, 4)
            assert np.all(trees == trees[:, :1])
            np.testing.assert_array_equal(trees[:, 0] // 4, np.arange(4))


def test_bad_arguments(key):
    lm, judge = models(2, 3)
    with pytest.raises(ValueError, match="`num_particles` is 6, not a multiple of `width` = 4: take 8"):
        beam(key, lm, [0], num_particles=6, scorer=judge, **STEPS)
    with pytest.raises(ValueError, match="`dvts` goes by scores"):
        dvts(key, lm, [0], num_particles=8, **STEPS)
    with pytest.raises(ValueError, match="`aggregate` must be one of"):
        beam(key, lm, [0], num_particles=8, scorer=judge, aggregate="best", **STEPS)
