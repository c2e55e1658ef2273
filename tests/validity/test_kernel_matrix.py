"""Kernels as stochastic matrices, choices against their laws, and the laws of algorithms on finite models."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import samplers, validity
from probinf.core import categorical, choose
from probinf.experiments._certificates_kernels import finite_kernel, finite_target
from probinf.validity import FiniteModel

STATES = jnp.arange(4, dtype=jnp.int32)


@pytest.mark.usefixtures("x64")
def test_metropolis_hastings_on_four_states() -> None:
    report = validity.invariance(finite_kernel(), finite_target(), STATES, reversible=True)
    assert report.passed, report.table
    assert report.false_alarm_rate == 0
    found = validity.enumerate_kernel(finite_kernel(), finite_target(), STATES)
    assert found.matrix.shape == (4, 4)
    # A start of probability zero is flagged, and the chain stays.
    np.testing.assert_allclose(found.matrix[2], [0, 0, 1, 0], atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_another_target_is_caught() -> None:
    report = validity.invariance(finite_kernel(), finite_target(), STATES)
    tilted = finite_target().at_temperature(0.5)
    found = validity.enumerate_kernel(finite_kernel(), tilted, STATES)
    error = jnp.max(jnp.abs(found.stationary @ report_matrix(finite_kernel()) - found.stationary))
    assert report.passed
    assert error > 1e-3


def report_matrix(kernel: Any) -> Any:
    return validity.enumerate_kernel(kernel, finite_target(), STATES).matrix


@pytest.mark.usefixtures("x64")
def test_states_must_be_all_and_different() -> None:
    with pytest.raises(ValueError, match="not among `states`"):
        validity.enumerate_kernel(finite_kernel(), finite_target(), STATES[:3])
    with pytest.raises(ValueError, match="equal"):
        validity.enumerate_kernel(finite_kernel(), finite_target(), jnp.zeros(3, jnp.int32))


class Unfair(eqx.Module):
    """Says one law and draws by another."""

    def sample(self, key: Any, probabilities: Any) -> Any:
        return categorical.sample(key, probabilities**1.1)

    def law(self, probabilities: Any) -> Any:
        return categorical.law(probabilities)


def test_draws_are_compared_with_their_law() -> None:
    rows = jnp.array([[0.1, 0.0, 0.9], [0.5, 0.3, 0.2]])
    assert validity.choice_agreement(jax.random.key(0), categorical, rows, num_draws=40_000).passed
    assert not validity.choice_agreement(jax.random.key(0), Unfair(), rows, num_draws=40_000).passed


class NeverLast(eqx.Module):
    def sample(self, key: Any, probabilities: Any) -> Any:
        return categorical.sample(key, probabilities) + 1

    def law(self, probabilities: Any) -> Any:
        return categorical.law(probabilities)


def test_an_outcome_outside_the_law_is_caught() -> None:
    check = validity.choice_agreement(jax.random.key(0), NeverLast(), jnp.array([[0.5, 0.5]]), num_draws=100)
    assert not check.passed


@pytest.mark.usefixtures("x64")
def test_laws_of_algorithms_and_a_planted_bug_each() -> None:
    model = validity.skewed_model(3)

    def evidence(key: Any, model: FiniteModel) -> Any:
        return samplers.particle_filter(key, model, num_particles=2).log_evidence

    assert validity.evidence_law(evidence, model, subject="filter").passed
    assert not validity.evidence_law(lambda key, m: 1.01 * evidence(key, m), model, subject="filter").passed

    def paths(key: Any, model: FiniteModel) -> Any:
        key, path_key = jax.random.split(key)
        out = samplers.particle_filter(key, model, num_particles=2, history=True)
        return out.log_evidence, samplers.backward_sample(path_key, out, 1)

    assert validity.path_law(paths, model, subject="smoother").passed

    def backwards(key: Any, model: FiniteModel) -> Any:
        log_evidence, drawn = paths(key, model)
        return log_evidence, drawn[::-1]

    assert not validity.path_law(backwards, model, subject="smoother").passed
    wrong = validity.measure_law(lambda key: jnp.ones(2), np.array([1.0, 2.0]), subject="constant")
    assert wrong.found == pytest.approx(0.5)


@pytest.mark.no_key_reuse
def test_keys_used_twice_are_found() -> None:
    def twice(key: Any) -> Any:
        return jax.random.normal(key) + jax.random.uniform(key)

    assert not validity.key_reuse(twice, jax.random.key(0)).passed
    assert validity.key_reuse(jax.random.normal, jax.random.key(0)).passed


class Improper(eqx.Module):
    """A fair coin that states probabilities .3 and .3."""

    def sample(self, key: Any, probabilities: Any) -> Any:
        return categorical.sample(key, probabilities)

    def law(self, probabilities: Any) -> Any:
        outcomes, chances = categorical.law(probabilities)
        return outcomes, 0.6 * chances


def test_a_law_that_does_not_sum_to_one_is_caught() -> None:
    check = validity.choice_agreement(jax.random.key(0), Improper(), jnp.array([[0.5, 0.5]]), num_draws=1000)
    assert not check.passed
    with pytest.raises(ValueError, match="`num_draws`"):
        validity.choice_agreement(jax.random.key(0), categorical, jnp.array([[0.5, 0.5]]), num_draws=0)


@pytest.mark.usefixtures("x64")
def test_hidden_randomness_is_refused() -> None:
    def hidden(key: Any) -> Any:
        first, second = jax.random.split(key)
        return choose(first, categorical, jnp.array([[0.5, 0.5]]))[0] + (jax.random.uniform(second) < 0.5).astype(
            jnp.int32
        )

    with pytest.raises(ValueError, match="do not go through `choose`"):
        validity.enumerate_algorithm(hidden)


def test_laws_of_algorithms_ask_for_their_shape_and_precision() -> None:
    with pytest.raises(ValueError, match="float64"):
        validity.measure_law(lambda key: jnp.ones(2), np.ones(2), subject="x")
    with pytest.raises(ValueError, match="at most 4"):
        validity.skewed_model(7)
    with jax.enable_x64(True), pytest.raises(ValueError, match="that of `expected`"):
        validity.measure_law(lambda key: jnp.ones(()), np.ones(3), subject="x")
