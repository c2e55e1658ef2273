"""`gibbs` and `conditional_gibbs`: exact matrices on a finite space, flags, what is refused, counts of evaluations.

Planted bugs that must be caught (`test_enumeration_catches_planted_bugs`): values outside the support of an element
that has fewer; the density of the present value not counted; a sweep that keeps the density of the first element; the
metropolised form without its correction; `conditional_gibbs` without the law of the way back.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import IntegerInterval, Status
from probinf.core._target import Target
from probinf.samplers import _conditional_gibbs, _gibbs
from probinf.samplers._conditional_gibbs import conditional_gibbs
from probinf.samplers._gibbs import gibbs
from tests.samplers._trans_dimensional import balance_errors, transition_matrix

SUPPORTS = {"a": IntegerInterval(0, 1), "b": IntegerInterval([1], [3])}
STATES = [{"a": np.int32(a), "b": np.array([b], np.int32)} for a in range(2) for b in range(1, 4)]
TABLES = np.random.default_rng(0).gamma(0.7, size=(2, 2, 3)) + 0.02
TABLES[1, 1, 2] = 0.0


class Table(eqx.Module):
    """The log of a table of weights."""

    weights: Any

    def __call__(self, position: Any) -> Any:
        a, b = position["a"], position["b"][0]
        # Infinite outside the support, where nothing may be evaluated to any effect.
        inside = (a >= 0) & (a <= 1) & (b >= 1) & (b <= 3)
        return jnp.where(inside, jnp.log(self.weights[a, b - 1]), jnp.inf)


def finite(inverse_temperature: float = 1.0) -> Target:
    prior, likelihood = (Table(jnp.asarray(table)) for table in TABLES)
    return Target(likelihood, prior, inverse_temperature=jnp.asarray(inverse_temperature), supports=SUPPORTS)


def weights_of(inverse_temperature: float = 1.0) -> np.ndarray:
    return (TABLES[0] * TABLES[1] ** inverse_temperature).reshape(-1)


def matrix_of(kernel: Any, target: Target) -> np.ndarray:
    return transition_matrix(kernel, target, [jax.tree.map(jnp.asarray, state) for state in STATES])


def exact_sweep() -> np.ndarray:
    """The matrix of a sweep in order, written out."""
    table = weights_of().reshape(2, 3)
    new_a, new_b = table / table.sum(0), table / table.sum(1, keepdims=True)
    states = list(np.ndindex(2, 3))
    return np.array([[new_a[end[0], start[1]] * new_b[end] for end in states] for start in states])


def possible(matrix: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the starts of probability zero, which `init` flags."""
    keep = weights > 0
    return matrix[np.ix_(keep, keep)], weights[keep]


def test_a_sweep_in_order_is_the_product_of_conditionals(x64: None) -> None:
    found, weights = possible(matrix_of(gibbs(shuffle=False), finite()), weights_of())
    np.testing.assert_allclose(found, possible(exact_sweep(), weights_of())[0], atol=1e-12)
    rows, invariance, balance = balance_errors(found, weights)
    assert max(rows, invariance) < 1e-12
    assert balance > 1e-3


@pytest.mark.parametrize("metropolised", [False, True])
def test_a_shuffled_sweep_is_reversible(metropolised: bool, x64: None) -> None:
    target = finite(0.6)
    found, weights = possible(matrix_of(gibbs(metropolised=metropolised), target), weights_of(0.6))
    assert max(balance_errors(found, weights)) < 1e-12


def test_one_metropolised_element_leaves_more_often(x64: None) -> None:
    weights = np.array([0.2, 1.5, 0.6, 0.9])
    target = Target(lambda p: jnp.log(jnp.asarray(weights))[p["z"]], supports={"z": IntegerInterval(0, 3)})
    states = [{"z": jnp.asarray(k)} for k in range(4)]
    plain, liu = (transition_matrix(gibbs(metropolised=m), target, states) for m in (False, True))
    p = weights / weights.sum()
    np.testing.assert_allclose(plain, np.broadcast_to(p, (4, 4)), atol=1e-12)
    expected = p[None] / np.maximum(1 - p[:, None], 1 - p[None])
    np.testing.assert_allclose(liu[~np.eye(4, dtype=bool)], expected[~np.eye(4, dtype=bool)], atol=1e-12)
    assert max(balance_errors(liu, weights)) < 1e-12
    assert np.all((liu > plain)[~np.eye(4, dtype=bool)])  # Peskun's order


def laws(values: Any) -> dict[str, Any]:
    """No conditional of the table, and dependent on the present values."""
    a, b = values["a"], values["b"]
    shift = 0.3 * a.astype(float) + 0.2 * jnp.sum(b).astype(float)
    return {"a": jnp.sin(jnp.arange(2.0) + shift), "b": jnp.cos(jnp.arange(3.0) * shift)[None]}


def test_given_conditionals_are_corrected(x64: None) -> None:
    found, weights = possible(matrix_of(conditional_gibbs(laws), finite()), weights_of())
    assert max(balance_errors(found, weights)) < 1e-12
    assert found.min() >= 0


def _plant_outside(patch: pytest.MonkeyPatch) -> Any:
    # All elements as if they had the values of the one with most.
    patch.setitem(SUPPORTS, "a", IntegerInterval(0, 2))
    patch.setattr(Table, "__call__", lambda self, p: jnp.log(self.weights[p["a"], p["b"][0] - 1] + 0.1))
    return gibbs(shuffle=False)


def _plant_no_present_value(patch: pytest.MonkeyPatch) -> Any:
    law = _gibbs._law
    patch.setattr(_gibbs, "_law", lambda logs, frozen, **k: law(logs.at[0].set(jnp.max(logs[1:])), frozen, **k))
    return gibbs()


def _plant_stale_density(patch: pytest.MonkeyPatch) -> Any:
    scan = _gibbs.scan

    def stale(body: Any, carry: Any, *rest: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            new, out = body(c, x)
            return new._replace(log_prior=carry.log_prior), out

        return scan(step, carry, *rest)

    patch.setattr(_gibbs, "scan", stale)
    return gibbs()


def _plant_no_correction(patch: pytest.MonkeyPatch) -> Any:
    def law(logs: Any, frozen: Any, *, metropolised: bool) -> Any:
        weights = jnp.exp(logs - jnp.max(logs)).at[0].set(0.0)
        return weights / jnp.sum(weights)

    patch.setattr(_gibbs, "_law", law)
    return gibbs(metropolised=True)


def _plant_no_way_back(patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(
        _conditional_gibbs.Conditionals,
        "log_prob",
        lambda self, target, state, v: jnp.zeros_like(state.point.log_prior),
    )
    return conditional_gibbs(laws)


PLANTED = [_plant_outside, _plant_no_present_value, _plant_stale_density, _plant_no_correction, _plant_no_way_back]


@pytest.mark.parametrize("plant", PLANTED)
def test_enumeration_catches_planted_bugs(plant: Any, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = plant(monkeypatch)
    try:
        found, weights = possible(matrix_of(kernel, finite()), weights_of())
    except KeyError:  # a value outside all states
        return
    assert not balance_errors(found, weights)[1] < 1e-3  # or NaN


ASSIGNED = np.array([-1.2, 0.4, 2.2, 1.9, -0.3], np.float32)


class Assigned(eqx.Module):
    """Given assignments of data to two normal components of known means."""

    data: Any

    def terms(self) -> Any:
        means = jnp.array([[-0.5, 1.5]], self.data.dtype)
        return jnp.log(jnp.array([[0.3, 0.7]], self.data.dtype)) - 0.5 * (self.data[:, None] - means) ** 2

    def __call__(self, position: Any) -> Any:
        return jnp.sum(jnp.take_along_axis(self.terms(), position["z"][:, None], axis=1))


class ExactLaw(eqx.Module):
    model: Assigned

    def __call__(self, values: Any) -> dict[str, Any]:
        return {"z": self.model.terms()}


def test_exact_conditionals_are_always_accepted_and_right(key: Any) -> None:
    model = Assigned(jnp.asarray(ASSIGNED))
    target = Target(model, supports={"z": _bits(5)})
    probability = np.asarray(jax.nn.softmax(model.terms(), axis=1))[:, 1]

    def run(kernel: Any, key: Any) -> Any:
        state = kernel.init(jax.random.key(0), target, {"z": jnp.zeros(5, jnp.int32)})

        def body(state: Any, number: Any) -> Any:
            state, info = kernel.step(jax.random.fold_in(key, number), target, state)
            return state, (state.position["z"], info)

        return jax.lax.scan(body, state, jnp.arange(20_000))[1]

    infos = []
    for kernel, key_run in zip((conditional_gibbs(ExactLaw(model)), gibbs()), jax.random.split(key), strict=True):
        seen, info = jax.jit(lambda k, kernel=kernel: run(kernel, k))(key_run)
        infos.append(info)
        # Draws are independent: 2 x 5 means of 20,000; 6.5 standard errors have probability below 1e-9.
        error = np.sqrt(probability * (1 - probability) / 20_000)
        assert np.abs((np.asarray(seen).mean(0) - probability) / error).max() < 6.5
    assert infos[0].acceptance_rate.min() > 1 - 1e-5
    assert np.all(infos[1].acceptance_rate == 1)
    # Of 20,000 numbers in [0, 1], neighbours dependent: Hoeffding's bound for each half of them is below 1e-10.
    assert abs(infos[1].moved.mean() - 2 * np.mean(probability * (1 - probability))) < 0.04


def _bits(num: int) -> IntegerInterval:
    return IntegerInterval(0, 1, (num,))


def _edge(kind: float, position: Any) -> Any:
    """Not a density where the last element is 1."""
    return jnp.where(position["z"][1] == 1, kind, 0.5 * position["z"][0].astype(float))


@pytest.mark.parametrize("name", ["gibbs", "metropolised", "conditional"])
def test_a_nan_value_is_impossible_and_flagged(name: str, key: Any) -> None:
    kernel = {
        "gibbs": gibbs(),
        "metropolised": gibbs(metropolised=True),
        "conditional": conditional_gibbs(lambda v: {"z": jnp.zeros((2, 2))}),
    }[name]
    target = Target(lambda p: _edge(jnp.nan, p), supports={"z": _bits(2)})

    @jax.jit
    def run(keys: Any) -> Any:
        state = kernel.init(jax.random.key(0), target, {"z": jnp.zeros(2, jnp.int32)})
        return jax.lax.scan(lambda s, k: kernel.step(k, target, s), state, keys)

    state, infos = run(jax.random.split(key, 30))
    assert int(state.position["z"][1]) == 0
    assert int(state.status) == int(Status.DIVERGENT)
    assert bool(infos.divergent[0]) or name == "conditional"
    assert np.isfinite(infos.log_density).all()


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_infinite_density_freezes_where_it_is(shuffle: bool, key: Any) -> None:
    target = Target(lambda p: _edge(jnp.inf, p), supports={"z": _bits(2)})
    kernel = gibbs(shuffle=shuffle)
    state = kernel.init(jax.random.key(0), target, {"z": jnp.zeros(2, jnp.int32)})
    key, key_next = jax.random.split(key)
    step = jax.jit(lambda k, s: kernel.step(k, target, s))
    frozen, info = step(key, state)
    assert int(info.status) == int(Status.POSINF_LOG_WEIGHT)
    assert int(frozen.position["z"][1]) == 0
    after, info = step(key_next, frozen)
    np.testing.assert_array_equal(after.position["z"], frozen.position["z"])
    assert int(info.status) == 0
    assert float(info.acceptance_rate) == 0


def test_starts_without_probability_are_flagged() -> None:
    target = Target(lambda p: _edge(-jnp.inf, p), supports={"z": _bits(2)})
    for values in ([0, 1], [0, 2], [-1, 0]):
        state = gibbs().init(jax.random.key(0), target, {"z": jnp.asarray(values)})
        assert int(state.status) == int(Status.NONFINITE_INIT)
    assert int(gibbs().init(jax.random.key(0), target, {"z": jnp.asarray([1, 0])}).status) == 0


def test_from_density_zero_it_goes_where_there_is_some(key: Any) -> None:
    # As a particle of likelihood zero does, at the first temperature over zero.
    target = Target(lambda p: _edge(-jnp.inf, p), supports={"z": _bits(2)})
    state = gibbs().init(jax.random.key(0), target.at_temperature(0.0), {"z": jnp.asarray([0, 1])})
    assert int(state.status) == 0
    new, _ = jax.jit(lambda k: gibbs().step(k, target, state))(key)
    assert int(new.position["z"][1]) == 0
    assert float(new.point.log_likelihood) == 0.5 * int(new.position["z"][0])


def test_the_present_value_is_not_evaluated_again(key: Any) -> None:
    target = Target(
        lambda p: jnp.arccosh(2.0 + jnp.sum(p["z"]).astype(float)), supports={"z": IntegerInterval(0, 3, (5,))}
    )
    state = gibbs().init(jax.random.key(0), target, {"z": jnp.zeros(5, jnp.int32)})
    program = str(jax.make_jaxpr(lambda k: gibbs().step(k, target, state))(key))
    # Once in the loop over the elements, for three of four values.
    assert program.count("acosh") == 1
    assert "f32[3] = acosh" in program


def test_dtypes_are_kept_and_one_value_is_no_choice(key: Any, x64: None) -> None:
    supports = {"z": IntegerInterval(2, 2, (3,)), "flag": IntegerInterval(0, 1)}
    for dtype in (jnp.float32, jnp.float64):
        density = lambda p, d=dtype: jnp.where(p["flag"], jnp.asarray(0.3, d), 0)  # noqa: E731
        target = Target(density, density, supports=supports)
        position = {"z": jnp.full(3, 2, jnp.int16), "flag": jnp.asarray(True)}
        state = gibbs().init(jax.random.key(0), target, position)
        new, info = jax.eval_shape(lambda k, s, t=target: gibbs().step(k, t, s), key, state)
        assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, state)
        assert info.acceptance_rate.dtype == info.log_density.dtype == new.point.log_likelihood.dtype == dtype
    alone = Target(lambda p: jnp.zeros(()), supports={"z": supports["z"]})
    state = gibbs().init(jax.random.key(0), alone, {"z": jnp.full(3, 2)})
    new, info = jax.jit(lambda k: gibbs().step(k, alone, state))(key)
    np.testing.assert_array_equal(new.position["z"], 2)
    assert float(info.moved) == 0


def test_what_cannot_be_swept_is_named() -> None:
    target = finite()
    start = jax.random.key(0)
    with pytest.raises(TypeError, match=r"position\['a'\] is float32: run it on the discrete sites with `on_sites"):
        gibbs().init(start, target, {"a": jnp.zeros(())})
    with pytest.raises(ValueError, match=r"needs the support of site 'c', .* only those of \['a', 'b'\]"):
        gibbs().init(start, target, {"c": jnp.zeros((), jnp.int32)})
    with pytest.raises(ValueError, match=r"site 'b' has shape \(3,\), but its support has \(1,\)"):
        gibbs().init(start, target, {"a": jnp.asarray(0), "b": jnp.zeros(3, jnp.int32)})
    with pytest.raises(TypeError, match="dicts of sites"):
        gibbs().init(start, target, jnp.zeros(3, jnp.int32))
    position = jax.tree.map(jnp.asarray, STATES[0])
    for bad, words in (
        (lambda v: {"a": jnp.zeros(2)}, r"gave \['a'\], but must give a dict with the sites \['a', 'b'\]"),
        (lambda v: {"a": jnp.zeros(2), "b": jnp.zeros(2)}, r"shape \(2,\) for site 'b', .* of shape \(1, 3\)"),
    ):
        kernel = conditional_gibbs(bad)
        with pytest.raises(ValueError, match=words):
            kernel.step(jax.random.key(1), target, kernel.init(start, target, position))


def test_bounds_are_checked() -> None:
    cases: tuple[Any, ...] = (
        ((0.0, 2), TypeError, "`lower` must be an integer"),
        ((3, 2), ValueError, "`upper` is 2 and below `lower`, 3"),
        (([0, 0], 2, (3,)), ValueError, "broadcast"),
    )
    for bad, error, words in cases:
        with pytest.raises(error, match=words):
            IntegerInterval(*bad)
    with pytest.raises(TypeError, match="`upper` is traced"):
        jax.jit(lambda n: IntegerInterval(0, n).upper)(3)
    assert IntegerInterval([0, 1], [4, 2]).num_values == 5
    assert finite().at_temperature(0.5).supports.keys() == SUPPORTS.keys()
