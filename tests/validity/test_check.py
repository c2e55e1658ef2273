"""`validity.check`: sound kernels pass, broken ones of many kinds do not, and bad arguments say what is needed.

Planted bugs: everything accepted, a drifting proposal that hides it, a density looked up at the wrong point, a stuck
kernel, a NaN target, a key used twice, a wrong gradient. Sound kernels fail with probability 1e-6 each.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from probinf import Target, samplers, validity
from probinf.core import standard_normal
from probinf.validity import Report
from tests.validity._joint import Info, State

SMALL: dict[str, Any] = {"num_chains": 4000}
SKEWED = validity.exact_target("skewed")


def laws(report: Report) -> set[str]:
    return {check.law for check in report.failures}


class Metropolis(eqx.Module):
    """A user's own kernel; `fault` breaks it."""

    fault: str = eqx.field(static=True, default="")

    def init(self, key: Any, target: Any, position: Any) -> State:
        return State(position, jnp.uint32(0))

    def step(self, key: Any, target: Any, state: State) -> tuple[State, Info]:
        key_step, key_accept = jax.random.split(key)
        if self.fault == "one key":
            key_accept = key_step
        step = 0.9 * standard_normal(key_step, state.position.shape, state.position.dtype)
        proposal = state.position + step + (0.05 if self.fault == "drift" else 0.0)
        ratio = target.log_density(proposal) - target.log_density(state.position)
        if self.fault == "all accepted":
            ratio = jnp.zeros_like(ratio)
        if self.fault == "stuck":
            ratio = jnp.full_like(ratio, -jnp.inf)
        accepted = jnp.log(jax.random.uniform(key_accept, dtype=ratio.dtype)) < ratio
        position = jnp.where(accepted, proposal, state.position)
        return State(position, state.status), Info(jnp.exp(jnp.minimum(ratio, 0)), jnp.uint32(0))


def test_own_kernel_passes() -> None:
    report = validity.check(Metropolis(), SKEWED.target, SKEWED.draw, **SMALL)
    assert report.passed, report.table
    assert report.false_alarm_rate <= 1.01e-6


@pytest.mark.no_key_reuse
@pytest.mark.parametrize(("fault", "law"), [("all accepted", "invariance"), ("stuck", "movement"), ("one key", "keys")])
def test_faults_of_an_own_kernel_are_caught(fault: str, law: str) -> None:
    assert law in laws(validity.check(Metropolis(fault), SKEWED.target, SKEWED.draw, **SMALL))


def test_a_small_drift_is_caught_with_more_chains() -> None:
    report = validity.check(Metropolis("drift"), SKEWED.target, SKEWED.draw, num_chains=100_000, num_steps=10)
    assert "invariance" in laws(report)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["random_walk", "hmc", "mala"])
def test_our_kernels_pass_on_every_target(name: str) -> None:
    kernel = {"random_walk": samplers.random_walk(1.0), "hmc": samplers.hmc(0.5, 3), "mala": samplers.mala(0.8)}[name]
    report = validity.check(kernel, **SMALL)
    assert report.passed, report.table
    assert {check.law for check in report.checks} >= {
        "balance",
        "resolution",
        "Jacobian",
        "involution",
        "fresh caches",
        "keys",
    }


def test_without_exact_draws_the_prior_is_used() -> None:
    target = Target(
        lambda x: -jnp.sum(jnp.exp(x)), lambda x: -0.5 * jnp.sum(x * x), lambda key: jax.random.normal(key, (2,))
    )
    report = validity.check(samplers.hmc(0.6, 3), target, **SMALL)
    assert report.passed, report.table
    assert "gradient" in {check.law for check in report.checks}


@jax.custom_jvp
def crooked(x: Any) -> Any:
    return jnp.sum(x * x)


crooked.defjvp(lambda x, t: (crooked(*x), 1.5 * jnp.sum(x[0] * t[0])))


def test_a_wrong_gradient_is_caught() -> None:
    target = Target(
        lambda x: -0.5 * crooked(x), lambda x: -0.5 * jnp.sum(x * x), lambda key: jax.random.normal(key, (2,))
    )
    assert "gradient" in laws(validity.check(samplers.hmc(0.5, 3), target, **SMALL))


class Mover(eqx.Module):
    """Moves to x + v but evaluates the target at x; or says a wrong log-determinant; or does not turn back."""

    fault: str = eqx.field(static=True)

    def __call__(self, target: Any, state: Any, v: Any) -> Any:
        moved = samplers.relocate(target, state, state.position + v)
        if self.fault == "stale":
            point = moved.point._replace(log_likelihood=state.point.log_likelihood)
            moved = moved._replace(point=point)
        back = v if self.fault == "not back" else -v
        return moved, back, jnp.where(self.fault == "determinant", 0.3, 0.0)


class Normal(eqx.Module):
    def sample(self, key: Any, target: Any, state: Any) -> Any:
        return standard_normal(key, state.position.shape, state.position.dtype)

    def log_prob(self, target: Any, state: Any, v: Any) -> Any:
        return -0.5 * jnp.sum(v * v)


@pytest.mark.parametrize(
    ("fault", "law"), [("stale", "fresh caches"), ("determinant", "Jacobian"), ("not back", "involution")]
)
def test_points_show_which_part_is_wrong(fault: str, law: str) -> None:
    kernel = samplers.mhg(Normal(), Mover(fault))
    report = validity.balance(jax.random.key(0), kernel, SKEWED.target, SKEWED.draw)
    assert law in laws(report)
    sound = validity.balance(jax.random.key(0), samplers.mhg(Normal(), Mover("")), SKEWED.target, SKEWED.draw)
    assert sound.passed, sound.table


class Unfair(eqx.Module):
    """Draws v by one density and states another, so that only the balance is off; or one that has no way back."""

    one_way: bool = eqx.field(static=True, default=False)

    def sample(self, key: Any, target: Any, state: Any) -> Any:
        v = standard_normal(key, state.position.shape, state.position.dtype)
        return jnp.abs(v) if self.one_way else v

    def log_prob(self, target: Any, state: Any, v: Any) -> Any:
        possible = jnp.all(v >= 0) if self.one_way else jnp.asarray(True)
        return jnp.where(possible, -0.5 * jnp.sum(v * v), -jnp.inf)


def test_a_ratio_without_the_proposal_is_out_of_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = samplers.MHG.step

    def forgetful(self: Any, key: Any, target: Any, state: Any) -> Any:
        state, info = accept(self, key, target, state)
        return state, info._replace(energy_error=jnp.zeros_like(info.energy_error))

    monkeypatch.setattr(samplers.MHG, "step", forgetful)
    for law in (Unfair(), Unfair(one_way=True)):
        report = validity.balance(jax.random.key(1), samplers.mhg(law, Mover("")), SKEWED.target, SKEWED.draw)
        assert laws(report) >= {"balance"}, report.table


def test_large_log_densities_do_not_hide_a_fault() -> None:
    target = Target(lambda x: SKEWED.target.log_density(x) - 1e7)
    report = validity.balance(jax.random.key(1), samplers.mhg(Normal(), Mover("")), target, SKEWED.draw)
    assert laws(report) == {"resolution"}


class Shrink(eqx.Module):
    """Multiplies the last coordinate by a factor: one in a thousand, or a thousandth of a sd, or none."""

    factor: float = 1.0

    def init(self, key: Any, target: Any, position: Any) -> State:
        return State(position, jnp.uint32(0))

    def step(self, key: Any, target: Any, state: State) -> tuple[State, Info]:
        x = state.position["x"]
        x = jnp.roll(x[:-1] * jax.random.rademacher(key, x[:-1].shape, x.dtype), 0), x[-1:] * self.factor
        return State({"x": jnp.concatenate(x), "n": state.position["n"]}, state.status), Info(1.0, jnp.uint32(0))


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (0.5, False)])
def test_one_of_many_coordinates_beside_a_constant(factor: float, passes: bool) -> None:
    def draw(key: Any) -> Any:
        return {"x": jax.random.normal(key, (60,)), "n": jnp.float32(3.0)}

    target = Target(lambda x: -0.5 * jnp.sum(x["x"] ** 2))
    report = validity.stationarity(jax.random.key(0), Shrink(factor), target, draw, num_chains=4000)
    assert report.passed == passes, report.table


class Turn(eqx.Module):
    """x -> x + step mod 1: exactly invariant, and its changes are as skewed as can be."""

    def init(self, key: Any, target: Any, position: Any) -> State:
        return State(position, jnp.uint32(0))

    def step(self, key: Any, target: Any, state: State) -> tuple[State, Info]:
        return State((state.position + 1e-4) % 1, state.status), Info(1.0, jnp.uint32(0))


def test_skewed_changes_of_a_sound_kernel_raise_no_alarm() -> None:
    for seed in range(10):
        report = validity.stationarity(
            jax.random.key(seed), Turn(), Target(lambda x: 0.0 * x), jax.random.uniform, num_chains=1000
        )
        assert report.passed, report.table


def test_a_rate_of_zero_is_refused() -> None:
    for rate in (0.0, -1.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match="`false_alarm_rate`"):
            validity.check(samplers.random_walk(1.0), false_alarm_rate=rate)


def test_own_kernels_need_exact_draws_of_their_target() -> None:
    target = Target(lambda x: -0.5 * jnp.sum((x - 3) ** 2), lambda x: -0.5 * jnp.sum(x * x), jax.random.normal)
    with pytest.raises(ValueError, match="pass `draw`"):
        validity.check(Metropolis(), target)
    with pytest.raises(ValueError, match="pass both"):
        validity.check(Metropolis(), draw=jax.random.normal)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_gradients_of_any_scale(scale: float) -> None:
    def value(x: Any) -> Any:
        return jnp.sum(2 * x / scale - jnp.exp(x / scale)) - 1e3

    def draw(key: Any) -> Any:
        return scale * jnp.log(jnp.sum(jax.random.exponential(key, (2, 2)), axis=0))

    assert validity.gradient_check(jax.random.key(0), Target(value), draw).passed
    wrong = Target(lambda x: value(x) + 0.3 * (crooked(x / scale) - jnp.sum((x / scale) ** 2)))
    assert not validity.gradient_check(jax.random.key(0), wrong, draw).passed


def test_targets_by_name() -> None:
    with pytest.raises(ValueError, match="needed one of skewed"):
        validity.exact_target("askew")


def test_a_nan_target_never_passes() -> None:
    target = Target(lambda x: jnp.sum(x) * jnp.nan)
    report = validity.check(samplers.random_walk(1.0), target, lambda key: jax.random.normal(key, (2,)), **SMALL)
    assert not report.passed


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="`kernel`"):
        validity.check(lambda key: key)
    with pytest.raises(ValueError, match="pass `draw`"):
        validity.check(samplers.random_walk(1.0), Target(lambda x: -jnp.sum(x * x)))
    with pytest.raises(ValueError, match="`num_chains`"):
        validity.check(samplers.random_walk(1.0), num_chains=10)
    with pytest.raises(TypeError, match="as_mhg"):
        validity.balance(jax.random.key(0), Metropolis(), SKEWED.target, SKEWED.draw)
