"""`sample`: known posteriors, checkpoints, compilations, devices; for faults see `test_sample_faults.py`.

Planted bugs that must be caught: adaptation that goes on while sampling (`test_kernel_is_frozen...`), a Jacobian left
out of the constrained space (`test_constrained_...` has the exact law).

Means of correlated draws are compared through the spread of the means of many independent chains, whose standard
error is computed; a bound of 6 standard errors with 64 chains is a false alarm below 1e-6 (Student, 63 degrees:
1.1e-7) per comparison.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from probinf.core._numpyro import target_from_numpyro
from probinf.core._reducers import Moments
from probinf.core._target import Target
from probinf.samplers._hmc import hmc
from probinf.samplers._mhg import mhg
from probinf.samplers._random_walk import Shift, StandardNormal, random_walk
from probinf.samplers._sample import sample
from probinf.samplers._warmup import warmup
from tests._compilations import COMPILED
from tests._posteriors import half_square, regression
from tests._processes import finish_worker, start_worker
from tests._slow import slow_after


def agrees(draws: np.ndarray, exact: Any) -> None:
    """Each mean over `[chains, draws]` is within 6 standard errors, computed from the spread of the chains."""
    means = np.asarray(draws, np.float64).mean(1)
    error = means.std(0, ddof=1) / np.sqrt(means.shape[0])
    assert np.all(np.abs(means.mean(0) - exact) < 6 * error), (means.mean(0), exact, error)


@pytest.mark.parametrize(
    "make", slow_after(1, [lambda: hmc(num_steps=8, dense=True), lambda: hmc(num_steps=8), random_walk])
)
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


def test_double_precision(x64: None) -> None:
    target = Target(half_square, sample_prior=lambda key: jax.random.normal(key, (2,), jnp.float64))
    draws = sample(jax.random.key(0), hmc(num_steps=4), target, num_samples=10, num_warmup=30, num_chains=2)
    assert draws.samples.dtype == np.float64
    assert draws.kernel.step_size.dtype == np.float64


@pytest.mark.slow
def test_draws_are_the_same_on_1_2_and_8_devices() -> None:
    # Without fused multiply-adds, which jaxlib 0.12 forms or not by the number of chains on a device.
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_max_isa=AVX"
    output, errors = finish_worker(start_worker(Path(__file__).with_name("_sample_mesh_worker.py"), flags=flags))
    assert output.split() == ["same", "spread", "extended", "on", "8", "8", "2", "refused"], output + errors
