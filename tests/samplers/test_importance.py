"""`importance` and Pareto smoothing: exact evidences, a reference fit, tails that cannot be trusted.

Planted bugs that are caught: the proposal density forgotten; the smoothed weights in place of the drawn ones in the
evidence (biased for a narrow proposal).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import probinf as pb
from probinf import samplers
from probinf.samplers._pareto import fit_pareto, smooth_weights, tail_length


def log_normal(x, mean):
    return -0.5 * (x - mean) ** 2 - 0.5 * jnp.log(2 * jnp.pi)


# Prior N(0, 1), one observation 2 with unit noise: evidence N(2; 0, 2). Made once, so that it compiles once.
TARGET = pb.Target(lambda x: log_normal(2.0, x), lambda x: log_normal(x, 0.0), lambda k: jax.random.normal(k))
EXACT = stats.norm.logpdf(2, 0, np.sqrt(2))


class Forgotten(eqx.Module):
    """A proposal that forgets its density."""

    law: dist.Distribution

    def sample(self, key):
        return self.law.sample(key)

    def log_prob(self, value):
        return jnp.zeros_like(value)


def ratios(proposal, num_runs=64):
    found = [
        float(samplers.importance(k, TARGET, proposal, 200, throw=False).log_evidence)
        for k in jax.random.split(jax.random.key(0), num_runs)
    ]
    return np.exp(np.array(found) - EXACT)


@pytest.mark.numpyro
@pytest.mark.no_key_reuse
def test_evidence_is_unbiased():
    # 64 runs: Student's t beyond six has probability 1.1e-7.
    good = ratios(dist.Normal(0.5, 1.0))
    error = good.std(ddof=1) / 8
    assert error < 0.02
    assert abs(good.mean() - 1) < 6 * error
    bad = ratios(Forgotten(dist.Normal(0.5, 1.0)))
    assert abs(bad.mean() - 1) > 6 * bad.std(ddof=1) / 8


@pytest.mark.numpyro
def test_result(key):
    out = samplers.importance(key, TARGET, dist.Normal(1.0, 0.8), 4000)
    assert float(out.mean) == pytest.approx(1.0, abs=0.06)
    assert float(out.pareto_k) < 0.3
    assert float(out.pareto_k_bound) == pytest.approx(0.7)
    assert float(out.ess) == pytest.approx(4000, rel=0.1)
    assert float(jnp.sum(out.population.weights)) == pytest.approx(1, abs=1e-5)


@pytest.mark.numpyro
def test_narrow_proposal_is_told(key):
    with pytest.warns(pb.InferenceWarning, match="pareto|shape k"):
        out = samplers.importance(key, TARGET, dist.Normal(1.0, 0.2), 4000)
    assert float(out.pareto_k) > float(out.pareto_k_bound)


@pytest.mark.parametrize("shape", [0.2, 0.7, 1.5])
def test_fit_finds_the_shape(x64, shape):
    draws = np.sort(stats.genpareto.rvs(shape, scale=3.0, size=4000, random_state=1))
    law = fit_pareto(jnp.asarray(draws))
    # The standard error of the shape is about (1 + k) / sqrt(n): .02 to .04.
    assert float(law.shape) == pytest.approx(shape, abs=6 * (1 + shape) / np.sqrt(4000))
    assert float(law.scale) == pytest.approx(3.0, rel=0.25)


def test_smoothing_keeps_order_and_all_but_the_tail(x64):
    log_weights = np.random.default_rng(0).normal(size=1000) * 2
    smoothed, shape = smooth_weights(jnp.asarray(log_weights))
    smoothed, length = np.asarray(smoothed), tail_length(1000)
    order = np.argsort(log_weights)
    np.testing.assert_array_equal(smoothed[order[:-length]], log_weights[order[:-length]])
    assert np.all(np.diff(smoothed[order[-length:]]) >= 0)
    assert smoothed.max() <= log_weights.max()
    assert 0 < float(shape) < 1.5


@pytest.mark.parametrize(
    ("log_weights", "expected"),
    [(np.zeros(100), -np.inf), (np.zeros(10), np.nan), (np.full(100, -np.inf), np.nan)],
    ids=["equal", "few", "all_zero"],
)
def test_degenerate_tails(x64, log_weights, expected):
    smoothed, shape = smooth_weights(jnp.asarray(log_weights))
    np.testing.assert_array_equal(smoothed, log_weights)
    np.testing.assert_array_equal(float(shape), expected)


def test_mostly_dead_samples_have_no_trusted_tail(x64):
    log_weights = np.full(100, -np.inf)
    log_weights[:7] = 0.0
    _, shape = smooth_weights(jnp.asarray(log_weights))
    assert float(shape) == np.inf


@pytest.mark.numpyro
@pytest.mark.parametrize(("error", "count"), [(ValueError, 0), (ValueError, -3), (TypeError, True)])
def test_bad_counts(error, count):
    with pytest.raises(error, match="num_samples"):
        samplers.importance(jax.random.key(0), TARGET, dist.Normal(0.0, 1.0), count)


def test_one_sample_and_nan():
    out = samplers.importance(jax.random.key(0), TARGET, Forgotten(dist.Normal(0.0, 1.0)), 1)
    assert np.isnan(float(out.pareto_k))
    broken = pb.Target(lambda x: jnp.nan * x)
    with pytest.raises(pb.InferenceError, match="NAN_LOG_WEIGHT"):
        samplers.importance(jax.random.key(0), broken, Forgotten(dist.Normal(0.0, 1.0)), 20)
