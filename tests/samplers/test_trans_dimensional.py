"""`trans_dimensional`: the known answer of two models, the determinant of the active block, and faults.

Two models, pi(1, t) = .3 N(t) and pi(2, t1, t2) = .7 N(t1) N(t2), with birth t2 = 2u, |J| = 2: model 2 holds .7.
Planted bugs that must be caught: the Jacobian dropped (7/13), halved, or of the wrong sign; a way back that is not the
inverse; a map that changes the number of coordinates; a model index outside the table.
"""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core._status import Status
from probinf.core._target import Target
from probinf.samplers import _mhg
from probinf.samplers._between_models import ModelJump, between_models
from probinf.samplers._mhg import PaddedInvolution
from probinf.samplers._model_space import Components, ModelTable
from probinf.samplers._trans_dimensional import Move, TransDimensional, active_random_walk, trans_dimensional
from tests._slow import slow_after
from tests.samplers._trans_dimensional import LOG_2PI, Normal, run_chains, z_scores

MASKS = jnp.asarray([[True, False], [True, True]])


def two_models(p: TransDimensional) -> Any:
    logs = jnp.where(MASKS[p.model], -0.5 * p.parameters**2 - 0.5 * LOG_2PI, 0)
    return jnp.where(p.model == 0, math.log(0.3), math.log(0.7)) + jnp.sum(logs)


TWO_MODELS = Target(two_models)


def grow(parameters: Any, u: Any) -> Any:
    return jnp.stack([parameters[0], 2 * u]), ()


def shrink(parameters: Any, u: Any) -> Any:
    return parameters, parameters[1] / 2


def two_model_kernel(log_det: Any = None, backward: Any = shrink, check: bool = False) -> Any:
    jump = ModelJump(0, 1, grow, backward, forward_noise=Normal(), log_det=log_det)
    return between_models([jump], MASKS, check=check)


def start(num: int) -> TransDimensional:
    return TransDimensional(jnp.zeros(num, jnp.int32), jnp.zeros((num, 2)))


GIVEN = {"autodiff": None, "given": lambda p, u: math.log(2)}


@pytest.mark.parametrize("log_det", GIVEN.values(), ids=GIVEN)
def test_known_answer_of_two_models(log_det: Any, key: Any) -> None:
    # Means of 400 chains: 6 standard errors have probability below 1e-8 (t with 399 degrees).
    states, seen = run_chains(key, two_model_kernel(log_det), TWO_MODELS, start(400), 250, lambda p: p.model == 1)
    assert abs(z_scores(seen[20:], 0.7)) < 6
    assert not np.any(np.asarray(states.status))


def test_a_dropped_jacobian_gives_the_known_wrong_answer(key: Any) -> None:
    kernel = two_model_kernel(lambda p, u: 0.0)
    _, seen = run_chains(key, kernel, TWO_MODELS, start(400), 250, lambda p: p.model == 1)
    assert abs(z_scores(seen[20:], 0.7)) > 20
    assert abs(z_scores(seen[20:], 7 / 13)) < 6


WRONG = {
    "dropped": {"log_det": lambda p, u: 0.0},
    "halved": {"log_det": lambda p, u: 0.5 * math.log(2)},
    "sign": {"log_det": lambda p, u: -math.log(2)},
    "not_the_inverse": {"backward": lambda p, u: (p, p[1])},
    "not_the_inverse_given": {"backward": lambda p, u: (p, p[1]), "log_det": lambda p, u: math.log(2)},
    "forgets": {"backward": lambda p, u: (0 * p, p[1] / 2), "log_det": lambda p, u: math.log(2)},
}


@pytest.mark.parametrize("bug", slow_after(3, WRONG.values()), ids=WRONG)
def test_check_flags_planted_bugs_and_freezes(bug: dict[str, Any], key: Any) -> None:
    position = TransDimensional(jnp.zeros(32, jnp.int32), jnp.full((32, 2), 0.7))
    states, seen = run_chains(key, two_model_kernel(**bug, check=True), TWO_MODELS, position, 4, lambda p: p.model)
    assert np.all(np.asarray(states.status) == int(Status.BAD_INVOLUTION))
    assert np.all(seen == 0)


@pytest.mark.parametrize("log_det", GIVEN.values(), ids=GIVEN)
def test_check_passes_a_right_map(log_det: Any, key: Any) -> None:
    states, seen = run_chains(key, two_model_kernel(log_det, check=True), TWO_MODELS, start(64), 20, lambda p: p.model)
    assert not np.any(np.asarray(states.status))
    assert set(np.unique(seen)) == {0, 1}


def test_determinant_is_that_of_the_active_block(x64: None) -> None:
    """(t1, u) -> (t1 + u, 3 u + t1^2): the block has determinant 3, the padded whole is singular."""

    def forward(p: Any, u: Any) -> Any:
        return jnp.stack([p[0] + u, 3 * u + p[0] ** 2, jnp.exp(p[0])]), ()

    masks = jnp.asarray([[True, False, False], [True, True, False]])
    jump = ModelJump(0, 1, forward, lambda p, u: (p, p[1]), forward_noise=Normal())
    kernel = between_models([jump], masks)
    target = Target(lambda p: jnp.zeros(()))
    for t, u in itertools.product([-0.4, 1.3], [0.2, -2.0]):
        state = kernel.init(jax.random.key(0), target, TransDimensional(jnp.asarray(0), jnp.asarray([t, 0.0, 0.0])))
        move = Move(jnp.asarray(0), jnp.asarray([u]))
        found = _mhg._autodiff_log_det(kernel.involution, target, state, move)
        # d(t + u, 3u + t^2)/d(t, u) = 3 - 2t.
        assert float(found) == pytest.approx(math.log(abs(3 - 2 * t)), abs=1e-12)
        whole = jax.jacfwd(lambda p, u: forward(p, u)[0])(state.position.parameters, move.noise[0])
        assert np.linalg.matrix_rank(np.asarray(whole)) < 3


class Steps(eqx.Module):
    """Model k to k + 1 and back with a normal coordinate, without regard for the capacity."""

    chances: tuple[float, float] = eqx.field(static=True, default=(0.5, 0.5))
    jump: int = eqx.field(static=True, default=1)

    def probabilities(self, position: Any) -> Any:
        return jnp.asarray(self.chances)

    def sample_noise(self, key: Any, position: Any, choice: Any) -> Any:
        return jax.random.normal(key)

    def log_prob_noise(self, position: Any, move: Any) -> Any:
        return jnp.where(move.choice == 0, -0.5 * move.noise**2 - 0.5 * LOG_2PI, 0.0)

    def active_noise(self, position: Any, choice: Any) -> Any:
        return choice == 0

    def apply(self, position: Any, move: Any) -> Any:
        up, k = move.choice == 0, position.model
        here = jnp.arange(position.parameters.shape[0])
        grown = jnp.where(here == k, move.noise, position.parameters)
        gone = jnp.sum(jnp.where(here == k - 1, position.parameters, 0))
        model = jnp.where(up, k + self.jump, k - self.jump)
        position = TransDimensional(model, jnp.where(up, grown, position.parameters))
        return position, Move(1 - move.choice, jnp.where(up, 0, gone)), jnp.zeros(())


def lists(p: TransDimensional) -> Any:
    return jnp.sum(jnp.where(jnp.arange(3) < p.model, -0.5 * p.parameters**2 - 0.5 * LOG_2PI, 0))


def at(model: int, num: int, parameters: Any = 0.3) -> TransDimensional:
    return TransDimensional(jnp.full(num, model, jnp.int32), jnp.full((num, 3), parameters))


@pytest.mark.parametrize(("model", "chances"), [(3, (1.0, 0.0)), (0, (0.0, 1.0))], ids=["above", "below"])
def test_a_model_outside_the_table_is_rejected_and_flagged(model: int, chances: Any, key: Any) -> None:
    kernel = trans_dimensional(Steps(chances), Components(3))
    states, seen = run_chains(key, kernel, Target(lists), at(model, 16), 3, lambda p: p.model)
    assert np.all(seen == model)
    assert np.all(np.asarray(states.status) == int(Status.BAD_INVOLUTION))


@pytest.mark.parametrize("model", [-1, 4])
def test_a_start_outside_the_table_is_flagged(model: int, key: Any) -> None:
    kernel = trans_dimensional(Steps(), Components(3))
    states, seen = run_chains(key, kernel, Target(lists), at(model, 4), 2, lambda p: p.model)
    assert np.all(np.asarray(states.status) & int(Status.NONFINITE_INIT))
    assert np.all(seen == model)
    table = between_models([ModelJump(0, 1, grow, shrink, forward_noise=Normal())], MASKS)
    position = TransDimensional(jnp.asarray(model), jnp.zeros(2))
    assert int(table.init(jax.random.key(0), TWO_MODELS, position).status) & int(Status.NONFINITE_INIT)
    assert not np.any(np.asarray(ModelTable(MASKS).active(jnp.asarray(model))))


def test_a_changed_number_of_coordinates_is_flagged(key: Any) -> None:
    kernel = trans_dimensional(Steps((1.0, 0.0), jump=2), Components(3))
    states, seen = run_chains(key, kernel, Target(lists), at(1, 16), 2, lambda p: p.model)
    assert np.all(seen == 1)
    assert np.all(np.asarray(states.status) == int(Status.BAD_INVOLUTION))


def test_a_move_without_reverse_is_rejected_and_not_nan(key: Any) -> None:
    kernel = trans_dimensional(Steps((1.0, 0.0)), Components(3))
    states, seen = run_chains(key, kernel, Target(lists), at(1, 16), 5, lambda p: p.model)
    assert np.all(seen == 1)
    assert not np.any(np.asarray(states.status))
    state = jax.tree.map(lambda leaf: leaf[0], states)
    _, info = kernel.step(jax.random.key(3), Target(lists), state)
    assert float(info.energy_error) == math.inf
    assert float(info.acceptance_rate) == 0


@pytest.mark.parametrize(
    ("chances", "expected"),
    [((0.7, 0.5), int(Status.DIVERGENT)), ((-0.1, 0.5), int(Status.DIVERGENT)), ((0.2, 0.3), 0)],
    ids=["over_one", "negative", "stays"],
)
def test_probabilities_of_moves(chances: Any, expected: int, key: Any) -> None:
    """What is missing to one is the probability of staying; what is no law is rejected and flagged."""
    kernel = trans_dimensional(Steps(chances), Components(3), check=True)
    states, seen = run_chains(key, kernel, Target(lists), at(1, 32), 1, lambda p: p.model)
    assert np.all(np.asarray(states.status) == expected)
    assert np.any(seen != 1) == (expected == 0)


def test_nan_is_rejected_and_flagged(key: Any) -> None:
    kernel = two_model_kernel(lambda p, u: jnp.nan)
    states, seen = run_chains(key, kernel, TWO_MODELS, start(8), 2, lambda p: p.model)
    assert np.all(seen == 0)
    assert np.all(np.asarray(states.status) == int(Status.DIVERGENT))


def test_padding_is_canonical_and_out_of_the_density(key: Any) -> None:
    """A start with rubbish in its padding is cleaned; afterwards equal states have equal bits."""
    rubbish = TransDimensional(jnp.zeros(64, jnp.int32), jnp.stack([jnp.full(64, 0.5), jnp.full(64, jnp.nan)], 1))
    states, _ = run_chains(key, two_model_kernel(), TWO_MODELS, rubbish, 9, lambda p: p.model)
    assert not np.any(np.asarray(states.status))
    model, parameters = np.asarray(states.position.model), np.asarray(states.position.parameters)
    small = parameters[model == 0]
    assert 0 < len(small) < 64
    assert small.tobytes() == np.tile(np.array([0.5, 0.0], np.float32), len(small)).tobytes()
    assert np.all(np.isfinite(parameters))


@pytest.mark.no_key_reuse
def test_chains_under_vmap_are_the_chains_alone(key: Any) -> None:
    kernel = two_model_kernel()
    step = jax.jit(lambda k, s: kernel.step(k, TWO_MODELS, s))
    states = jax.vmap(lambda p: kernel.init(jax.random.key(0), TWO_MODELS, p))(start(64))
    keys = jax.random.split(key, 64)
    together, infos = jax.jit(jax.vmap(lambda k, s: kernel.step(k, TWO_MODELS, s)))(keys, states)
    for i in (0, 17, 63):
        alone, info = step(keys[i], jax.tree.map(lambda leaf, i=i: leaf[i], states))
        np.testing.assert_array_equal(alone.position.model, together.position.model[i])
        np.testing.assert_allclose(alone.position.parameters, together.position.parameters[i], rtol=1e-6)
        np.testing.assert_allclose(info.acceptance_rate, infos.acceptance_rate[i], rtol=1e-5)
    assert set(np.unique(together.position.model)) == {0, 1}


def test_active_random_walk_moves_what_is_active(key: Any) -> None:
    """Within model 1 of 3 slots, with a shared parameter: stationary there, and the padding stays zero."""

    def density(p: TransDimensional) -> Any:
        active = jnp.arange(3) < p.model
        return jnp.sum(jnp.where(active, p.parameters - jnp.exp(p.parameters), 0)) - 0.5 * (p.shared - 1) ** 2

    key_draws, key_shared, key_run = jax.random.split(key, 3)
    num = 20_000
    # exp(parameter) is Exponential(1): exact draws, which must stay exact.
    exact = jnp.log(jax.random.exponential(key_draws, (num, 3))) * jnp.asarray([[1.0, 0.0, 0.0]])
    position = TransDimensional(jnp.ones(num, jnp.int32), exact, 1 + jax.random.normal(key_shared, (num,)))
    kernel = active_random_walk(Components(3), (jnp.asarray(1.1), jnp.asarray(2.0)))
    states, _ = run_chains(key_run, kernel, Target(density), position, 6, lambda p: p.model)
    moved = np.asarray(states.position.parameters)
    assert np.all(moved[:, 1:] == 0)
    assert np.mean(moved[:, 0] != np.asarray(exact)[:, 0]) > 0.9
    assert np.all(np.asarray(states.position.model) == 1)
    # Two fractions of 20,000 independent chains: 6 standard errors have probability 4e-9.
    assert abs(z_scores((moved[None, :, 0] > 0), math.exp(-1))) < 6
    assert abs(z_scores(np.asarray(states.position.shared)[None] > 1, 0.5)) < 6


def test_active_random_walk_refuses_bad_scales_and_integers() -> None:
    with pytest.raises(ValueError, match="scale"):
        active_random_walk(Components(3), 0.0)
    target = Target(lambda p: jnp.zeros(()))

    def status_of(scale: Any) -> Any:
        kernel = active_random_walk(Components(3), scale)
        state = kernel.init(jax.random.key(0), target, jax.tree.map(lambda leaf: leaf[0], at(1, 1)))
        return kernel.step(jax.random.key(1), target, state)[0].status

    assert int(jax.jit(status_of)(-1.0)) == int(Status.DIVERGENT)
    kernel = active_random_walk(Components(3))
    state = kernel.init(jax.random.key(0), target, TransDimensional(jnp.asarray(1), jnp.zeros(3, jnp.int32)))
    with pytest.raises(TypeError, match="floating-point"):
        kernel.step(jax.random.key(1), target, state)


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="moves"):
        trans_dimensional(3, Components(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="space"):
        trans_dimensional(Steps(), 3)  # pyright: ignore[reportArgumentType]
    assert isinstance(trans_dimensional(Steps(), Components(3)).involution, PaddedInvolution)
