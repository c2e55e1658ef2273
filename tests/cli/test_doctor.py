"""The self-test passes here, and fails on planted bugs: a biased filter, a wrong sampler, an error."""

import dataclasses

import numpy as np
import pytest

from probinf import samplers
from probinf.cli import _doctor as doctor

pytestmark = pytest.mark.numpyro


@pytest.mark.smoke
def test_the_checks_pass():
    assert [(check.passed, check.detail) for check in doctor.checks() if not check.passed] == []


def test_a_biased_filter_is_caught(monkeypatch):
    right = samplers.particle_filter

    def biased(*args, **kwargs):
        result = right(*args, **kwargs)
        return dataclasses.replace(result, log_evidence=result.log_evidence + 0.5)

    monkeypatch.setattr(samplers, "particle_filter", biased)
    assert not doctor.check_filter().passed


def test_a_filter_too_noisy_to_tell_anything_is_caught():
    assert not doctor.check_filter(num_particles=2).passed


@pytest.mark.parametrize("fault", [lambda x: 1.3 * x, lambda x: x + 0.3, lambda x: x * np.nan])
def test_a_wrong_sampler_is_caught(monkeypatch, fault):
    right = samplers.sample

    def wrong(*args, **kwargs):
        draws = right(*args, **kwargs)
        return dataclasses.replace(draws, samples=fault(draws.samples))

    monkeypatch.setattr(samplers, "sample", wrong)
    assert not doctor.check_hmc().passed


def test_an_error_is_a_failed_check(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no device")

    monkeypatch.setattr(samplers, "particle_filter", broken)
    first, second = doctor.checks()
    assert not first.passed
    assert first.detail == "RuntimeError: no device"
    assert second.passed
