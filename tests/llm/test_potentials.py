"""Potentials: numbers by hand, targets by enumeration of all texts, absorbing rows, caches, and bad arguments.

Exact throughout: no test draws what it judges. Planted bugs, run every time in `test_planted_*`: finished rows weighted
again at every step (its_hub), a ratio that starts from nothing, a reward that is weighed at every step and at the end.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import Status
from probinf.core._spawn import absorb, fresh_population
from probinf.llm._odds import log_odds, log_odds_of_log
from probinf.llm._potential_types import Scored
from probinf.llm._reward import RewardPotential, RewardState
from tests.llm._steps import (
    JUDGING,
    STOP,
    STRONG,
    TWO,
    all_texts,
    begin,
    cut,
    enumerated,
    letter_scorer,
    reward_of,
    run,
    total,
    update,
    views,
)

REWARDS = np.array([[0.5, 0.8, 0.2], [0.9, 0.4, 0.7]])


class Table(eqx.Module):
    """r[n, t] by the row and by the step, which the length of the text tells."""

    rewards: jax.Array

    def __call__(self, step):
        lengths = jnp.stack([view.length for view in TWO], axis=1)
        return jnp.sum(jnp.where(lengths == step.length[:, None], self.rewards, 0), axis=1)


def table_scorer(rewards, **options):
    return llm.device_scorer(Table(jnp.asarray(rewards, jnp.float32)), **options)


def letter_reward(kind, **options):
    return llm.process_reward(llm.device_scorer(letter_scorer), kind, **options)


def prefixes(steps):
    return [sum(steps[: t + 1], ()) for t in range(len(steps))]


# --- rewards ---


@pytest.mark.parametrize("kind", ["odds", "prob", "ratio", "final"])
def test_targets_by_enumeration(kind):
    for lengths, tau in (((1, 1, 1), 1.0), ((2, 1), 2.0)):
        texts, p, found = enumerated(letter_reward(kind, temperature=tau), lengths)
        paths = [np.array([reward_of(prefix) for prefix in prefixes(cut(text, lengths))]) for text in texts]
        expected = {
            "odds": [np.prod(r / (1 - r)) for r in paths],
            "prob": [np.prod(r) for r in paths],
            "ratio": [r[-1] for r in paths],
            "final": [r[-1] for r in paths],
        }[kind]
        np.testing.assert_allclose(found, np.array(expected) ** (1 / tau), rtol=2e-5)
        if tau == 1 and kind != "odds":  # the evidence, a probability
            assert 0 < p @ found < 1


def test_score_is_the_reward_of_the_text_so_far():
    texts = all_texts()
    steps = [cut(text, (2, 1)) for text in texts]
    for kind in ("ratio", "final"):
        said, _ = run(letter_reward(kind), views(steps))
        for t, scored in enumerate(said):
            for n, path in enumerate(steps):
                ends = t == len(path) - 1
                if t < len(path) and (kind == "ratio" or ends):
                    np.testing.assert_allclose(scored.score[n], reward_of(prefixes(path)[t]), rtol=1e-5)
                else:
                    assert np.isnan(scored.score[n])


def test_final_waits_for_the_last_step_of_all():
    scorer = table_scorer(REWARDS)
    steps = views([[(1,), (2, 1), (1,)], [(2, 2), (1,), (1, 1)]])  # nobody stops
    ended, _ = run(llm.final_reward(scorer), steps)
    np.testing.assert_allclose(total(ended), np.log(REWARDS[:, 2]), rtol=1e-6)
    cut_short, _ = run(llm.final_reward(scorer), views([[(1,), (2, 1), (1,)], [(2, 2), (1,), (1, 1)]], last=False))
    assert total(cut_short).tolist() == [0, 0]


def test_zero_one_and_bad_rewards():
    extreme = np.array([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    prob, _ = run(llm.process_reward(table_scorer(extreme), "prob"), TWO)
    assert prob[0].log_potential.tolist() == [-np.inf, 0]
    ratio, _ = run(llm.process_reward(table_scorer(extreme), "ratio"), TWO)
    assert ratio[0].log_potential.tolist() == [-np.inf, 0]
    assert ratio[1].log_potential.tolist() == [-np.inf, -np.inf]  # dead stays dead, with no NaN
    assert ratio[2].log_potential.tolist() == [-np.inf, -np.inf]
    odds, _ = run(llm.process_reward(table_scorer(extreme), "odds", clip=1e-3), TWO)
    np.testing.assert_allclose(odds[0].log_potential, [-np.log(999), np.log(999)], rtol=1e-6)
    wrong, _ = run(llm.process_reward(table_scorer([[1.5, 0.5, 0.5], [-0.1, np.nan, 0.5]]), "prob"), TWO)
    assert np.isnan(wrong[0].log_potential).all()
    assert np.isnan(wrong[1].log_potential).tolist() == [False, True]


def test_nan_reward_is_weight_zero_and_flagged():
    bad, _ = run(llm.process_reward(table_scorer([[np.nan] * 3, [0.5] * 3]), "ratio"), TWO)
    population = fresh_population(jnp.arange(2))
    for scored in bad:
        population, info = jax.jit(absorb)(population, scored.log_potential)
        assert int(info.num_nan) == (1 if scored is bad[0] else 0)  # at zero it stays, and is counted once
    assert population.log_weights[0] == -jnp.inf
    assert int(population.status) == int(Status.NAN_LOG_WEIGHT)


def test_log_weights_stand_for_log_rewards():
    weights = [[3.0, -1.0, 2.0], [0.5, 0.25, -4.0]]
    said, _ = run(llm.process_reward(table_scorer(weights, returns="log_weight"), "prob"), TWO)
    np.testing.assert_allclose(total(said), np.sum(weights, axis=1), rtol=1e-6)
    said, _ = run(llm.process_reward(table_scorer(weights, returns="log_weight"), "ratio"), TWO)
    np.testing.assert_allclose(total(said), np.array(weights)[:, -1], rtol=1e-6)
    with pytest.raises(ValueError, match="which have no odds"):
        llm.process_reward(table_scorer(weights, returns="log_weight"), "odds")
    mine, _ = run(llm.potential(lambda step: step.length.astype(jnp.float32)), TWO)
    assert [scored.log_potential.tolist() for scored in mine] == [[1, 2], [3, 3], [4, 5]]
    assert [scored.score.tolist() for scored in mine] == [[1, 2], [3, 3], [4, 5]]


def test_log_odds():
    r = np.array([0.0, 1e-30, 1e-7, 0.3, 0.5, 0.7, 1 - 2.0**-20, 1.0])
    with np.errstate(divide="ignore"):
        exact = np.log(r) - np.log1p(-r)
        np.testing.assert_allclose(jax.jit(log_odds)(jnp.asarray(r, jnp.float32)), exact, rtol=1e-5)
        found = jax.jit(log_odds_of_log)(jnp.asarray(np.log(r), jnp.float32))
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-7)


def test_log_odds_of_odd_numbers():
    np.testing.assert_array_equal(
        jax.jit(log_odds_of_log)(jnp.asarray([1e-7, jnp.nan, -jnp.inf])), [np.inf, np.nan, -np.inf]
    )
    slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.where(x < 0, log_odds_of_log(x), 0))))
    slope = slope(jnp.asarray([0.0, -1e-3, -50.0]))
    np.testing.assert_allclose(slope, [0, 1 / (1 - np.exp(-1e-3)), 1], rtol=1e-3)


# --- the law of every potential ---

POTENTIALS = {
    "odds": lambda: letter_reward("odds"),
    "ratio": lambda: llm.process_reward(JUDGING, "ratio"),
    "final": lambda: llm.final_reward(JUDGING),
    "probability": lambda: llm.process_reward(STRONG, "prob"),
    "judge": lambda: llm.judge(STRONG, chunk=2),
    "self-certainty": lambda: llm.self_certainty(),
    "raw": lambda: llm.self_certainty("raw"),
    "user": lambda: llm.potential(lambda step: -step.log_prob),
    "none": lambda: llm.no_potential(llm.judge(STRONG)),
    "nothing": lambda: llm.no_potential(),
}
RAGGED = views([[(1, 2), (2, 1), (1, STOP)], [(2, STOP)]])


@pytest.mark.parametrize("name", POTENTIALS)
def test_finished_rows_are_absorbed(name):
    bound, state = begin(POTENTIALS[name](), RAGGED)
    for t, step in enumerate(RAGGED):
        after, scored = update(bound, state, step)
        resting = ~np.asarray(step.active)
        assert (np.asarray(scored.log_potential)[resting] == 0).all()
        assert (np.asarray(scored.num_tokens)[resting] == 0).all()
        assert np.isnan(np.asarray(scored.score)[resting]).all()
        assert scored.log_potential.dtype == step.log_prob.dtype
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert (old.dtype, old.shape) == (new.dtype, new.shape)
            assert new.shape[0] == 2
            np.testing.assert_array_equal(np.asarray(new)[resting], np.asarray(old)[resting])
        assert t == 0 or resting.any()
        state = after


@pytest.mark.parametrize("name", ["ratio", "judge", "self-certainty", "user"])
def test_several_problems(name):
    potential = POTENTIALS[name]()
    tokens, lengths = jnp.asarray([[1, 2, 0], [1, 0, 0]]), jnp.asarray([2, 1])

    def first_step(tokens, length):
        bound, state = begin(potential, RAGGED, llm.Prompt(tokens, length))
        return bound.update(state, RAGGED[0])[1]

    both = jax.jit(jax.vmap(first_step))(tokens, lengths)
    for p in range(2):
        (one, *_), _ = run(potential, RAGGED, llm.Prompt(tokens[p], lengths[p]))
        for a, b in zip(one, both, strict=True):
            np.testing.assert_allclose(a, b[p], rtol=1e-5)
    if name == "judge":
        assert both.log_potential[0, 0] != both.log_potential[1, 0]


def test_eager_and_compiled_agree():
    bound, state = begin(llm.judge(STRONG, chunk=2), RAGGED)
    for a, b in zip(
        jax.tree.leaves(bound.update(state, RAGGED[0])), jax.tree.leaves(update(bound, state, RAGGED[0])), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", ["ratio", "judge"])
def test_copied_rows_go_on_alike(name):
    bound, state = begin(POTENTIALS[name](), RAGGED)
    state, _ = update(bound, state, RAGGED[0])
    ancestors = jnp.asarray([1, 0])
    moved = jax.tree.map(lambda leaf: leaf[ancestors], state)
    step = jax.tree.map(lambda leaf: leaf[ancestors] if leaf.ndim else leaf, RAGGED[1])
    _, copied = update(bound, moved, step)
    _, plain = update(bound, state, RAGGED[1])
    np.testing.assert_array_equal(copied.log_potential, plain.log_potential[ancestors])


def test_new_numbers_compile_nothing():
    traces = []

    @eqx.filter_jit
    def call(bound, state, step):
        traces.append(1)
        return bound.update(state, step)[1].log_potential

    for temperature in (1.0, 2.0, 0.5):
        call(*begin(llm.judge(STRONG, temperature=temperature), RAGGED), RAGGED[0])
    assert len(traces) == 1


def test_gradients():
    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(pair):
        model, temperature = pair
        sums = jnp.zeros(())
        potentials: list[llm.Potential] = [
            llm.judge(llm.LM(model), temperature=temperature),
            llm.process_reward(llm.LM(JUDGING.model), "ratio", temperature=temperature),
        ]
        for potential in potentials:
            bound, state = begin(potential, RAGGED)
            for step in RAGGED[:2]:
                state, scored = bound.update(state, step)
                sums += jnp.sum(scored.log_potential)
        return sums

    _, slope = loss((STRONG.model, jnp.asarray(1.5)))
    for leaf in jax.tree.leaves(slope):
        assert np.isfinite(leaf).all()
    above, below = (loss((STRONG.model, jnp.asarray(1.5 + sign * 1e-2)))[0] for sign in (1, -1))
    np.testing.assert_allclose(slope[1], (above - below) / 2e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["ratio", "probability", "judge", "self-certainty", "none"])
def test_dtypes_in_double_precision(name, x64):
    for dtype in (jnp.float32, jnp.float64):
        steps = views([[(1, 2), (STOP,)]], dtype=dtype)
        bound, state = begin(POTENTIALS[name](), steps)
        after, scored = eqx.filter_eval_shape(bound.update, state, steps[0])
        assert scored.log_potential.dtype == dtype
        assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


def test_self_certainty_by_hand():
    mean = np.exp(np.asarray(TWO[0].log_prob) / np.array([1, 2]))
    said, _ = run(llm.self_certainty(), TWO)
    np.testing.assert_allclose(said[0].log_potential, np.log(mean / (1 - mean)), rtol=1e-5)
    np.testing.assert_allclose(said[0].score, mean, rtol=1e-6)
    raw, _ = run(llm.self_certainty("raw", temperature=2.0), TWO)
    np.testing.assert_allclose(raw[0].log_potential, np.log(mean) / 2, rtol=1e-5)


def test_no_potential_keeps_scores_and_faults():
    said, _ = run(llm.no_potential(llm.judge(STRONG)), TWO)
    judged, _ = run(llm.judge(STRONG), TWO)
    assert total(said).tolist() == [0, 0]
    np.testing.assert_array_equal(said[2].score, judged[2].score)
    assert said[0].num_tokens.tolist() == [1, 2]
    bad, _ = run(llm.no_potential(llm.process_reward(table_scorer([[np.nan] * 3, [0.0] * 3]), "prob")), TWO)
    np.testing.assert_array_equal(bad[0].log_potential, [np.nan, 0])


# --- planted bugs ---


class Reweights(RewardPotential):
    """Weighs finished rows again by their last reward."""

    def update(self, state, step):
        after, scored = RewardPotential.update(self, state, step)
        again = jnp.where(step.active, scored.log_potential, state.log_reward)
        return after, Scored(again, scored.score, scored.num_tokens)

    def bind(self, prompt):
        return self


class StartsFromNothing(RewardPotential):
    """Takes r_0 = 1/2."""

    def start(self, num_rows, capacity):
        return RewardState(self.scorer.start(num_rows, capacity), jnp.full(num_rows, -jnp.log(2.0)))

    def bind(self, prompt):
        return self


def as_bug(bug, kind):
    potential = letter_reward(kind)
    return bug(potential.scorer, potential.kind, potential.temperature, potential.clip)


@pytest.mark.parametrize(("bug", "kind"), [(Reweights, "prob"), (StartsFromNothing, "ratio")])
def test_planted_reward_bugs(bug, kind):
    _, _, right = enumerated(letter_reward(kind))
    _, _, wrong = enumerated(as_bug(bug, kind))
    assert np.max(np.abs(np.log(wrong / right))) > 0.1


def test_planted_weight_at_every_step_and_at_the_end():
    texts, _, every = enumerated(letter_reward("prob"))
    assert np.max(np.abs(np.log(every / [reward_of(text) for text in texts]))) > 0.1
