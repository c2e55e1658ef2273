"""`between_models`: jumps among three models with noise both ways, shared parameters, and what is refused.

Planted bugs that must be caught: the noise of the way back left out; weights of jumps left out.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from probinf.core._status import Status
from probinf.core._target import Target
from probinf.samplers._between_models import BetweenModels, ModelJump, between_models
from probinf.samplers._combine import cycle
from probinf.samplers._model_space import ModelTable
from probinf.samplers._trans_dimensional import JumpProposal, TransDimensional, active_random_walk
from tests._slow import slow_after
from tests.samplers._trans_dimensional import LOG_2PI, Normal, run_chains, z_scores

# Model 0: a gamma(1.5) rate, on the log scale. Model 1: two normal numbers. Model 2: one normal number, in slot 1.
MASKS = {"a": jnp.asarray([True, False, False]), "b": jnp.asarray([[False, False], [True, True], [False, True]])}
PROBABILITIES = np.array([0.25, 0.6, 0.15])


def density(p: TransDimensional) -> Any:
    """With a shared normal parameter that the others know nothing of, and model 2 centred at 1."""
    a, b = p.parameters["a"], p.parameters["b"]
    gamma = 1.5 * a - jnp.exp(a) - jax.lax.lgamma(1.5)
    centre = jnp.where(p.model == 2, 1.0, 0.0)
    normal = -0.5 * (b - centre) ** 2 - 0.5 * LOG_2PI
    parts = jnp.where(MASKS["a"][p.model], gamma, 0) + jnp.sum(jnp.where(MASKS["b"][p.model], normal, 0))
    prior = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[p.model]
    return prior + parts - 0.5 * p.shared**2 - 0.5 * LOG_2PI


def jumps(log_det: bool = False) -> list[ModelJump]:
    """0 -> 1 with one noise; 1 -> 2 with one noise left over and one used: (b0, b1, u) -> (b1', u0, u1)."""

    def up(p: Any, u: Any) -> Any:
        return {"a": p["a"], "b": jnp.stack([p["a"] + u, 3 * u])}, ()

    def up_back(p: Any, _: Any) -> Any:
        u = p["b"][1] / 3
        return {"a": p["b"][0] - u, "b": p["b"]}, u

    def across(p: Any, u: Any) -> Any:
        b = p["b"]
        return {"a": p["a"], "b": jnp.stack([b[0], 1 + 0.5 * b[1] + u["x"]])}, jnp.stack([b[0] * 2, u["x"]])

    def across_back(p: Any, left: Any) -> Any:
        return {"a": p["a"], "b": jnp.stack([left[0] / 2, 2 * (p["b"][1] - 1 - left[1])])}, {"x": left[1]}

    dets = (lambda p, u: math.log(3), lambda p, u: 0.0) if log_det else (None, None)
    return [
        ModelJump(0, 1, up, up_back, forward_noise=Normal(0.0, 0.6), log_det=dets[0]),
        ModelJump(
            1, 2, across, across_back, Named(0.0, 0.5), Normal(jnp.zeros(2), jnp.asarray([2.0, 0.5]), (2,)), dets[1]
        ),
    ]


class Named(Normal):
    def sample(self, key: Any) -> Any:
        return {"x": Normal.sample(self, key)}

    def log_prob(self, x: Any) -> Any:
        return Normal.log_prob(self, x["x"])


def start(num: int) -> TransDimensional:
    return TransDimensional(jnp.zeros(num, jnp.int32), {"a": jnp.zeros(num), "b": jnp.zeros((num, 2))}, jnp.zeros(num))


def z_of(key: Any, kernel: Any, steps: int = 350) -> np.ndarray:
    kernel = cycle(kernel, active_random_walk(ModelTable(MASKS), 1.0))
    states, seen = run_chains(key, kernel, Target(density), start(400), steps, lambda p: p.model)
    assert not np.any(np.asarray(states.status))
    return z_scores(seen[80:, :, None] == np.arange(3), PROBABILITIES)


@pytest.mark.parametrize("log_det", [False, True], ids=["autodiff", "given"])
@pytest.mark.slow
def test_model_probabilities(log_det: bool, key: Any) -> None:
    # 3 means of 400 chains; 6.5 standard errors have probability below 1e-9.
    kernel = between_models(jumps(log_det), MASKS, weights=[1.0, 2.0], check=True)
    assert np.abs(z_of(key, kernel)).max() < 6.5


@pytest.mark.parametrize("bug", ["noise", "weights"])
@pytest.mark.slow
def test_planted_bugs_are_caught(bug: str, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug == "noise":
        law = BetweenModels.log_prob_noise
        monkeypatch.setattr(
            BetweenModels, "log_prob_noise", lambda self, p, move: jnp.where(move.choice == 3, 0, law(self, p, move))
        )
    if bug == "weights":
        monkeypatch.setattr(
            JumpProposal, "log_prob", lambda self, target, state, v: self.moves.log_prob_noise(state.position, v)
        )
    assert np.abs(z_of(key, between_models(jumps(), MASKS, weights=[1.0, 2.0]))).max() > 8


def test_shared_parameters_stay_in_jumps_and_a_model_without_jumps_stays(key: Any) -> None:
    kernel = between_models(jumps()[:1], MASKS, check=True)
    position = TransDimensional(
        jnp.asarray([0, 1, 2] * 8, jnp.int32),
        {
            "a": jnp.tile(jnp.asarray([0.3, 0, 0]), 8),
            "b": jnp.tile(jnp.asarray([[0.0, 0], [0.2, 0.4], [0, 1.0]]), (8, 1)),
        },
        jnp.arange(24.0),
    )
    states, seen = run_chains(key, kernel, Target(density), position, 10, lambda p: p.model)
    assert not np.any(np.asarray(states.status))
    np.testing.assert_array_equal(states.position.shared, np.arange(24.0))
    assert np.all(seen[:, 2::3] == 2)
    assert set(np.unique(seen[:, 0::3])) == {0, 1}


def test_a_wrong_log_determinant_is_flagged(key: Any) -> None:
    good = jumps(True)
    wrong = ModelJump(0, 1, good[0].forward, good[0].backward, good[0].forward_noise, None, lambda p, u: 0.0)
    kernel = between_models([wrong], MASKS, check=True)
    states, _ = run_chains(key, kernel, Target(density), start(16), 1, lambda p: p.model)
    assert np.all(np.asarray(states.status) == int(Status.BAD_INVOLUTION))


def test_arguments_are_checked() -> None:
    there, across = jumps()
    with pytest.raises(ValueError, match="empty"):
        between_models([], MASKS)
    with pytest.raises(ValueError, match="`masks` has 3 models"):
        between_models([ModelJump(0, 3, there.forward, there.backward)], MASKS)
    with pytest.raises(ValueError, match="for all, or for none"):
        between_models([there, jumps(True)[1]], MASKS)
    with pytest.raises(ValueError, match="positive numbers"):
        between_models([there, across], MASKS, weights=[1.0, 0.0])
    with pytest.raises(TypeError, match="law of noise"):
        between_models([ModelJump(0, 1, there.forward, there.backward, forward_noise=3)], MASKS)
    kernel = between_models([ModelJump(0, 1, lambda p, u: (p, u), there.backward, Normal())], MASKS)
    state = kernel.init(jax.random.key(0), Target(density), jax.tree.map(lambda leaf: leaf[0], start(1)))
    with pytest.raises(ValueError, match="the way back has 0"):
        kernel.step(jax.random.key(1), Target(density), state)


@pytest.mark.parametrize(
    "bad", slow_after(2, [[-1.0, 1.0], [np.nan, 1.0], [-1.0, -1.0], [0.0, 1.0], [np.inf, 1.0]]), ids=str
)
def test_traced_weights_that_are_not_positive_are_flagged(bad: Any) -> None:
    position = jax.tree.map(lambda leaf: leaf[0], start(1))

    @jax.jit
    def step(weights: Any) -> Any:
        kernel = between_models(jumps(), MASKS, weights=weights)
        state = kernel.init(jax.random.key(0), Target(density), position)
        return kernel.step(jax.random.key(1), Target(density), state)

    assert int(step(jnp.asarray([2.0, 1.0]))[0].status) == 0
    state, info = step(jnp.asarray(bad))
    assert int(state.status) == int(info.status) == int(Status.DIVERGENT)
    assert not bool(info.accepted)
    for found, expected in zip(jax.tree.leaves(state.position), jax.tree.leaves(position), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_is_no_jump_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the hook of the tests would answer first
    there = jumps()[0]
    good = {"source": 0, "destination": 1, "forward": there.forward, "backward": there.backward}
    for change, message in [
        ({"source": 0.5}, r"`source` must be an integer, got 0\.5"),
        ({"destination": None}, "`destination` must be an integer, got None"),
        ({"forward": None}, "`forward` must be a function .* but is None"),
        ({"backward": 3}, "`backward` must be a function .* but is 3"),
        ({"forward_noise": 3}, "`forward_noise` must be a law of noise, .* but is 3"),
        ({"backward_noise": "a"}, "`backward_noise` must be a law of noise, .* but is 'a'"),
        ({"log_det": 0.0}, r"`log_det` must be a function .* but is 0\.0"),
    ]:
        with pytest.raises(TypeError, match=message):
            ModelJump(**{**good, **change})
    with pytest.raises(ValueError, match="`source` is -1; needed at least 0"):
        ModelJump(**{**good, "source": -1})
    with pytest.raises(TypeError, match=r"`jumps\[1\]` must be a `ModelJump\(.* but is \(0, 1\)"):
        between_models([there, (0, 1)], MASKS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"`jumps` must be a sequence of `ModelJump`, but is ModelJump"):
        between_models(there, MASKS)  # pyright: ignore[reportArgumentType]


def test_bad_masks_and_weights_are_named() -> None:
    for error, bad, message in [
        (TypeError, jnp.ones((3, 2), jnp.int32), "(?s)`masks` has the leaf .* not of type bool; needed bool arrays"),
        (TypeError, "mask", "`masks` has the leaf 'mask'"),
        (ValueError, jnp.asarray(True), "`masks` has the scalar leaf"),
        (ValueError, [[True, False], [True, True]], r"`masks` has the scalar leaf True.*lists count as pytrees"),
        (ValueError, {}, r"`masks` has leaves of shapes \[\]"),
        (ValueError, {"a": jnp.ones(3, bool), "b": jnp.ones((2, 2), bool)}, r"shapes \[\(3,\), \(2, 2\)\]"),
    ]:
        with pytest.raises(error, match=message):
            between_models(jumps(), bad)
        with pytest.raises(error, match=message):
            ModelTable(bad)
    assert ModelTable(np.ones((3, 2), bool)).num_models == 3
    for error, bad in ((TypeError, "ab"), (TypeError, ["a", "b"]), (ValueError, 1.0), (ValueError, [1.0, np.inf])):
        with pytest.raises(error, match="`weights` must be 2 positive numbers, one a jump, but is "):
            between_models(jumps(), MASKS, weights=bad)
