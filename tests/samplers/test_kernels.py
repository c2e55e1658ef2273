"""Laws and faults that hold for every Markov kernel: one registry, one suite.

Planted bugs that these tests must catch (`test_stationarity_catches_planted_bugs`): the acceptance ratio upside down,
everything accepted, the auxiliary density left out, the auxiliary density with the wrong sign, a proposal that
drifts, a leapfrog whose last half step is missing.

The stationarity test starts NUM chains from exact draws and compares each coordinate after STEPS steps with its law.
By the inequality of Dvoretzky, Kiefer and Wolfowitz, sup |F_n - F| > BOUND has probability at most 1e-7 per
coordinate, so under 1e-6 a kernel; a law that differs by twice BOUND is missed with at most the same probability.
"""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.special import gammainc

from probinf.core._kernel import point_log_density
from probinf.core._status import Status, is_fatal
from probinf.core._target import Target
from probinf.samplers import _hmc, _mhg, _random_walk
from probinf.samplers._adjusted_mclmc import adjusted_mclmc
from probinf.samplers._barker import barker
from probinf.samplers._chees import chees_hmc
from probinf.samplers._combine import cycle, repeat
from probinf.samplers._elliptical_slice import elliptical_slice
from probinf.samplers._hmc import hmc
from probinf.samplers._mhg import mhg, relocate
from probinf.samplers._nuts import nuts
from probinf.samplers._on_sites import on_sites
from probinf.samplers._random_walk import random_walk
from probinf.samplers._slice import slice_sampling
from tests._slow import slow_after

NUM, STEPS = 30_000, 6
BOUND = math.sqrt(math.log(2 / 1e-7) / (2 * NUM))
SHAPE = 1.5


class Scaling(eqx.Module):
    """(x, v) -> (x e^v, -v) in every coordinate: log-determinant d v - log 1."""

    def __call__(self, target: Target, state: Any, v: Any) -> Any:
        position = jax.tree.map(lambda x: x * jnp.exp(v), state.position)
        size = sum(leaf.size for leaf in jax.tree.leaves(position))
        return relocate(target, state, position), -v, size * v


class ScalarNormal(eqx.Module):
    scale: Any = 1.0

    def sample(self, key: Any, target: Target, state: Any) -> Any:
        return self.scale * jax.random.normal(key, dtype=state.point.log_prior.dtype)

    def log_prob(self, target: Target, state: Any, v: Any) -> Any:
        return -0.5 * (v / self.scale) ** 2


ALL_KERNELS = {
    "random_walk": lambda: random_walk(0.9),
    "random_walk_diagonal": lambda: random_walk(1.0, covariance=jnp.array([1.0, 0.5, 2.0])),
    "random_walk_dense": lambda: random_walk(1.0, covariance=jnp.eye(3) + 0.3, check=True),
    "hmc": lambda: hmc(0.4, 6),
    "hmc_fixed_length": lambda: hmc(0.4, 4, jitter=False),
    "hmc_diagonal": lambda: hmc(0.3, 5, inverse_mass_matrix=jnp.array([1.0, 0.5, 2.0])),
    "hmc_dense": lambda: hmc(0.4, 4, inverse_mass_matrix=jnp.eye(3) + 0.3, check=True),
    "nuts": lambda: nuts(0.4, max_depth=4),
    "chees_hmc": lambda: chees_hmc(0.4, 2.0),
    "barker": lambda: barker(0.9),
    "barker_dense": lambda: barker(0.9, inverse_mass_matrix=jnp.eye(3) + 0.3, check=True),
    "slice_sampling": lambda: slice_sampling(2.0),
    "slice_sampling_bounds": lambda: slice_sampling(0.7, directions="coordinates", max_expansions=3, max_shrinks=2),
    "elliptical_slice": lambda: elliptical_slice(jnp.array([0.2, 0.5, 0.3]), jnp.eye(3) + 0.3),
    "adjusted_mclmc": lambda: adjusted_mclmc(1.2, 3),
    "adjusted_mclmc_dense": lambda: adjusted_mclmc(1.0, 3, inverse_mass_matrix=jnp.eye(3) + 0.3, check=True),
    "repeat": lambda: repeat(random_walk(0.9), 2),
    "on_sites": lambda: cycle(on_sites(hmc(0.4, 4), ["a"]), on_sites(random_walk(0.9), ["b"])),
    "scaling": lambda: mhg(ScalarNormal(), Scaling(), check=True),
}
with_every_kernel = pytest.mark.parametrize("name", ALL_KERNELS)
# Where the matrix of the kernel cannot matter: one kernel of each kind.
KINDS = (
    "random_walk",
    "hmc",
    "nuts",
    "chees_hmc",
    "scaling",
    "barker",
    "slice_sampling",
    "elliptical_slice",
    "adjusted_mclmc",
)
OF_MANY = ("nuts", "slice_sampling", "elliptical_slice")  # whose rates count more than one candidate
# The parts of the others are those of these.
RARE = ("chees_hmc", "barker", "elliptical_slice", "adjusted_mclmc")
with_every_kind = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in KINDS]
)


def log_gamma(position: Any) -> Any:
    return SHAPE * position["a"] - jnp.exp(position["a"])


def gumbel(position: Any) -> Any:
    return jnp.sum(-position["b"] - jnp.exp(-position["b"]))


SKEWED = Target(log_gamma, gumbel)


def exact_draws(key: Any, num: int) -> dict[str, Any]:
    key_a, key_b = jax.random.split(key)
    return {"a": jnp.log(jax.random.gamma(key_a, SHAPE, (num,))), "b": jax.random.gumbel(key_b, (num, 2))}


def run_from_uncompiled(key: Any, kernel: Any, target: Target, positions: Any, num_steps: int) -> Any:
    num = jax.tree.leaves(positions)[0].shape[0]
    states = jax.vmap(lambda x: kernel.init(jax.random.key(0), target, x))(positions)

    def body(i: Any, states: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, i), num)
        return jax.vmap(lambda k, s: kernel.step(k, target, s)[0])(keys, states)

    return jax.lax.fori_loop(0, num_steps, body, states)


run_from = eqx.filter_jit(run_from_uncompiled)


def largest_discrepancy(key: Any, kernel: Any, run: Any = run_from) -> float:
    """sup |F_n - F|, the largest over coordinates, after STEPS steps from exact draws."""
    key_start, key_run = jax.random.split(key)
    states = run(key_run, kernel, SKEWED, exact_draws(key_start, NUM), STEPS)
    assert not np.any(states.status & int(Status.NONFINITE_INIT | Status.BAD_INVOLUTION))
    uniforms = [gammainc(SHAPE, jnp.exp(states.position["a"])), *jnp.exp(-jnp.exp(-states.position["b"].T))]
    ranks = np.arange(1, NUM + 1) / NUM
    return max(float(np.max(np.abs(np.sort(np.asarray(u, np.float64)) - ranks))) for u in uniforms)


@with_every_kernel
def test_law_of_kernels_target_is_invariant(name: str, key: Any) -> None:
    assert largest_discrepancy(key, ALL_KERNELS[name]()) < BOUND


def _plant_upside_down(patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(_mhg, "choose", lambda key, choice, ratio: choice.sample(key, -ratio))
    return random_walk(0.9)


def _plant_accept_all(patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(_mhg, "choose", lambda key, choice, ratio: choice.sample(key, jnp.zeros_like(ratio)))
    return hmc(0.8, 4)


def _plant_no_auxiliary_density(patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(_hmc.MomentumLaw, "log_prob", lambda self, target, state, v: jnp.zeros(()))
    return hmc(0.8, 4)


def _plant_wrong_sign(patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(_hmc.MomentumLaw, "log_prob", lambda self, target, state, v: 0.5 * jnp.sum(v.z * v.z))
    return hmc(0.8, 4)


def _plant_drift(patch: pytest.MonkeyPatch) -> Any:
    normal = _random_walk.StandardNormal.sample
    patch.setattr(_random_walk.StandardNormal, "sample", lambda self, *args: normal(self, *args) + 0.3)
    return random_walk(0.9)


def _plant_missing_half_step(patch: pytest.MonkeyPatch) -> Any:
    leapfrog = _hmc.Leapfrog.__call__

    def broken(self: Any, target: Target, state: Any, v: Any) -> Any:
        new, back, log_det = leapfrog(self, target, state, v)
        gradient, _ = ravel_pytree(_hmc.point_gradient(target, new.point))
        return new, _hmc.Momentum(back.z + 0.5 * self.step_size * gradient, back.num_steps), log_det

    patch.setattr(_hmc.Leapfrog, "__call__", broken)
    return hmc(0.8, 4)


PLANTED = [
    _plant_upside_down,
    _plant_accept_all,
    _plant_no_auxiliary_density,
    _plant_wrong_sign,
    _plant_drift,
    _plant_missing_half_step,
]


@pytest.mark.parametrize("plant", PLANTED)
def test_stationarity_catches_planted_bugs(plant: Any, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = plant(monkeypatch)

    # Compiled afresh: a cached program would not have the bug.
    @eqx.filter_jit
    def run(*args: Any) -> Any:
        return run_from_uncompiled(*args)

    assert largest_discrepancy(key, kernel, run) > BOUND


def _edge(kind: str, position: Any) -> Any:
    """Standard normal, but not a density where `a` is over 1."""
    x = position["a"]
    normal = -0.5 * x * x - 0.5 * jnp.sum(position["b"] ** 2)
    return jnp.where(x > 1.0, float(kind), normal)


def edge_target(kind: str) -> Target:
    return Target(jax.tree_util.Partial(functools.partial(_edge, kind)))


def position_at(x: float, dtype: Any = jnp.float32) -> dict[str, Any]:
    return {"a": jnp.asarray(x, dtype), "b": jnp.asarray([0.3, -0.2], dtype)}


@with_every_kind
@pytest.mark.parametrize("kind", slow_after(1, ["nan", "inf", "-inf"]))
def test_start_without_finite_density_is_flagged_before_the_first_step(name: str, kind: str, key: Any) -> None:
    kernel, target = ALL_KERNELS[name](), edge_target(kind)
    state = kernel.init(key, target, position_at(2.0))
    assert int(state.status) & int(Status.NONFINITE_INIT)
    assert bool(is_fatal(state.status))
    after, info = kernel.step(jax.random.key(1), target, state)
    assert float(after.position["a"]) == 2.0
    assert float(info.acceptance_rate) == 0.0


@pytest.mark.parametrize("name", [n for n in ALL_KERNELS if n.startswith("hmc")])
def test_start_with_nan_gradient_is_flagged(name: str, key: Any) -> None:
    target = Target(lambda x: -jnp.sqrt(jnp.abs(x["a"])) - jnp.sum(x["b"] ** 2))
    assert int(ALL_KERNELS[name]().init(key, target, position_at(0.0)).status) == int(Status.NONFINITE_INIT)


@with_every_kind
def test_nan_region_is_never_entered_and_flagged(name: str, key: Any) -> None:
    target = edge_target("nan")
    positions = jax.tree.map(lambda a: jnp.broadcast_to(a, (50, *a.shape)), position_at(0.9))
    states = run_from(key, ALL_KERNELS[name](), target, positions, 20)
    assert bool(jnp.all(states.position["a"] <= 1.0))
    assert bool(jnp.all(jnp.isfinite(states.point.log_likelihood)))
    assert bool(jnp.any(states.status & int(Status.DIVERGENT)))
    assert not bool(jnp.any(is_fatal(states.status)))


@pytest.mark.parametrize("name", slow_after(3, KINDS))
def test_infinite_density_freezes_the_chain_at_its_last_good_state(name: str, key: Any) -> None:
    target, kernel = edge_target("inf"), ALL_KERNELS[name]()
    positions = jax.tree.map(lambda a: jnp.broadcast_to(a, (50, *a.shape)), position_at(0.9))
    key_one, key_two = jax.random.split(key)
    states = run_from(key_one, kernel, target, positions, 20)
    frozen = np.asarray(is_fatal(states.status))
    assert frozen.any()
    assert np.all(np.asarray(states.status)[frozen] & int(Status.POSINF_LOG_WEIGHT))
    assert np.all(np.isfinite(states.point.log_likelihood))
    step = jax.jit(jax.vmap(lambda k, s: kernel.step(k, target, s)))
    after, info = step(jax.random.split(key_two, 50), states)
    np.testing.assert_array_equal(np.asarray(after.position["a"])[frozen], np.asarray(states.position["a"])[frozen])
    assert not np.asarray(info.acceptance_rate)[frozen].any()
    assert not np.asarray(info.status)[frozen].any()


@with_every_kind
def test_a_state_of_density_zero_accepts_any_possible_proposal(name: str, key: Any) -> None:
    # As in tempering: a particle of likelihood zero has a finite density at temperature zero only.
    cold = edge_target("-inf")
    kernel = ALL_KERNELS[name]()
    position = {"a": jnp.float32(1.01), "b": jnp.array([0.3, -0.2])}
    state = kernel.init(key, cold.at_temperature(0.0), position)
    assert int(state.status) == 0
    step = jax.jit(lambda k: kernel.step(k, cold, state))
    results = [step(jax.random.key(i)) for i in range(30)]
    inside = [s for s, _ in results if float(s.position["a"]) != float(position["a"])]
    assert inside
    assert all(float(s.position["a"]) <= 1.0 for s in inside)
    rates = {float(i.acceptance_rate) for _, i in results}
    assert max(rates) == 1
    assert rates <= {0.0, 1.0} or name in OF_MANY


@pytest.mark.parametrize("name", slow_after(3, KINDS))
def test_statuses_and_draws_agree_in_eager_jit_vmap_and_scan(name: str) -> None:
    kernel, target = ALL_KERNELS[name](), edge_target("nan")
    starts = [position_at(0.5), position_at(2.0)]

    def one(key: Any, position: Any) -> Any:
        return kernel.step(key, target, kernel.init(jax.random.key(1), target, position))

    def keys() -> Any:
        return jax.random.split(jax.random.key(3), 2)

    eager = [one(k, x) for k, x in zip(keys(), starts, strict=True)]
    jitted = [jax.jit(one)(k, x) for k, x in zip(keys(), starts, strict=True)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *starts)
    batched = jax.vmap(one)(keys(), stacked)
    _, scanned = jax.lax.scan(lambda c, kx: (c, one(*kx)), None, (keys(), stacked))
    for i in range(2):
        for other in (jitted[i], *(jax.tree.map(lambda a, i=i: a[i], tree) for tree in (batched, scanned))):
            assert int(other[0].status) == int(eager[i][0].status)
            for a, b in zip(jax.tree.leaves(eager[i]), jax.tree.leaves(other), strict=True):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)


@with_every_kernel
def test_dtypes_are_those_of_the_position(name: str, key: Any, x64: None) -> None:
    kernel = ALL_KERNELS[name]()
    for dtype in (jnp.float32, jnp.float64):
        position = position_at(0.1, dtype)
        state = kernel.init(jax.random.key(0), SKEWED, position)
        new, info = jax.eval_shape(lambda k, s: kernel.step(k, SKEWED, s), jax.random.key(1), state)
        assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, state)
        assert {a.dtype for a in jax.tree.leaves(new.point)} == {jnp.dtype(dtype)}
        assert info.log_density.dtype == dtype


@with_every_kernel
def test_cached_point_is_what_a_fresh_evaluation_gives(name: str, key: Any) -> None:
    key_start, key_run = jax.random.split(key)
    kernel = ALL_KERNELS[name]()
    states = run_from(key_run, kernel, SKEWED, exact_draws(key_start, 20), 10)
    fresh = jax.vmap(lambda x: kernel.init(jax.random.key(0), SKEWED, x))(states.position)
    for a, b in zip(jax.tree.leaves(states.point), jax.tree.leaves(fresh.point), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@with_every_kind
def test_tempered_target_needs_no_new_state(name: str, key: Any) -> None:
    kernel = ALL_KERNELS[name]()
    state = kernel.init(key, SKEWED, position_at(0.1))
    tempered = SKEWED.at_temperature(0.3)
    again = kernel.init(jax.random.key(0), tempered, position_at(0.1))
    expected = kernel.step(jax.random.key(2), tempered, again)
    found = kernel.step(jax.random.key(2), tempered, state)
    assert float(point_log_density(tempered, state.point)) == float(point_log_density(tempered, again.point))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@with_every_kernel
@pytest.mark.no_key_reuse
def test_step_lowers_for_every_platform(name: str) -> None:
    kernel = ALL_KERNELS[name]()
    state = kernel.init(jax.random.key(0), SKEWED, position_at(0.1))

    def step(data: Any, state: Any) -> Any:
        return kernel.step(jax.random.wrap_key_data(data), SKEWED, state)

    leaves, structure = jax.tree.flatten(state)
    flat = jax.jit(lambda data, *leaves: jax.tree.leaves(step(data, jax.tree.unflatten(structure, leaves))))
    exported = jax.export.export(flat, platforms=["cpu", "cuda", "tpu"])(jnp.zeros(2, jnp.uint32), *leaves)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
