"""Best-of-N and votes against closed forms.

Planted bug, shown to be caught: a best-of-N whose rows share their numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.llm._independent import apart, best_of_n, majority, weighted_majority
from probinf.llm._run import run_steps
from probinf.validity import enumerate_algorithm
from tests.llm._tables import all_texts, log_prob, node_of, num_nodes
from tests.llm._tiny import models, nodes, tiny_task, value_of

STEPS = {"step": llm.block(1), "max_steps": 2}


@pytest.mark.usefixtures("x64")
def test_best_of_n_has_the_law_of_the_largest_of_n():
    """P(best of N scores at most s) = F(s)^N, by enumeration, for N = 3; and pass@N = 1 - (1 - p)^N."""
    lm, judge = models(2, 2)
    texts = all_texts(lm, 2)
    task = tiny_task(lm, potential=llm.no_potential(llm.process_reward(judge, "prob")), max_steps=2)
    place = [node_of(text, 2) for text in texts]
    chances = np.exp([log_prob(lm, text) for text in texts])
    scores = np.array([value_of(judge, text) for text in texts])

    def run(key):
        rows = run_steps(key, task.setup.model(task.prompt(0)), apart(), num_particles=3).population.particles
        node = nodes(rows.tokens, rows.length, 2)
        best = node[jnp.argmax(rows.scores[:, -1])]
        found = jnp.zeros(num_nodes(2, 2)).at[best].set(1.0)
        return found, jnp.any(node == place[0]).astype(found.dtype)

    law = enumerate_algorithm(run)
    found = np.asarray(law.expectation(lambda pair: pair[0]))[place]
    below = np.array([chances[scores < score].sum() for score in scores])
    np.testing.assert_allclose(found, (below + chances) ** 3 - below**3, rtol=1e-12)
    assert float(law.expectation(lambda pair: pair[1])) == pytest.approx(1 - (1 - chances[0]) ** 3, rel=1e-12)


@pytest.fixture(scope="module")
def run():
    """4096 texts, their scores, and which are correct."""
    lm, judge = models(2, 2)
    found = best_of_n(jax.random.key(7), lm, [0], num_particles=4096, scorer=judge, **STEPS)
    texts = [tuple(int(token) for token in ids) for ids in found.token_ids]
    return lm, judge, found, texts


def test_many_draws_agree_with_the_closed_forms(run):
    """Five standard errors, below sqrt(k) / (2 sqrt(4096)) for a function of k draws: a false alarm below 1e-6."""
    lm, judge, found, texts = run
    all_of_them = all_texts(lm, 2)
    chances = np.exp([log_prob(lm, text) for text in all_of_them])
    scores = np.array([value_of(judge, text) for text in all_of_them])
    correct = np.array([text == all_of_them[2] for text in texts])
    for k in (1, 4, 8):
        error = 5 * np.sqrt(k) / (2 * np.sqrt(4096))
        assert llm.pass_at_k(4096, int(correct.sum()), k) == pytest.approx(1 - (1 - chances[2]) ** k, abs=error)
        below = chances[scores < scores[2]].sum()
        best = (below + chances[2]) ** k - below**k
        assert llm.best_of_k(correct, found.scores[:, -1], k) == pytest.approx(best, abs=error)


def test_scores_weigh_nothing_and_every_token_counts(run):
    _, judge, found, texts = run
    assert np.all(found.log_weights == 0)
    assert found.log_evidence == 0
    assert not np.any(found.resampled)
    assert found.tokens_used == 2 * 4096
    assert found.scorer_tokens_used == 2 * 4096 + 1
    best = max(range(len(texts)), key=lambda i: value_of(judge, texts[i]))
    assert texts[found.select("argmax").index] == texts[best]


def test_rows_do_not_share_their_numbers(run):
    """Planted: were all rows one draw, one text would stand 4096 times."""
    _, _, _, texts = run
    assert len(set(texts)) == 4


def test_votes_by_scores(key):
    lm, judge = models(2, 2)
    found = weighted_majority(key, lm, [0], num_particles=64, scorer=judge, **STEPS)
    shares = {}
    for text in found.texts:
        shares[text] = shares.get(text, 0) + 1 / (1 + np.exp(-value_of(judge, tuple(map(int, text.split())))))
    total = sum(shares.values())
    posterior = found.posterior(unfinished=True)
    assert posterior == pytest.approx({text: share / total for text, share in shares.items()}, rel=1e-5)
    assert found.select("weighted", unfinished=True).text == max(shares, key=lambda text: shares[text])
    assert np.isnan(found.log_evidence)


def test_bad_arguments(key):
    lm, judge = models(2, 2)
    with pytest.raises(ValueError, match="`best_of_n` goes by scores"):
        best_of_n(key, lm, [0], num_particles=4, **STEPS)
    with pytest.raises(ValueError, match="`aggregate` must be one of"):
        weighted_majority(key, lm, [0], num_particles=4, scorer=judge, aggregate="median", **STEPS)
    with pytest.raises(TypeError, match="`step` is missing"):
        majority(key, lm, [0], num_particles=4, max_steps=3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="`num_particles` is 0"):
        majority(key, lm, [0], num_particles=0, **STEPS)
