"""`sample`: known posteriors, flags, checkpoints, bad input, compilations, devices.

Planted bugs that must be caught: adaptation that goes on while sampling (`test_kernel_is_frozen...`), a Jacobian left
out of the constrained space (`test_constrained_...` has the exact law), keys that depend on the number of chains
(`test_one_nan_chain_...`).

Means of correlated draws are compared through the spread of the means of many independent chains, whose standard
error is computed; a bound of 6 standard errors with 64 chains is a false alarm below 1e-6 (Student, 63 degrees:
1.1e-7) per comparison.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from probinf.core._numpyro import target_from_numpyro
from probinf.core._reducers import Moments
from probinf.core._status import InferenceError, InferenceWarning, Status
from probinf.core._target import Target
from probinf.samplers._hmc import hmc
from probinf.samplers._initial import check_call
from probinf.samplers._mhg import mhg
from probinf.samplers._random_walk import Shift, StandardNormal, random_walk
from probinf.samplers._sample import sample
from probinf.samplers._warmup import warmup

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **_: (
        COMPILED.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
    )
)


class Normals(eqx.Module):
    """A standard normal prior draw of the given shape."""

    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, key: Any) -> Any:
        return jax.random.normal(key, self.shape)


class Regression(eqx.Module):
    x: Any
    y: Any

    def __call__(self, beta: Any) -> Any:
        return -0.5 * jnp.sum((self.y - self.x @ beta) ** 2)


def half_square(x: Any) -> Any:
    return -0.5 * jnp.sum(x * x)


def regression(offset: float = 0.0) -> tuple[Target, np.ndarray, np.ndarray]:
    """Unit noise, standard normal prior: the posterior is N(mean, covariance)."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 3)) * [1.0, 2.0, 0.3]
    y = x @ [0.5, -1.0, 2.0] + rng.normal(size=20) + offset
    covariance = np.linalg.inv(np.eye(3) + x.T @ x)
    target = Target(Regression(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)), half_square, Normals((3,)))
    return target, covariance @ (x.T @ y), covariance


def agrees(draws: np.ndarray, exact: Any) -> None:
    """Each mean over `[chains, draws]` is within 6 standard errors, computed from the spread of the chains."""
    means = np.asarray(draws, np.float64).mean(1)
    error = means.std(0, ddof=1) / np.sqrt(means.shape[0])
    assert np.all(np.abs(means.mean(0) - exact) < 6 * error), (means.mean(0), exact, error)


@pytest.mark.parametrize("make", [lambda: hmc(num_steps=8), lambda: hmc(num_steps=8, dense=True), random_walk])
def test_conjugate_regression(make: Any, key: Any) -> None:
    target, mean, covariance = regression()
    draws = sample(key, make(), target, num_samples=400, num_warmup=500, num_chains=64, thin=2)
    x = np.asarray(draws.samples, np.float64)
    assert x.shape == (64, 400, 3)
    agrees(x, mean)
    centred = x - mean
    agrees(centred[..., :, None] * centred[..., None, :], covariance)
    assert int(np.bitwise_or.reduce(draws.status)) == 0


def gamma_model(y: Any) -> None:
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.deterministic("log_rate", jnp.log(rate))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


@pytest.mark.numpyro
def test_constrained_samples_of_a_skewed_posterior(key: Any) -> None:
    target = target_from_numpyro(gamma_model, np.array([0, 2, 1]))
    draws = sample(key, hmc(num_steps=6), target, num_samples=300, num_warmup=300, num_chains=64)
    # Gamma(5, 4): mean, second moment, and digamma(5) - log 4.
    agrees(draws.samples["rate"], 1.25)
    agrees(draws.samples["rate"] ** 2, 5 * 6 / 16)
    agrees(draws.samples["log_rate"], 1.5061176684318 - np.log(4))
    assert set(draws.samples) == {"rate", "log_rate"}
    assert draws.to_arviz() is not None


def test_default_hmc_mixes(key: Any) -> None:
    target, _, _ = regression()
    draws = sample(key, hmc(num_steps=16), target, num_samples=1000)
    x = draws.samples - draws.samples.mean((0, 1))
    lag_one = (x[:, 1:] * x[:, :-1]).mean((0, 1)) / (x**2).mean((0, 1))
    # Lengths over several periods: hardly correlated. 6 standard errors of 4000 draws are .1.
    assert np.all(np.abs(lag_one) < 0.2)
    assert 0.7 < draws.info["acceptance_rate"].mean() < 0.99
    assert draws.info["status"].shape == (4, 1000)


def test_kernel_is_frozen_while_sampling_and_can_be_used_again(key: Any) -> None:
    target, _, _ = regression()
    start = jnp.zeros((2, 3))
    draws = sample(key, hmc(), target, num_samples=20, num_warmup=100, num_chains=2, initial_position=start)
    tuned = draws.kernel
    assert tuned.factor.shape == (3,)
    again = sample(jax.random.key(1), tuned, target, num_samples=5, num_warmup=0, num_chains=2, initial_position=start)
    assert eqx.tree_equal(again.kernel, tuned)
    assert warmup(jax.random.key(2), tuned, target, num_steps=30, num_chains=2).factor.shape == (3,)


def test_any_mhg_kernel_can_be_sampled_with_plain_burn_in(key: Any) -> None:
    target, mean, _ = regression()
    kernel = mhg(StandardNormal(), Shift(jnp.float32(0.3), None))
    draws = sample(key, kernel, target, num_samples=500, num_warmup=500, num_chains=64, thin=10)
    agrees(draws.samples, mean)


def test_second_call_with_new_data_compiles_nothing() -> None:
    options: dict[str, Any] = {"num_samples": 30, "num_warmup": 40, "num_chains": 2}

    def run(seed: int, offset: float, **changes: Any) -> Any:
        return sample(jax.random.key(seed), hmc(num_steps=4), regression(offset)[0], **(options | changes))

    run(0, 0.0)
    before = len(COMPILED)
    second = run(1, 3.0)
    run(2, 3.0, num_samples=77, num_warmup=160, target_accept=0.9)
    assert len(COMPILED) == before
    assert not np.array_equal(second.samples, run(0, 0.0).samples)


@pytest.mark.numpyro
def test_second_call_with_new_numpyro_data_compiles_nothing() -> None:
    def run(seed: int, y: Any) -> None:
        target = target_from_numpyro(gamma_model, np.asarray(y))
        sample(jax.random.key(seed), hmc(num_steps=4), target, num_samples=10, num_chains=2, num_warmup=20, throw=False)

    run(0, [0, 2, 1])
    before = len(COMPILED)
    run(1, [5, 1, 1])
    assert len(COMPILED) == before


def test_checkpoint_gives_the_same_bits_and_resumes(tmp_path: Path) -> None:
    target, _, _ = regression()
    options: dict[str, Any] = {"num_samples": 30, "num_warmup": 40, "num_chains": 2}

    def run(**changes: Any) -> Any:
        return sample(jax.random.key(5), hmc(num_steps=4), target, **(options | changes))

    plain = run()
    stored = run(checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(plain.samples, stored.samples)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["draws", "warmup"]
    np.testing.assert_array_equal(run(checkpoint=tmp_path / "run").samples, plain.samples)
    longer = run(checkpoint=tmp_path / "run", num_samples=50)
    np.testing.assert_array_equal(longer.samples, run(num_samples=50).samples)
    np.testing.assert_array_equal(longer.samples[:, :30], plain.samples)
    with pytest.raises(ValueError, match=r"."):
        run(checkpoint=tmp_path / "run", num_warmup=41)
    with pytest.raises(ValueError, match=r"."):
        sample(jax.random.key(5), hmc(num_steps=5), target, checkpoint=tmp_path / "run", **options)


def test_reducer_without_draws(key: Any) -> None:
    target, mean, _ = regression()
    draws = sample(
        key, hmc(num_steps=8), target, num_samples=2000, num_chains=8, num_warmup=300, collect=False, reducer=Moments()
    )
    assert not jax.tree.leaves(draws.samples)
    moments = draws.attrs["reduced"]
    assert int(moments.num_records) == 2000
    # 16,000 nearly independent draws; the posterior sds are below .5.
    np.testing.assert_allclose(np.asarray(moments.mean).mean(0), mean, atol=6 * 0.5 / np.sqrt(4000))


def test_same_key_same_draws_and_first_chains_do_not_depend_on_their_number() -> None:
    target, _, _ = regression()
    start = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)

    def run(num_chains: int) -> Any:
        kernel, key = hmc(0.2, 4), jax.random.key(1)
        return sample(
            key,
            kernel,
            target,
            num_samples=20,
            num_warmup=0,
            num_chains=num_chains,
            initial_position=start[:num_chains],
        ).samples

    np.testing.assert_array_equal(run(6), run(6))
    np.testing.assert_allclose(run(6)[:4], run(4), rtol=1e-4, atol=1e-5)


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
    target = Target(**({"log_likelihood": half_square} | {name: lambda x: -0.5 * x * x}))
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
        ({"num_samples": 0}, "`num_samples` must be at least 1, but is 0"),
        ({"num_chains": 0}, "`num_chains` must be at least 1"),
        ({"num_warmup": -1}, "`num_warmup` must be at least 0"),
        ({"thin": 0}, "`thin` must be at least 1"),
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


def test_double_precision(x64: None) -> None:
    target = Target(half_square, sample_prior=lambda key: jax.random.normal(key, (2,), jnp.float64))
    draws = sample(jax.random.key(0), hmc(num_steps=4), target, num_samples=10, num_warmup=30, num_chains=2)
    assert draws.samples.dtype == np.float64
    assert draws.kernel.step_size.dtype == np.float64


def test_draws_are_the_same_on_1_2_and_8_devices() -> None:
    root = Path(__file__).parents[2]
    # Without fused multiply-adds, which jaxlib 0.12 forms or not by the number of chains on a device.
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_max_isa=AVX"
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    worker = Path(__file__).with_name("_sample_mesh_worker.py")
    done = subprocess.run([sys.executable, str(worker)], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["same", "spread", "refused"], done.stdout + done.stderr
