"""Potentials by name, and bad arguments: options, types, shapes, tokenizers that differ."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.llm._potentials import find_potential
from tests.llm._steps import JUDGING, STOP, STRONG, TWO, WEAK, Letters, bigram, letter_scorer, run, views


def test_find_potential():
    def find(*arguments: Any) -> Any:
        return find_potential(*arguments)

    assert find("judge", STRONG, WEAK).reader.lm is STRONG
    for kind in ("odds", "prob", "ratio", "final"):
        assert find(kind, JUDGING, WEAK).kind == kind
    assert find(None, JUDGING, WEAK).kind == "odds"
    assert find(None, None, WEAK).scores is None
    assert find("none", JUDGING, WEAK).scores.kind == "prob"
    assert find("self_certainty", None, WEAK).kind == "odds"
    mine = llm.judge(STRONG)
    assert find(mine, None, WEAK).context() == 32
    host = find("odds", lambda prompt, text: 0.5, WEAK)
    assert not host.traceable
    assert find("odds", STRONG, WEAK).traceable


@pytest.mark.parametrize(
    ("potential", "scorer", "error", "match"),
    [
        ("odds", None, ValueError, "needs a `scorer`"),
        ("odd", STRONG, ValueError, "needed a `Potential` or one of"),
        ("judge", len, TypeError, "LM"),
        ("odds", 3, TypeError, "must be an `LM`, a function"),
        ("odds", llm.judge(STRONG), TypeError, "pass it as `potential`"),
        ("self_certainty", STRONG, ValueError, "leave out `scorer`"),
        (llm.judge(STRONG), STRONG, ValueError, "leave out `scorer`"),
        (len, None, TypeError, "llm.verifier"),
        (3, None, TypeError, "a `Potential` or a name"),
    ],
)
def test_find_potential_refuses(potential, scorer, error, match):
    with pytest.raises(error, match=match):
        find_potential(potential, scorer, WEAK)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: llm.process_reward(STRONG, "ods"), "`kind` is 'ods'"),
        (lambda: llm.process_reward(STRONG, temperature=0.0), "`temperature` is 0.0"),
        (lambda: llm.process_reward(STRONG, temperature=float("nan")), "`temperature` is nan"),
        (lambda: llm.process_reward(STRONG, clip=0.5), "`clip` is 0.5"),
        (lambda: llm.self_certainty("mean"), "`kind` is 'mean'"),
        (lambda: llm.self_certainty(clip=0), "`clip` is 0"),
        (lambda: llm.judge(STRONG, temperature=-1), "`temperature` is -1"),
        (lambda: llm.judge(STRONG, chunk=0), "`chunk` is 0"),
        (lambda: llm.lm_scorer(STRONG, reward="value"), "has no value head"),
        (lambda: llm.lm_scorer(STRONG, reward="good"), "`reward` is 'good'"),
        (lambda: llm.device_scorer(letter_scorer, returns="odds"), "`returns` is 'odds'"),
    ],
)
def test_bad_options(make, match):
    with pytest.raises(ValueError, match=match):
        make()


WRONG: list[tuple[Any, Any]] = [(llm.judge, len), (llm.potential, 3), (llm.no_potential, STRONG), (llm.verifier, 3)]


@pytest.mark.parametrize(("make", "argument"), WRONG)
def test_wrong_types(make, argument):
    with pytest.raises(TypeError):
        make(argument)


def test_wrong_shapes_are_named():
    wide = llm.potential(lambda step: step.tokens.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"returned shape \(2, 3\) for tokens \(2, 3\); needed \(2,\)"):
        run(wide, TWO)
    scalar = llm.process_reward(llm.device_scorer(lambda step: jnp.asarray(0.5)))
    with pytest.raises(ValueError, match=r"returned shape \(\) for tokens"):
        run(scalar, TWO)

    class Wide(llm.Scorer):
        def update(self, state, step, wanted):
            return state, llm.Reading(jnp.zeros((2, 3)), step.count)

    with pytest.raises(ValueError, match=r"`Wide` returned values of shape \(2, 3\)"):
        run(llm.process_reward(Wide()), TWO)
    headless = eqx.tree_at(lambda s: s.lm.model.value, llm.lm_scorer(JUDGING), None)
    with pytest.raises(ValueError, match="the scorer's values have shape None"):
        run(llm.process_reward(headless), TWO)
    with pytest.raises(TypeError, match="bind the potential"):
        llm.judge(STRONG).start(2, 4)


def test_tokenizers_must_agree():
    four = [[0.25] * 4] * 4
    ours, padded = bigram([[1 / 3] * 3] * 3, tokenizer=Letters(".ab")), bigram(four, tokenizer=Letters(".ab"))
    find_potential("judge", padded, ours)  # the same tokens, one of them padded
    find_potential("judge", ours, padded)
    for other in (bigram(four, tokenizer=Letters(".ba")), bigram(four)):
        with pytest.raises(ValueError, match="different tokenizers"):
            find_potential("judge", other, ours)
    for kind, other in (("judge", bigram(four)), ("odds", bigram(four)), ("odds", bigram(four, value=[0.0] * 4))):
        with pytest.raises(ValueError, match="has 4 tokens, the model that proposes has 3"):
            find_potential(kind, other, WEAK)
    steps = views([[(1, 3), (1, STOP)], [(1, 1), (1, STOP)]], base=padded)
    said, _ = run(llm.judge(ours), steps)
    assert said[0].log_potential[0] == -jnp.inf  # a token that the judge does not have
    np.testing.assert_allclose(said[0].log_potential[1], 2 * np.log(4 / 3), rtol=1e-5)
    assert np.isfinite(said[1].log_potential[1])
