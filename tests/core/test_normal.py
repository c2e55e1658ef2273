r"""`standard_normal`: $\sqrt2 \operatorname{erf}^{-1}$ of the uniform numbers that its bits stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from probinf.core import _normal as module
from probinf.core import particle_keys, standard_normal

COUNT = 200_000


def exact(bits: np.ndarray) -> np.ndarray:
    """The numbers of 32-bit words, in float64."""
    odd = 2.0 * (bits.astype(np.int32) >> 8) + 1
    return np.sqrt(2) * scipy.special.erfinv(odd * 2.0**-24)


def test_numbers_are_those_of_the_bits() -> None:
    key = jax.random.key(1)
    found = np.asarray(jax.jit(lambda k: standard_normal(k, (COUNT,), jnp.float32))(key), float)
    wanted = exact(np.asarray(jax.random.bits(jax.random.key(1), (COUNT,), jnp.uint32)))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("word", [0, 255, 256, 2**31 - 1, 2**31, 2**32 - 1])
def test_extreme_bits_are_finite_and_not_zero(monkeypatch: pytest.MonkeyPatch, word: int) -> None:
    monkeypatch.setattr(module.jax.random, "bits", lambda key, shape, dtype: jnp.full(shape, word, dtype))
    found = float(standard_normal(jax.random.key(0), (), jnp.float32))
    assert np.isfinite(found)
    assert found != 0
    np.testing.assert_allclose(found, exact(np.asarray(word, np.uint32)), rtol=1e-6)


def test_law_is_normal_for_particles() -> None:
    draw = jax.jit(jax.vmap(lambda k: standard_normal(k, (10,), jnp.float32)))
    found = np.asarray(draw(particle_keys(jax.random.key(2), COUNT // 10)), float)
    # False-alarm rate 1e-6 each.
    assert scipy.stats.kstest(found.reshape(-1), "norm").pvalue > 1e-6
    correlations = np.corrcoef(found.T)[np.triu_indices(10, 1)] * np.sqrt(found.shape[0])
    assert np.sum(correlations**2) < scipy.stats.chi2.isf(1e-6, correlations.size)


def test_other_types_are_those_of_jax() -> None:
    found = standard_normal(jax.random.key(3), (5,), jnp.dtype("bfloat16"))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, jax.random.normal(jax.random.key(3), (5,), jnp.bfloat16))
