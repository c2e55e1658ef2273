"""`sample` when things go wrong: bad chains, bad starts, flags, interrupts, bad arguments.

Planted bug that must be caught: keys that depend on the number of chains (`test_one_nan_chain_...`).
"""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core._status import InferenceError, InferenceWarning, Status
from probinf.core._target import Target
from probinf.samplers._hmc import hmc
from probinf.samplers._initial import check_call
from probinf.samplers._random_walk import random_walk
from probinf.samplers._sample import sample
from tests._posteriors import Normals, half_square, regression


def edge(x: Any) -> Any:
    return jnp.where(x[0] > 50, jnp.nan, -0.5 * jnp.sum(x * x))


def test_one_nan_chain_of_64_leaves_the_others_bit_equal() -> None:
    healthy = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)
    one_bad = healthy.at[17].set(100.0)
    runs = []
    for start, throw in ((healthy, True), (one_bad, False)):
        runs.append(
            sample(
                jax.random.key(2),
                hmc(0.2, 4),
                Target(edge),
                num_samples=20,
                num_warmup=0,
                num_chains=64,
                initial_position=start,
                throw=throw,
            )
        )
    others = np.arange(64) != 17
    np.testing.assert_array_equal(runs[0].samples[others], runs[1].samples[others])
    np.testing.assert_array_equal(runs[1].samples[17], 100.0)
    assert np.flatnonzero(runs[1].status).tolist() == [17]
    assert int(runs[1].status[17]) == int(Status.NONFINITE_INIT)
    options: dict[str, Any] = {"num_samples": 50, "num_warmup": 300, "num_chains": 64, "throw": False}
    tuned = sample(jax.random.key(2), hmc(), Target(edge), initial_position=one_bad, **options)
    assert np.flatnonzero(tuned.status).tolist() == [17]
    np.testing.assert_allclose(tuned.kernel.factor, 1.0, atol=0.2)


def _no_gradient_at_zero(x: Any) -> Any:
    return -jnp.sqrt(jnp.sum(x * x))


@pytest.mark.parametrize(
    ("log_density", "start"),
    [(edge, 100.0), (lambda x: jnp.where(x[0] > 50, -jnp.inf, half_square(x)), 100.0), (_no_gradient_at_zero, 0.0)],
    ids=["nan", "-inf", "nan_gradient"],
)
def test_bad_start_raises_before_the_first_step(log_density: Any, start: float, tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"NONFINITE_INIT \[members \[0, 1\] of 2\].*initial_position"):
        sample(
            jax.random.key(0),
            hmc(),
            Target(log_density),
            num_samples=5,
            num_chains=2,
            initial_position=jnp.full((2, 3), start),
            checkpoint=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_nan_data_raises_after_all_tries() -> None:
    target, _, _ = regression(float("nan"))
    with pytest.raises(InferenceError, match="NONFINITE_INIT"):
        sample(jax.random.key(0), hmc(), target, num_samples=5)


def test_initial_positions_are_drawn_again_where_the_density_is_zero() -> None:
    # One try in two fails; with this key none of 16 chains needs more than ten (all keys: 1.6 % do).
    target = Target(lambda x: jnp.where(x[0] > 0, half_square(x), -jnp.inf), sample_prior=Normals((3,)))
    draws = sample(jax.random.key(3), hmc(0.1, 2), target, num_samples=1, num_warmup=0, num_chains=16, throw=False)
    assert np.all(draws.status & int(Status.NONFINITE_INIT) == 0)


def half_nan(x: Any) -> Any:
    return jnp.where(x[0] > 1.0, jnp.nan, half_square(x))


def test_divergences_are_counted_in_one_warning() -> None:
    with pytest.warns(InferenceWarning) as caught:
        draws = sample(
            jax.random.key(0),
            hmc(0.5, 4),
            Target(half_nan),
            num_samples=50,
            num_warmup=0,
            num_chains=4,
            initial_position=jnp.zeros((4, 2)),
        )
    assert len(caught) == 1
    divergent = draws.info["divergent"]
    first = int(np.argmax(divergent.any(0)))
    assert f"{divergent.sum()} of 200 draws" in str(caught[0].message)
    assert f"first at draw {first})" in str(caught[0].message)
    assert np.all(draws.samples[..., 0] <= 1.0)
    np.testing.assert_array_equal(draws.status, np.where(divergent.any(1), int(Status.DIVERGENT), 0))
    assert "DIVERGENT" in str(draws.summary())


def test_thinning_keeps_every_flag() -> None:
    def run(thin: int, num_samples: int) -> Any:
        return sample(
            jax.random.key(0),
            hmc(0.5, 4),
            Target(half_nan),
            num_samples=num_samples,
            num_warmup=0,
            num_chains=2,
            thin=thin,
            initial_position=jnp.zeros((2, 2)),
            throw=False,
        )

    draws = run(5, 20)
    assert draws.samples.shape == (2, 20, 2)
    assert draws.info["divergent"].mean() > run(1, 100).info["divergent"].mean()
    assert np.all((draws.info["status"] != 0) == draws.info["divergent"])


def test_infinite_density_is_fatal_and_freezes() -> None:
    target = Target(lambda x: jnp.where(x[0] > 1.0, jnp.inf, half_square(x)))
    options: dict[str, Any] = {
        "num_samples": 60,
        "num_warmup": 0,
        "num_chains": 2,
        "initial_position": jnp.zeros((2, 2)),
    }
    with pytest.raises(InferenceError, match="POSINF_LOG_WEIGHT") as caught:
        sample(jax.random.key(0), random_walk(1.0), target, **options)
    draws = sample(jax.random.key(0), random_walk(1.0), target, throw=False, **options)
    for chain in range(2):
        bad = np.flatnonzero(draws.info["status"][chain])
        assert len(bad) == 1
        frozen = draws.samples[chain, bad[0] :]
        assert np.all(frozen == frozen[0])
        assert frozen[0, 0] <= 1.0
    np.testing.assert_array_equal(caught.value.result.samples, draws.samples)


class PlainState(NamedTuple):
    position: Any
    status: Any


class PlainInfo(NamedTuple):
    acceptance_rate: Any
    status: Any


class Plain(eqx.Module):
    """A user's kernel: stays where it is and flags its steps in the info alone; `wrong` says what it lacks."""

    wrong: str = eqx.field(static=True, default="")

    def init(self, key: Any, target: Any, position: Any) -> Any:
        del key, target
        if self.wrong == "state":
            return (position, jnp.uint32(0))
        return PlainState(position, jnp.int32(0) if self.wrong == "dtype" else jnp.uint32(0))

    def step(self, key: Any, target: Any, state: Any) -> Any:
        del key, target
        info = PlainInfo(jnp.float32(1.0), jnp.uint32(int(Status.DIVERGENT)))
        return state, {"status": info.status} if self.wrong == "info" else info


def test_a_kernel_of_the_user() -> None:
    target = Target(half_square)
    options: dict[str, Any] = {"num_samples": 3, "num_chains": 2, "initial_position": jnp.zeros((2, 2))}
    for num_warmup in (0, 5):
        draws = sample(jax.random.key(0), Plain(), target, throw=False, num_warmup=num_warmup, **options)
        assert draws.status.tolist() == [int(Status.DIVERGENT)] * 2
    for wrong, match in (("state", "`position`"), ("dtype", "uint32"), ("info", "NamedTuple of arrays")):
        with pytest.raises(TypeError, match=f"of Plain returned .*{match}"):
            sample(jax.random.key(0), Plain(wrong), target, num_warmup=0, **options)


def test_arguments_that_are_no_kernel_or_target_or_traced() -> None:
    target, options = Target(half_square), {"num_samples": 3, "initial_position": jnp.zeros((4, 2))}
    with pytest.raises(TypeError, match=r"`kernel` is 'hmc', but needs methods .* pass one such as `hmc\(\)`"):
        check_call("sample", jax.random.key(0), "hmc", target, None)
    with pytest.raises(TypeError, match=r"`target` is <function half_square.*`Target\(log_density\)`"):
        check_call("sample", jax.random.key(0), hmc(), half_square, None)
    with pytest.raises(TypeError, match=r"`sample` runs a loop on the host.*`key` is traced.*jax.lax.scan"):
        jax.vmap(lambda key: sample(key, hmc(), target, **options).samples)(jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize("name", ["log_prior", "log_likelihood"])
@pytest.mark.parametrize("kernel", [hmc(), random_walk()], ids=["hmc", "random_walk"])
def test_densities_that_are_no_scalars(name: str, kernel: Any) -> None:
    densities: dict[str, Any] = {"log_likelihood": half_square} | {name: lambda x: -0.5 * x * x}
    target = Target(**densities)
    with pytest.raises(ValueError, match=rf"`{name}` of the target returned an array of shape \(2,\)"):
        sample(jax.random.key(0), kernel, target, num_samples=3, initial_position=jnp.zeros((4, 2)))


def test_integer_positions_are_refused() -> None:
    for kernel in (hmc(), random_walk()):
        with pytest.raises(TypeError, match=r"needs floating-point positions, but position\['n'\] is int32"):
            sample(
                jax.random.key(0), kernel, Target(lambda x: -1.0 * jnp.sum(x["n"] ** 2)), num_samples=3,
                initial_position={"n": jnp.zeros((4, 2), jnp.int32)},
            )  # fmt: skip


class Spread(eqx.Module):
    """A density with a class constant."""

    SIGMA = 1.0

    def __call__(self, x: Any) -> Any:
        return -0.5 * jnp.sum(x * x) / self.SIGMA**2


def test_a_changed_class_constant_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(num_samples: int) -> Any:
        return sample(
            jax.random.key(0), random_walk(), Target(Spread()), num_samples=num_samples, num_warmup=5, num_chains=2,
            initial_position=jnp.zeros((2, 2)), checkpoint=tmp_path / "run",
        )  # fmt: skip

    first = run(5)
    np.testing.assert_array_equal(run(8).samples[:, :5], first.samples)
    monkeypatch.setattr(Spread, "SIGMA", 3.0)
    with pytest.raises(ValueError, match=r"another run|fingerprint"):
        run(10)


def test_interrupt_returns_what_is_done() -> None:
    target, _, _ = regression()

    class Impatient(eqx.Module):
        def __call__(self, position: Any) -> Any:
            jax.debug.callback(_interrupt_once, position)
            return position

    calls.clear()
    stopping = Target(target.log_likelihood, target.log_prior, target.sample_prior, Impatient())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draws = sample(jax.random.key(0), hmc(0.1, 2), stopping, num_samples=100_000, num_warmup=5, num_chains=2)
    assert 0 < draws.num_draws < 100_000
    assert np.all(draws.status & int(Status.INTERRUPTED))
    assert any("INTERRUPTED" in str(w.message) for w in caught)


calls: list[int] = []


def _interrupt_once(_: Any) -> None:
    calls.append(1)
    if len(calls) == 50:
        os.kill(os.getpid(), 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_samples": 0}, "`num_samples` is 0; needed at least 1"),
        ({"num_chains": 0}, "`num_chains` is 0; needed at least 1"),
        ({"num_warmup": -1}, "`num_warmup` is -1; needed at least 0"),
        ({"thin": 0}, "`thin` is 0; needed at least 1"),
        ({"target_accept": 1.5}, "`target_accept` must be between 0 and 1"),
        ({"target_accept": float("nan")}, "`target_accept` must be between 0 and 1"),
        ({"initial_position": np.zeros((3, 3), np.float32)}, "leading axis of num_chains = 2"),
        ({"initial_position": np.float32(0.0)}, "leading axis of num_chains = 2"),
        ({"initial_position": np.zeros((2, 4), np.float32)}, r"has shape \(2, 4\), but must have \(2, 3\)"),
        ({"initial_position": {"x": np.zeros((2, 3), np.float32)}}, "structure"),
        ({"initial_position": ()}, "no arrays"),
    ],
)
def test_bad_arguments_raise(changes: dict[str, Any], words: str) -> None:
    options: dict[str, Any] = {"num_samples": 2, "num_chains": 2, "num_warmup": 2}
    with pytest.raises(ValueError, match=words):
        sample(jax.random.key(0), hmc(), regression()[0], **(options | changes))


def test_counts_must_be_integers_and_positions_need_shapes() -> None:
    with pytest.raises(TypeError, match="num_"):
        sample(jax.random.key(0), hmc(), regression()[0], num_samples=2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`sample_prior`"):
        sample(jax.random.key(0), hmc(), Target(half_square), num_samples=2)
    with pytest.raises(TypeError, match="cannot be drawn from uniform"):
        sample(jax.random.key(0), hmc(), Target(half_square, sample_prior=lambda k: jnp.arange(3)), num_samples=2)
