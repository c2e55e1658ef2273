"""`validity.check`: sound kernels pass, broken ones of many kinds do not, and bad arguments say what is needed.

Planted bugs: everything accepted, a drifting proposal that hides it, a density looked up at the wrong point, a stuck
kernel, a NaN target, a key used twice, a wrong gradient. Sound kernels fail with probability 1e-6 each.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from probinf import Target, samplers, validity
from probinf.core import standard_normal
from probinf.validity import Report

SMALL: dict[str, Any] = {"num_chains": 4000}
SKEWED = validity.exact_target("skewed")


def laws(report: Report) -> set[str]:
    return {check.law for check in report.failures}


class State(NamedTuple):
    position: Any
    status: Any


class Info(NamedTuple):
    acceptance_rate: Any
    status: Any


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
@pytest.mark.parametrize(("fault", "law"), [("all accepted", "invariance"), ("stuck", "moves"), ("one key", "keys")])
def test_faults_of_an_own_kernel_are_caught(fault: str, law: str) -> None:
    assert law in laws(validity.check(Metropolis(fault), SKEWED.target, SKEWED.draw, **SMALL))


def test_a_small_drift_is_caught_with_more_chains() -> None:
    report = validity.check(Metropolis("drift"), SKEWED.target, SKEWED.draw, num_chains=100_000, num_steps=10)
    assert "invariance" in laws(report)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["random_walk", "hmc", "mala"])
def test_our_kernels_pass_on_every_target(name: str) -> None:
    kernel = {"random_walk": samplers.random_walk(1.0), "hmc": samplers.hmc(0.5, 3), "mala": samplers.mala(0.8)}[name]
    report = validity.check(kernel, **SMALL)
    assert report.passed, report.table
    assert {check.law for check in report.checks} >= {"balance", "Jacobian", "involution", "fresh caches", "keys"}


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
