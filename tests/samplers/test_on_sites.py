"""`on_sites`: exact matrices of parts, fresh gradients, models with discrete and continuous sites end to end.

Planted bugs that must be caught: a gradient of the part from before the other sites moved, a gradient of the whole from
before the part moved (`test_stale_gradients_are_caught`); fixed sites that are left out of the target
(`test_a_target_without_the_fixed_sites_is_caught`).
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import gammainc

from probinf.core import IntegerInterval, Status, draw_marginalised, marginalise
from probinf.core._kernel import Point
from probinf.core._target import Target
from probinf.samplers import _on_sites
from probinf.samplers._combine import cycle
from probinf.samplers._conditional_gibbs import conditional_gibbs
from probinf.samplers._gibbs import gibbs
from probinf.samplers._hmc import hmc
from probinf.samplers._mhg import MHGState
from probinf.samplers._nuts import nuts
from probinf.samplers._on_sites import on_sites
from probinf.samplers._random_walk import random_walk
from probinf.samplers._sample import sample
from tests._compilations import COMPILED
from tests._slow import slow_after
from tests.samplers._trans_dimensional import balance_errors, transition_matrix, z_scores

# On a finite space.

WEIGHTS = np.random.default_rng(3).gamma(0.8, size=(2, 3)) + 0.05
PAIRS = [{"a": np.int32(a), "b": np.int32(b)} for a in range(2) for b in range(3)]


def pairs() -> list[Any]:
    return jax.tree.map(jnp.asarray, PAIRS)


class Table(eqx.Module):
    weights: Any

    def __call__(self, position: Any) -> Any:
        return jnp.log(self.weights[position["a"], position["b"]])


def finite() -> Target:
    return Target(Table(jnp.asarray(WEIGHTS)), supports={"a": IntegerInterval(0, 1), "b": IntegerInterval(0, 2)})


def test_parts_are_conditionals_and_combine(x64: None) -> None:
    first = transition_matrix(on_sites(gibbs(), ["a"]), finite(), pairs())
    second = transition_matrix(on_sites(gibbs(), ["b"]), finite(), pairs())
    expected = np.zeros((6, 6))
    for i, p in enumerate(PAIRS):
        for j, q in enumerate(PAIRS):
            if p["b"] == q["b"]:
                expected[i, j] = WEIGHTS[int(q["a"]), int(q["b"])] / WEIGHTS[:, int(q["b"])].sum()
    np.testing.assert_allclose(first, expected, atol=1e-12)
    kernels = on_sites(gibbs(), ["a"]), on_sites(gibbs(), ["b"])
    both = transition_matrix(cycle(*kernels), finite(), pairs())
    np.testing.assert_allclose(both, first @ second, atol=1e-12)
    assert max(balance_errors(both, WEIGHTS.ravel())[:2]) < 1e-12


def test_a_target_without_the_fixed_sites_is_caught(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _on_sites._PutBack,
        "__call__",
        lambda self, part: self.function({**jax.tree.map(jnp.zeros_like, self.fixed), **part}),
    )
    found = transition_matrix(cycle(on_sites(gibbs(), ["a"]), on_sites(gibbs(), ["b"])), finite(), pairs())
    assert balance_errors(found, WEIGHTS.ravel())[1] > 1e-3


# On numbers: y is the log of a gamma variable, x given y is skewed about it.

SHAPE = 1.5
NUM, STEPS = 20_000, 6
# Dvoretzky, Kiefer, Wolfowitz: each of the two coordinates is over it with probability at most 1e-7.
BOUND = math.sqrt(math.log(2 / 1e-7) / (2 * NUM))


def log_gamma(p: Any) -> Any:
    return SHAPE * p["y"] - jnp.exp(p["y"])


def log_gumbel(p: Any) -> Any:
    away = 2 * (p["x"] - p["y"])
    return -away - jnp.exp(-away)


SKEWED = Target(log_gumbel, log_gamma)


def exact_draws(key: Any, num: int) -> dict[str, Any]:
    key_y, key_x = jax.random.split(key)
    y = jnp.log(jax.random.gamma(key_y, SHAPE, (num,)))
    return {"x": y + 0.5 * jax.random.gumbel(key_x, (num,)), "y": y}


def largest_discrepancy(key: Any, kernel: Any) -> float:
    key_start, key_run = jax.random.split(key)

    @jax.jit
    def run(key: Any, positions: Any) -> Any:
        states = jax.vmap(lambda p: kernel.init(jax.random.key(0), SKEWED, p))(positions)

        def body(i: Any, states: Any) -> Any:
            keys = jax.random.split(jax.random.fold_in(key, i), NUM)
            return jax.vmap(lambda k, s: kernel.step(k, SKEWED, s)[0])(keys, states)

        return jax.lax.fori_loop(0, STEPS, body, states).position

    found = run(key_run, exact_draws(key_start, NUM))
    uniforms = [gammainc(SHAPE, jnp.exp(found["y"])), jnp.exp(-jnp.exp(-2 * (found["x"] - found["y"])))]
    ranks = np.arange(1, NUM + 1) / NUM
    return max(float(np.max(np.abs(np.sort(np.asarray(u, np.float64)) - ranks))) for u in uniforms)


# In the second the state has gradients, of the whole, for a kernel on all sites.
COMBINED = {
    "parts": lambda: cycle(on_sites(hmc(0.5, 3), ["x"]), on_sites(random_walk(1.0), ["y"])),
    "part and whole": lambda: cycle(hmc(0.4, 2), on_sites(random_walk(1.0), ["y"])),
    "nuts": lambda: cycle(on_sites(nuts(0.5, max_depth=3), ["x"]), on_sites(nuts(0.5, max_depth=3), ["y"])),
}


@pytest.mark.parametrize("name", COMBINED)
def test_law_of_parts_the_whole_is_invariant(name: str, key: Any) -> None:
    assert largest_discrepancy(key, COMBINED[name]()) < BOUND


@pytest.mark.parametrize("name", slow_after(1, COMBINED))
def test_a_state_is_what_a_fresh_start_at_its_position_gives(name: str, key: Any) -> None:
    assert differences(COMBINED[name](), key) < 1e-5


def differences(kernel: Any, key: Any) -> float:
    """Of the cache after steps from a fresh evaluation, and of the next step from it from one of a fresh start."""

    @jax.jit
    def pairs(key_run: Any, key_next: Any) -> Any:
        start = kernel.init(jax.random.key(0), SKEWED, {"x": jnp.asarray(0.4), "y": jnp.asarray(-0.3)})
        keys = jax.random.split(key_run, 5)
        state, _ = jax.lax.scan(lambda s, k: (kernel.step(k, SKEWED, s)[0], None), start, keys)
        fresh = kernel.init(jax.random.key(0), SKEWED, state.position)
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, fresh)
        words = jax.random.key_data(key_next)
        step = lambda s: kernel.step(jax.random.wrap_key_data(words), SKEWED, s)[0].point  # noqa: E731
        return both.point, jax.lax.map(step, both)

    found = jax.tree.leaves(pairs(*jax.random.split(key)))
    return max(float(jnp.max(jnp.abs(leaf[0] - leaf[1]))) for leaf in found)


def _plant_stale_whole(patch: pytest.MonkeyPatch) -> str:
    def whole(target: Target, before: Point, part: Point) -> Point:
        return Point(before.position | part.position, part.log_prior, part.log_likelihood, *before[3:])

    patch.setattr(_on_sites, "_whole", whole)
    return "part and whole"


def _plant_stale_part(patch: pytest.MonkeyPatch) -> str:
    """The gradient of the part with the other sites where they started."""
    start = _on_sites.OnSites._start

    def stale(self: Any, key: Any, conditional: Any, part: Any) -> MHGState:
        old = jax.tree.map(lambda a: jnp.full_like(a, -0.3), conditional.log_prior.fixed)
        moved = eqx.tree_at(lambda t: (t.log_prior.fixed, t.log_likelihood.fixed), conditional, (old, old))
        return start(self, key, moved, part)

    patch.setattr(_on_sites.OnSites, "_start", stale)
    return "parts"


@pytest.mark.parametrize("plant", [_plant_stale_whole, _plant_stale_part])
def test_stale_gradients_are_caught(plant: Any, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = plant(monkeypatch)
    if plant is _plant_stale_whole:
        assert differences(COMBINED[name](), key) > 1e-3
    else:
        assert largest_discrepancy(key, COMBINED[name]()) > BOUND


def test_nothing_is_evaluated_for_what_is_known(key: Any) -> None:
    # An operation that stays one in the compiled program, so that it can be counted there.
    target = Target(lambda p: jnp.arctan2(p["x"], 1.0 + p["y"] ** 2))
    position = {"x": jnp.asarray(0.4), "y": jnp.asarray(-0.3)}

    def count(kernel: Any) -> int:
        state = kernel.init(jax.random.key(0), target, position)
        program = jax.jit(lambda k, s: kernel.step(k, target, s)[0]).lower(jax.random.key(1), state)
        return str(program.compile().as_text()).count(" atan2(")

    assert count(on_sites(random_walk(1.0), ["x"])) == count(random_walk(1.0)) == 1


def test_the_temperature_can_change_between_steps(key: Any) -> None:
    kernel = COMBINED["parts"]()
    position = {"x": jnp.asarray(0.4), "y": jnp.asarray(-0.3)}
    tempered = SKEWED.at_temperature(0.3)
    step = jax.jit(lambda s, k: kernel.step(k, tempered, s))
    one = step(kernel.init(jax.random.key(0), SKEWED, position), key)
    two = step(kernel.init(jax.random.key(0), tempered, position), jax.random.clone(key))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_faults_are_those_of_the_inner_kernel(key: Any) -> None:
    target = Target(
        lambda p: jnp.where(p["x"] > 1, jnp.nan, jnp.where(p["y"] > 1, jnp.inf, -(p["x"] ** 2) - p["y"] ** 2))
    )
    kernel = cycle(on_sites(random_walk(3.0), ["x"]), on_sites(random_walk(3.0), ["y"]))

    @jax.jit
    def run(key: Any) -> Any:
        state = kernel.init(jax.random.key(0), target, {"x": jnp.zeros(()), "y": jnp.zeros(())})
        return jax.lax.fori_loop(0, 60, lambda i, s: kernel.step(jax.random.fold_in(key, i), target, s)[0], state)

    state = run(key)
    assert int(state.status) == int(Status.DIVERGENT | Status.POSINF_LOG_WEIGHT)
    assert float(state.position["y"]) <= 1
    bad = kernel.init(jax.random.key(0), target, {"x": jnp.asarray(2.0), "y": jnp.zeros(())})
    assert int(bad.status) == int(Status.NONFINITE_INIT)


def test_arguments_are_checked() -> None:
    for sites, error, words in (
        ([], ValueError, "`sites` is empty"),
        (["x", "x"], ValueError, "names a site twice"),
        ("xy", TypeError, r"must be a sequence of names, but is 'xy'"),
    ):
        with pytest.raises(error, match=words):
            on_sites(random_walk(), sites)
    start = jax.random.key(0)
    with pytest.raises(ValueError, match=r"`sites` has \['q'\], but the sites of the position are \['x', 'y'\]"):
        on_sites(random_walk(), ["q"]).init(start, SKEWED, {"x": jnp.zeros(()), "y": jnp.zeros(())})
    with pytest.raises(TypeError, match="positions that are dicts of sites"):
        on_sites(random_walk(), ["x"]).init(start, SKEWED, jnp.zeros(3))
    with pytest.raises(TypeError, match=r"HMC needs floating-point positions, but position\['a'\] is int32"):
        on_sites(hmc(), ["a"]).init(start, finite(), pairs()[0])


# A mixture model: half-known means, unknown weight and shift, four data.

Y = np.array([-1.4, 0.9, 2.6, 0.2], np.float32)


def mixture_model(y: Any) -> None:
    weight = numpyro.sample("weight", dist.Beta(2.0, 3.0))
    shift = numpyro.sample("shift", dist.Normal(1.0, 1.0))
    with numpyro.plate("data", y.shape[0]):
        z = numpyro.sample("z", dist.Bernoulli(weight))
        numpyro.sample("y", dist.Normal(jnp.asarray(z, float) * shift - 0.5, 0.8), obs=y)


def exact_moments() -> np.ndarray:
    """Means of weight and shift, and of each z: z summed out, the rest by quadrature."""
    weight, shift = np.meshgrid(np.linspace(0, 1, 401)[1:-1], np.linspace(-5, 7, 601), indexing="ij")
    normal = lambda x, mean, sd: np.exp(-0.5 * ((x - mean) / sd) ** 2)  # noqa: E731
    one = [weight * normal(y, shift - 0.5, 0.8) for y in Y]
    zero = [(1 - weight) * normal(y, -0.5, 0.8) for y in Y]
    density = (
        weight
        * (1 - weight) ** 2
        * normal(shift, 1.0, 1.0)
        * np.prod([a + b for a, b in zip(one, zero, strict=True)], axis=0)
    )
    shares = [a / (a + b) for a, b in zip(one, zero, strict=True)]
    return np.array([(f * density).sum() / density.sum() for f in (weight, shift, *shares)])


class Shares(eqx.Module):
    """The conditional law of the assignments."""

    y: Any

    def __call__(self, values: Any) -> dict[str, Any]:
        means = jnp.stack([jnp.zeros(()), values["shift"]]) - 0.5
        weight = values["weight"]
        logs = jnp.log(jnp.stack([1 - weight, weight]))
        return {"z": logs[None] - 0.5 * ((self.y[:, None] - means[None]) / 0.8) ** 2}


def seen(samples: Any) -> np.ndarray:
    """[draws, chains, quantities]."""
    columns = [samples["weight"][..., None], samples["shift"][..., None], samples["z"]]
    return np.swapaxes(np.concatenate([np.asarray(c, np.float64) for c in columns], axis=-1), 0, 1)


OPTIONS: dict[str, Any] = {"num_samples": 250, "num_warmup": 50, "num_chains": 100}


def kernel_of_parts(discrete: Any) -> Any:
    return cycle(on_sites(hmc(0.4, 5), ["weight", "shift"]), on_sites(discrete, ["z"]))


@pytest.mark.numpyro
@pytest.mark.slow
def test_a_cycle_of_parts_has_the_exact_posterior(key: Any) -> None:
    key, key_again = jax.random.split(key)
    draws = sample(key, kernel_of_parts(gibbs()), Target.from_numpyro(mixture_model, Y), **OPTIONS)
    assert draws.samples["z"].shape == (100, 250, 4)
    # 6 means of 100 independent chains; |t| of 99 degrees is over 6.5 with probability 4e-9.
    assert np.abs(z_scores(seen(draws.samples)[50:], exact_moments())).max() < 6.5
    before = len(COMPILED)
    again = sample(key_again, kernel_of_parts(gibbs()), Target.from_numpyro(mixture_model, Y + 1), **OPTIONS)
    assert len(COMPILED) == before  # new data of the same shape
    assert again.samples["z"].mean() > draws.samples["z"].mean()


@pytest.mark.numpyro
@pytest.mark.slow
def test_a_cycle_with_given_conditionals_has_the_exact_posterior(key: Any) -> None:
    kernel = kernel_of_parts(conditional_gibbs(Shares(jnp.asarray(Y))))
    draws = sample(key, kernel, Target.from_numpyro(mixture_model, Y), **OPTIONS)
    assert draws.info["acceptance_rates"][..., 1].min() > 1 - 1e-4
    assert np.abs(z_scores(seen(draws.samples)[50:], exact_moments())).max() < 6.5


@pytest.mark.numpyro
@pytest.mark.slow
def test_the_marginal_target_has_the_same_posterior(key: Any) -> None:
    target = Target.from_numpyro(mixture_model, Y)
    key_run, key_draw = jax.random.split(key)
    draws = sample(key_run, hmc(0.4, 5), marginalise(target, ["z"]), **OPTIONS)

    def restored(key: Any, position: Any) -> Any:
        return target.constrain(draw_marginalised(key, target, ["z"], position))

    values = jax.jit(jax.vmap(jax.vmap(restored)))(jax.random.split(key_draw, (100, 250)), draws.samples)
    assert np.abs(z_scores(seen(values)[50:], exact_moments())).max() < 6.5


@pytest.mark.numpyro
def test_gradient_kernels_refuse_discrete_sites(key: Any) -> None:
    target = Target.from_numpyro(mixture_model, Y)
    with pytest.raises(
        TypeError, match=r"HMC needs floating-point positions, but position\['z'\] is int32.*`on_sites`"
    ):
        sample(key, hmc(), target, num_samples=5)
