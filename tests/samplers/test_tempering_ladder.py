"""Temperatures of equal rejection: fixed points, a barrier with a known inverse, rates of every kind.

That tuned temperatures do even the rates of a run is in `test_parallel_tempering`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.samplers._tempering_ladder import tuned_inverse_temperatures

LADDER = np.array([1.0, 0.5, 0.2, 0.06, 0.015, 0.0])


def test_temperatures_of_equal_rates_stay() -> None:
    betas = jnp.asarray(LADDER, jnp.float32)
    # Where nothing is rejected they are equally good everywhere, and still are to be temperatures of their own.
    found = jax.jit(jax.vmap(tuned_inverse_temperatures, (None, 0)))(betas, jnp.stack([jnp.full(5, 0.3), jnp.zeros(5)]))
    np.testing.assert_allclose(found, jnp.stack([betas, betas]), atol=1e-6)


def test_tuning_inverts_a_known_barrier(x64: None) -> None:
    """Barrier 2 sqrt(beta), measured at many temperatures: its inverse is a parabola."""
    betas = np.linspace(1, 0, 41) ** 1.5
    rates = -np.diff(2 * np.sqrt(betas))
    found = np.asarray(jax.jit(tuned_inverse_temperatures, static_argnums=2)(betas, rates, 9))
    np.testing.assert_allclose(found, np.linspace(1, 0, 9) ** 2, atol=2e-4)
    assert found[0] == 1
    assert found[-1] == 0


def test_tuned_temperatures_descend_whatever_the_rates() -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(size=(50, 5)) ** 8
    rates[np.arange(50), rng.integers(5, size=50)] = rng.choice([0.0, 1.0, np.nan], size=50)
    tuned = jax.jit(jax.vmap(lambda r: tuned_inverse_temperatures(jnp.asarray(LADDER, jnp.float32), r, 12)))
    found = np.asarray(tuned(jnp.asarray(rates, jnp.float32)))
    assert np.all(np.diff(found) < 0)
    assert np.all(found[:, 0] == 1)
    assert np.all(found[:, -1] == 0)


def test_arguments_of_tuning_are_checked() -> None:
    with pytest.raises(ValueError, match="one rate for each pair"):
        tuned_inverse_temperatures(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        tuned_inverse_temperatures(jnp.array([1.0, 0.0]), jnp.array([1.5]))
    with pytest.raises(ValueError, match="num_replicas"):
        tuned_inverse_temperatures(jnp.array([1.0, 0.0]), jnp.array([0.5]), 1)
