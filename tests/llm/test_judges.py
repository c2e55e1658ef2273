"""Language models as scorers and judges: by hand, by enumeration of all texts, and against a full recomputation.

Exact throughout. Planted bugs, run every time in `test_planted_*`: a judge that reads the law of the next position, one
that forgets its prompt's last token.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.llm._judge import Judge
from probinf.llm._potentials import find_potential
from probinf.llm._step_reader import StepReader, in_blocks
from probinf.models.lm import LanguageModelConfig, init_language_model
from tests.llm._steps import JUDGING, STRONG, TWO, bigram, cut, enumerated, log_prob, run, total, views

# --- judge ---


@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 1)])
def test_judge_by_enumeration(lengths):
    texts, p, weights = enumerated(llm.judge(STRONG), lengths)
    strong = np.exp(np.array([log_prob(STRONG, text, 2) for text in texts]))
    np.testing.assert_allclose(p * weights, strong, rtol=1e-5)
    np.testing.assert_allclose(np.sum(p * weights), 1, rtol=1e-6)  # the evidence


def test_judge_by_hand():
    said, _ = run(llm.judge(STRONG), TWO)
    weak = np.array([[0.4, 0.3 * 0.4, 0.1], [0.2 * 0.2, 0.4, 0.6 * 0.1]])  # behind "2", the prompt's last token
    strong = np.array([[0.25, 0.3 * 0.25, 0.5], [0.5 * 0.5, 0.25, 0.2 * 0.5]])
    for t in range(3):
        np.testing.assert_allclose(said[t].log_potential, np.log(strong / weak)[:, t], rtol=1e-5)
        np.testing.assert_allclose(said[t].score, np.log(strong)[:, : t + 1].sum(axis=1), rtol=1e-5)
    assert [scored.num_tokens.tolist() for scored in said] == [[1, 2], [2, 1], [1, 2]]


def test_judge_with_a_temperature():
    said, _ = run(llm.judge(STRONG, temperature=2.0), TWO)
    root = np.sqrt(np.exp(np.asarray(STRONG.model.table, np.float64)))
    tempered = bigram(root / root.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(total(said), total(run(llm.judge(tempered), TWO)[0]), rtol=1e-4)


def test_step_probability_is_a_reward():
    said, _ = run(llm.process_reward(STRONG, "prob"), TWO)
    np.testing.assert_allclose(np.exp(total(said)), [0.25 * 0.3 * 0.25 * 0.5, 0.25 * 0.25 * 0.2 * 0.5], rtol=1e-5)
    odds, _ = run(llm.process_reward(STRONG, "odds"), TWO)
    np.testing.assert_allclose(odds[0].log_potential, np.log([0.25 / 0.75, 0.25 / 0.75]), rtol=1e-5)


def test_value_head_at_the_last_token_of_the_step():
    said, _ = run(llm.process_reward(JUDGING, "odds"), TWO)
    values = {0: 1.5, 1: -0.5, 2: 0.25}
    np.testing.assert_allclose(said[0].log_potential, [values[1], values[2]], rtol=1e-6)
    np.testing.assert_allclose(said[1].log_potential, [values[1], values[1]], rtol=1e-6)
    np.testing.assert_allclose(said[2].log_potential, [values[0], values[0]], rtol=1e-6)
    np.testing.assert_allclose(said[2].score, jax.nn.sigmoid(jnp.asarray([1.5, 1.5])), rtol=1e-6)
    assert [scored.num_tokens.tolist() for scored in said] == [[1, 2], [2, 1], [1, 2]]


# --- a transformer that looks at the whole prefix ---

CONFIG = LanguageModelConfig(
    vocab_size=5, dim=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, hidden_dim=8, max_length=24,
    value_head=True,
)  # fmt: skip
TEXT = ((1, 2, 3, 4, 1, 2), (4, 4, 1, 3), (2, 0))


@pytest.fixture(scope="module")
def transformer():
    model = eqx.filter_jit(init_language_model)(jax.random.key(3), CONFIG)
    head = jnp.linspace(-1, 1, CONFIG.dim)
    return llm.LM(eqx.tree_at(lambda m: m.value, model, head), name="tiny")


@pytest.fixture(scope="module")
def recomputed(transformer):
    """Log probabilities and values at every token of `TEXT`, each text read as a whole."""
    whole = np.zeros((3, 8), np.int32)
    for n, text in enumerate(TEXT):
        whole[n, : 2 + len(text)] = (1, 2, *text)
    output = eqx.filter_jit(transformer.model)(jnp.asarray(whole))
    logits, values = np.asarray(output.logits, np.float64), np.asarray(output.values, np.float64)
    laws = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return [
        (np.array([laws[n, 1 + i, token] for i, token in enumerate(text)]), values[n, 2:])
        for n, text in enumerate(TEXT)
    ]


def tiny_views(lengths):
    return views([cut(text, lengths) for text in TEXT], base=None, size=6)


@pytest.mark.parametrize(("lengths", "chunk"), [((2, 2, 2), 64), ((5, 1), 4)])
def test_judge_equals_a_full_recomputation(transformer, recomputed, lengths, chunk):
    judge = find_potential(llm.judge(transformer, chunk=chunk), None, transformer)
    steps = tiny_views(lengths)
    said, state = run(judge, steps)
    for n, (logs, _) in enumerate(recomputed):
        np.testing.assert_allclose(float(state.log_prob[n]), logs.sum(), rtol=2e-5)
        steps_made = sum(bool(step.active[n]) for step in steps)
        np.testing.assert_allclose(total(said)[n], logs.sum() + steps_made, rtol=1e-4)  # base log prob -1 a step
    assert state.reader.cache.lengths.tolist() == [6, 4, 2]


def test_value_head_equals_a_full_recomputation(transformer, recomputed):
    steps = tiny_views((5, 1))
    values, _ = run(llm.process_reward(llm.lm_scorer(transformer, chunk=4), "odds"), steps)
    for t, scored in enumerate(values):
        for n, (_, head) in enumerate(recomputed):
            if bool(steps[t].active[n]):
                np.testing.assert_allclose(scored.log_potential[n], head[int(steps[t].length[n]) - 1], atol=1e-5)


def test_blocks_cover_each_token_once():
    tokens = jnp.arange(14, dtype=jnp.int32).reshape(2, 7)
    count = jnp.asarray([7, 2])

    def add(part, number, carry):
        real = jnp.arange(part.shape[1])[None, :] < number[:, None]
        return carry[0] + jnp.sum(jnp.where(real, part, 0), axis=1), carry[1] + number

    nothing = (jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32))
    for size in (2, 3, 64):
        sums, numbers = in_blocks(add, tokens, count, nothing, size)
        assert (sums.tolist(), numbers.tolist()) == ([21, 7 + 8], [7, 2])


def blocks_of_two(count, axis_name=None):
    ones = jnp.ones((2, 9), jnp.int32)
    return in_blocks(lambda _, number, carry: carry + number, ones, count, count * 0, 2, axis_name)


def test_blocks_without_tokens_are_left_out():
    turns = []

    def note(part, number, carry):
        jax.debug.callback(lambda: turns.append(1))
        return carry + number

    call = jax.jit(lambda count: in_blocks(note, jnp.ones((2, 9), jnp.int32), count, count * 0, 2))
    assert call(jnp.asarray([3, 1])).tolist() == [3, 1]
    jax.effects_barrier()
    assert len(turns) == 2


def test_blocks_of_several_problems_select_no_carry():
    counts = jnp.asarray([[3, 1], [0, 9]])
    for axis_name, each_its_own in (("problems", False), (None, True)):
        mapped = jax.vmap(functools.partial(blocks_of_two, axis_name=axis_name), axis_name="problems")
        assert mapped(counts).tolist() == counts.tolist()
        assert ("bool[2]" in str(jax.make_jaxpr(mapped)(counts))) == each_its_own  # the end of the loop


# --- planted bugs ---


class NextPosition(StepReader):
    """Reads each token's probability off the logits behind it."""

    def bind(self, prompt):
        bound = StepReader.bind(self, prompt)
        return NextPosition(self.lm, self.temperature, self.chunk, bound.prompt, bound.log_probs)

    def read(self, state, step):
        after, _ = StepReader.read(self, state, step)
        _, output = self.lm.model.advance(self.prompt, state.cache, step.tokens, step.count)
        laws = jax.nn.log_softmax(output.logits)
        said = jnp.take_along_axis(laws, step.tokens[..., None], axis=-1)[..., 0]
        real = jnp.arange(step.tokens.shape[1])[None, :] < step.count[:, None]
        return after, jnp.sum(jnp.where(real, said, 0), axis=1)


class ForgetsThePrompt(StepReader):
    """Starts from a uniform law."""

    def bind(self, prompt):
        bound = StepReader.bind(self, prompt)
        uniform = jnp.full(3, -jnp.log(3.0))
        return ForgetsThePrompt(self.lm, self.temperature, self.chunk, bound.prompt, uniform)


@pytest.mark.parametrize("bug", [NextPosition, ForgetsThePrompt])
def test_planted_judge_bugs(bug):
    right = llm.judge(STRONG)
    texts, p, weights = enumerated(Judge(bug(right.reader.lm, right.reader.temperature, right.reader.chunk)))
    strong = np.array([log_prob(STRONG, text, 2) for text in texts])
    assert np.max(np.abs(np.log(p * weights) - strong)) > 0.1
