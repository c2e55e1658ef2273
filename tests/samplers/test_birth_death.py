"""`birth_death`: exact matrices on finite lists and subsets, and Bayesian variable selection with 2^p known models.

Planted bugs that must be caught: births that all go to the end of the list; the mass of the dying component, or of
the birth, left out; a removal that moves nothing down; densities of births without their constant.
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from probinf.core import choose
from probinf.core._choices import categorical
from probinf.core._status import Status
from probinf.core._target import Target
from probinf.samplers import _model_space
from probinf.samplers._birth_death import birth_death
from probinf.samplers._combine import cycle
from probinf.samplers._model_space import Components, Subsets
from probinf.samplers._trans_dimensional import JumpProposal, TransDimensional, active_random_walk
from tests._slow import slow_after
from tests.samplers._trans_dimensional import (
    LOG_2PI,
    Normal,
    balance_errors,
    run_chains,
    transition_matrix,
    z_scores,
)

CAPACITY = 3
COLOURS = np.array([0.7, 0.3])


class Colour(eqx.Module):
    """A component with two values, whose law may depend on the slot and the number of components."""

    probabilities: Any

    def sample(self, key: Any) -> Any:
        return choose(key, categorical, self.probabilities[None])[0]

    def log_prob(self, colour: Any) -> Any:
        return jnp.log(self.probabilities[colour])


def colours_of(position: TransDimensional, slot: Any) -> Colour:
    """Depends on the state without the component, and on its slot."""
    p = 0.3 + 0.1 * slot.astype(jnp.float64) + 0.05 * position.model.astype(jnp.float64)
    return Colour(jnp.stack([p, 1 - p]))


def lists() -> list[TransDimensional]:
    """All lists of at most `CAPACITY` colours, in canonical form."""
    return [
        TransDimensional(jnp.asarray(k, jnp.int32), jnp.asarray([*colours, *[0] * (CAPACITY - k)], jnp.int32))
        for k in range(CAPACITY + 1)
        for colours in itertools.product(range(2), repeat=k)
    ]


def list_density(position: TransDimensional) -> Any:
    """Skewed and not exchangeable: the weight of a colour depends on its slot."""
    table = jnp.asarray([[0.2, 1.1], [0.9, 0.5], [1.7, 0.4]])
    active = jnp.arange(CAPACITY, dtype=jnp.int32) < position.model
    logs = jnp.log(table[jnp.arange(CAPACITY, dtype=jnp.int32), position.parameters])
    return jnp.sum(jnp.where(active, logs, 0)) + jnp.asarray([0.1, 0.6, -0.2, 0.3])[position.model]


LISTS = Target(list_density)


def errors_of(kernel: Any, target: Target, positions: list[Any]) -> tuple[float, float, float]:
    density = np.exp([float(target.log_density(position)) for position in positions])
    return balance_errors(transition_matrix(kernel, target, positions), density)


@pytest.mark.parametrize("weights", [None, lambda position: jnp.asarray([1.0, 2.0, 0.5])], ids=["uniform", "weighted"])
@pytest.mark.parametrize(
    "proposal", slow_after(1, [colours_of, lambda p, s: Colour(jnp.asarray(COLOURS))]), ids=["of_state", "fixed"]
)
def test_exact_law_on_lists(proposal: Any, weights: Any, x64: None) -> None:
    kernel = birth_death(proposal, Components(CAPACITY), birth_probability=0.3, death_weights=weights, check=True)
    assert max(errors_of(kernel, LISTS, lists())) < 1e-12


@pytest.mark.parametrize("minimum", [0, 1])
def test_exact_law_on_subsets(minimum: int, x64: None) -> None:
    positions = [
        TransDimensional(jnp.asarray(mask), ())
        for mask in itertools.product([False, True], repeat=3)
        if sum(mask) >= minimum
    ]
    target = Target(lambda p: jnp.log(0.2 + jnp.sum(jnp.where(p.model, jnp.asarray([0.3, 1.4, 0.9]), 0)) ** 2))
    kernel = birth_death(None, Subsets(3, minimum), birth_probability=0.6)
    assert max(errors_of(kernel, target, positions)) < 1e-12


def at_the_end(self: Any, model: Any, parameters: Any, slot: Any, component: Any) -> Any:
    return model + 1, jax.tree.map(lambda a, b: _model_space.put(a, model, b), parameters, component)


def not_closing_up(self: Any, model: Any, parameters: Any, slot: Any) -> Any:
    return model - 1, parameters


PLANTED = {
    "births_at_the_end": (Components, "insert", at_the_end),
    "holes": (Components, "remove", not_closing_up),
    "no_density_of_births": (Colour, "log_prob", lambda self, colour: jnp.zeros(())),
}


@pytest.mark.parametrize("bug", slow_after(2, ["no_mass_of_moves", *PLANTED]))
def test_enumeration_catches_planted_bugs(bug: str, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = birth_death(colours_of, Components(CAPACITY), birth_probability=0.3)
    if bug == "no_mass_of_moves":

        def of_noise_alone(self: Any, target: Any, state: Any, v: Any) -> Any:
            return self.moves.log_prob_noise(state.point.position, v)

        monkeypatch.setattr(JumpProposal, "log_prob", of_noise_alone)
    else:
        cls, name, wrong = PLANTED[bug]
        monkeypatch.setattr(cls, name, wrong)
    assert max(errors_of(kernel, LISTS, lists())[1:]) > 1e-3


@pytest.mark.parametrize("bug", slow_after(1, ["births_at_the_end", "holes"]))
def test_check_catches_planted_maps(bug: str, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, name, wrong = PLANTED[bug]
    monkeypatch.setattr(cls, name, wrong)
    kernel = birth_death(Normal(), Components(4), check=True)
    target = Target(lambda p: -0.5 * jnp.sum(p.parameters**2))
    positions = TransDimensional(jnp.full(16, 3, jnp.int32), jnp.ones((16, 4)) * jnp.arange(1.0, 5.0)[None])
    states, _ = run_chains(key, kernel, target, positions, 6, lambda p: p.model)
    assert np.any(np.asarray(states.status) & int(Status.BAD_INVOLUTION))


# Variable selection: y = X_S beta_S + noise, beta_j ~ N(0, TAU^2), noise N(0, 1), inclusion with probability .4 each.
P, TAU, N = 4, 1.5, 30
_RNG = np.random.default_rng(11)
DESIGN = _RNG.normal(size=(N, P)) @ np.array([[1, 0.6, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
RESPONSE = DESIGN @ np.array([0.45, 0.0, -0.35, 0.1]) + _RNG.normal(size=N)
SUBSETS = np.array(list(itertools.product([False, True], repeat=P)))


def log_model_weight(mask: np.ndarray) -> float:
    x = DESIGN[:, mask]
    covariance = np.eye(N) + TAU**2 * x @ x.T
    fit = RESPONSE @ np.linalg.solve(covariance, RESPONSE)
    prior = mask.sum() * np.log(0.4) + (~mask).sum() * np.log(0.6)
    return prior - 0.5 * (fit + np.linalg.slogdet(covariance)[1])


LOG_WEIGHTS = np.array([log_model_weight(mask) for mask in SUBSETS])
MODEL_PROBABILITIES = np.exp(LOG_WEIGHTS - LOG_WEIGHTS.max())
MODEL_PROBABILITIES /= MODEL_PROBABILITIES.sum()


def index_of(model: Any) -> Any:
    return jnp.sum(jnp.where(model, 2 ** jnp.arange(P - 1, -1, -1), 0))


def test_variable_selection_with_coefficients_integrated_out_is_exact(x64: None) -> None:
    table = jnp.asarray(LOG_WEIGHTS)
    target = Target(lambda p: table[index_of(p.model)])
    positions = [TransDimensional(jnp.asarray(mask), ()) for mask in SUBSETS]
    matrix = transition_matrix(birth_death(None, Subsets(P)), target, positions)
    assert max(balance_errors(matrix, MODEL_PROBABILITIES)) < 1e-12
    # Irreducible: the invariant law is the only one, to which powers converge.
    np.testing.assert_allclose(np.linalg.matrix_power(matrix, 2000)[0], MODEL_PROBABILITIES, atol=1e-10)


def selection_density(p: TransDimensional) -> Any:
    beta = jnp.where(p.model, p.parameters, 0)
    residual = jnp.asarray(RESPONSE, jnp.float32) - jnp.sum(jnp.asarray(DESIGN, jnp.float32) * beta[None], axis=1)
    prior = -0.5 * (p.parameters / TAU) ** 2 - jnp.log(TAU) - 0.5 * LOG_2PI + jnp.log(0.4 / 0.6)
    return -0.5 * jnp.sum(residual**2) + jnp.sum(jnp.where(p.model, prior, 0))


def selection_z(key: Any, proposal: Any, check: bool = False) -> np.ndarray:
    """z-scores of the 16 model probabilities from 400 chains of 400 steps, the first 100 left out."""
    kernel = cycle(
        birth_death(proposal, Subsets(P), check=check), active_random_walk(Subsets(P), jnp.asarray(0.25), check=check)
    )
    start = TransDimensional(jnp.zeros((400, P), bool), jnp.zeros((400, P)))
    states, seen = run_chains(key, kernel, Target(selection_density), start, 400, lambda p: index_of(p.model))
    assert not np.any(np.asarray(states.status))
    return z_scores(seen[100:, :, None] == np.arange(2**P), MODEL_PROBABILITIES)


def test_variable_selection_with_coefficients_sampled(key: Any) -> None:
    # 16 means of 400 independent chains: |z| > 6.5 has probability below 16 * 3e-10 (t with 399 degrees).
    assert np.abs(selection_z(key, Normal(0.0, 0.6))).max() < 6.5


def test_variable_selection_catches_a_birth_density_without_its_constant(key: Any) -> None:
    class Unnormalised(Normal):
        def log_prob(self, x: Any) -> Any:
            return -0.5 * (x / self.scale) ** 2

    assert np.abs(selection_z(key, Unnormalised(0.0, 0.6))).max() > 20


def test_a_full_list_only_loses_and_an_empty_one_only_gains() -> None:
    kernel = birth_death(Normal(), Components(2))
    proposal = kernel.auxiliary
    assert isinstance(proposal, JumpProposal)
    for count, expected in ((0, [1, 0, 0, 0, 0]), (1, [0.25, 0.25, 0.5, 0, 0]), (2, [0, 0, 0.5, 0.5, 0])):
        law = proposal.law(TransDimensional(jnp.asarray(count), jnp.zeros(2)))
        np.testing.assert_allclose(law, expected, atol=1e-6)


def test_a_component_of_death_weight_zero_is_never_born(key: Any) -> None:
    """The reverse of its birth has probability zero: rejected, not NaN."""
    kernel = birth_death(Normal(), Components(2), death_weights=lambda position: jnp.zeros(2))
    target = Target(lambda p: jnp.zeros(()))
    start = TransDimensional(jnp.zeros(50, jnp.int32), jnp.zeros((50, 2)))
    states, seen = run_chains(key, kernel, target, start, 5, lambda p: p.model)
    assert np.all(seen == 0)
    assert not np.any(np.asarray(states.status))


def test_a_nan_density_of_a_birth_is_rejected_and_flagged(key: Any) -> None:
    kernel = birth_death(Normal(), Components(2))
    target = Target(lambda p: jnp.where(p.model == 1, jnp.nan, 0.0))
    start = TransDimensional(jnp.zeros(8, jnp.int32), jnp.zeros((8, 2)))
    states, seen = run_chains(key, kernel, target, start, 3, lambda p: p.model)
    assert np.all(seen == 0)
    assert np.all(np.asarray(states.status) == int(Status.DIVERGENT))


def test_nan_and_negative_weights_are_flagged(key: Any) -> None:
    target = Target(lambda p: jnp.zeros(()))
    for bad in ([jnp.nan, 0.0], [-1.0, 0.0], [2.0, -1.0]):
        start = TransDimensional(jnp.full(8, 2, jnp.int32), jnp.zeros((8, 2)))
        kernel = birth_death(Normal(), Components(2), death_weights=lambda p, bad=bad: jnp.asarray(bad))
        key, key_run = jax.random.split(key)
        states, seen = run_chains(key_run, kernel, target, start, 3, lambda p: p.model)
        assert np.all(seen == 2)
        assert np.all(np.asarray(states.status) == int(Status.DIVERGENT))


def test_components_of_several_leaves_keep_together(key: Any) -> None:
    """Every component is (x, [x, -x]); births, deaths and shifts never tear one apart."""

    class Pair(eqx.Module):
        def sample(self, key: Any) -> Any:
            x = jax.random.normal(key)
            return {"a": x, "b": jnp.stack([x, -x])}

        def log_prob(self, value: Any) -> Any:
            return -0.5 * value["a"] ** 2 - 0.5 * LOG_2PI

    target = Target(lambda p: jnp.sum(jnp.where(jnp.arange(4) < p.model, -0.5 * p.parameters["a"] ** 2, 0)))
    start = TransDimensional(jnp.zeros(64, jnp.int32), {"a": jnp.zeros((64, 4)), "b": jnp.zeros((64, 4, 2))})
    states, seen = run_chains(key, birth_death(Pair(), Components(4)), target, start, 60, lambda p: p.model)
    a, b = (np.asarray(states.position.parameters[name]) for name in "ab")
    np.testing.assert_array_equal(b, np.stack([a, -a], -1))
    assert set(np.unique(seen)) == {0, 1, 2, 3, 4}
    padding = np.arange(4)[None] >= np.asarray(states.position.model)[:, None]
    assert not np.any(a[padding])
    assert np.all(a[~padding] != 0)


@pytest.mark.numpyro
def test_a_numpyro_distribution_is_a_proposal(key: Any) -> None:
    import numpyro.distributions as dist

    kernel = birth_death(dist.Normal(0.0, 1.0), Components(3))

    def density(p: TransDimensional) -> Any:
        logs = jnp.where(jnp.arange(3) < p.model, -0.5 * p.parameters**2 - 0.5 * LOG_2PI, 0.0)
        return jnp.sum(logs) + jnp.log(jnp.asarray([0.1, 0.2, 0.3, 0.4]))[p.model]

    start = TransDimensional(jnp.zeros(200, jnp.int32), jnp.zeros((200, 3)))
    _, seen = run_chains(key, kernel, Target(density), start, 200, lambda p: p.model)
    # 4 means of 200 chains, 6.5 standard errors: below 1e-8.
    assert np.abs(z_scores(seen[40:, :, None] == np.arange(4), [0.1, 0.2, 0.3, 0.4])).max() < 6.5


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="space"):
        birth_death(Normal(), 3)  # pyright: ignore[reportArgumentType]
    for bad in (0.0, 1.0, float("nan"), [0.5]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            birth_death(Normal(), Components(3), birth_probability=bad)
    with pytest.raises(ValueError, match="minimum"):
        Components(2, minimum=3)
    kernel = birth_death(Normal(), Components(3))
    target = Target(lambda p: jnp.zeros(()))
    with pytest.raises(ValueError, match="leading axes"):
        kernel.init(jax.random.key(0), target, TransDimensional(jnp.asarray(1), jnp.zeros(4)))
    with pytest.raises(TypeError, match="number of components"):
        kernel.init(jax.random.key(0), target, TransDimensional(jnp.ones(3, bool), jnp.zeros(3)))
    with pytest.raises(TypeError, match="bool array"):
        birth_death(Normal(), Subsets(3)).init(
            jax.random.key(0), target, TransDimensional(jnp.asarray(1), jnp.zeros(3))
        )


@pytest.mark.parametrize("dtype", slow_after(1, [jnp.float32, jnp.float64]))
def test_dtypes_of_the_position_are_kept_in_double_precision(dtype: Any, x64: None) -> None:
    class Half(eqx.Module):
        def sample(self, key: Any) -> Any:
            return jax.random.normal(key, (), dtype)

        def log_prob(self, x: Any) -> Any:
            return -0.5 * x * x - 0.5 * LOG_2PI

    space = Components(3)
    kernel = cycle(birth_death(Half(), space, check=True), active_random_walk(space, 0.7, check=True))
    target = Target(lambda p: jnp.sum(jnp.where(jnp.arange(3) < p.model, -0.5 * p.parameters**2, 0)))
    state = kernel.init(jax.random.key(0), target, TransDimensional(jnp.asarray(1), jnp.zeros(3, dtype)))
    new, info = jax.jit(lambda k, s: kernel.step(k, target, s))(jax.random.key(1), state)
    assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, state)
    assert new.position.parameters.dtype == dtype
    assert int(info.status) == 0


def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the hook of the tests would answer first
    space = Components(3)
    for bad in (3.0, "normal"):
        with pytest.raises(TypeError, match=rf"`proposal` must have `sample` .* but is {bad!r}"):
            birth_death(bad, space)
    with pytest.raises(TypeError, match=r"`death_weights` must be a function .*\[capacity\] weights, .*Array\(\[1"):
        birth_death(Normal(), space, death_weights=jnp.ones(3))  # pyright: ignore[reportArgumentType]
    for bad in ("a", None, 1.5, True, 0.5j, jnp.ones(2) / 2):
        with pytest.raises(ValueError, match="`birth_probability` must be a scalar between 0 and 1, but is "):
            birth_death(Normal(), space, birth_probability=bad)
    with pytest.raises(TypeError, match=r"`space` must be such as `Components\(10\)` .* but is 3"):
        birth_death(Normal(), 3)  # pyright: ignore[reportArgumentType]
    traced = jax.jit(lambda p: jax.tree.leaves(birth_death(Normal(), space, birth_probability=p)))
    assert 0.25 in traced(0.25)


@pytest.mark.parametrize("space", [Components, Subsets])
def test_spaces_without_room_are_refused(space: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the hook of the tests would answer first
    for capacity in (0, -2):
        with pytest.raises(ValueError, match=f"`capacity` is {capacity}; needed at least 1"):
            space(capacity)
    with pytest.raises(ValueError, match="`minimum` is 5, but there are only 3 slots: raise `capacity`"):
        space(3, minimum=5)
    with pytest.raises(ValueError, match="`minimum` is -1"):
        space(3, minimum=-1)
    with pytest.raises(TypeError, match=r"`capacity` must be an integer, got 2\.5"):
        space(2.5)
    assert space(3, minimum=3).minimum == 3
