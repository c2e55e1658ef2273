"""The smoothing figure of the tour: the claim holds for paths from the exact smoothing law, and planted bugs break it.

Planted bugs: filtering means in place of smoothed ones, paths shifted by a fifth of a standard deviation or twice too
wide in variance, NaN. The claim has a false-alarm rate of 1e-6.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import models
from probinf.experiments import _tour_nile as nile
from probinf.experiments import _tour_nile_smoothing as smoothing
from probinf.experiments import load
from probinf.experiments._page import plain
from probinf.experiments._tour import Config

SMALL = Config(num_particles=1000, num_replicates=16)
FLOW = load("nile").values[:, 1]


@pytest.fixture(scope="module")
def found():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return nile.smoothed(jax.random.key(0), FLOW, SMALL)


def holds(found):
    metrics = plain(smoothing.measure(found))
    json.dumps(metrics, allow_nan=False)
    return smoothing.claims(metrics)[0].holds


def perfect(found, *, shift=0.0, widen=1.0):
    """Independent normal draws with the exact mean and standard deviation in place of paths."""
    noise = np.random.default_rng(0).normal(size=(16, smoothing.NUM_PATHS, FLOW.size))
    paths = found.mean + found.sd * (shift + widen * noise)
    return found._replace(means=paths.mean(axis=1), squares=np.mean((paths - found.mean) ** 2, axis=1))


@pytest.mark.slow
def test_it_holds(found):
    assert holds(found)


def test_perfect_paths_pass_and_spoilt_ones_do_not(found):
    assert holds(perfect(found))
    assert not holds(perfect(found, shift=0.2))
    assert not holds(perfect(found, widen=2**0.5))


def test_filtering_means_are_caught(found):
    with jax.enable_x64(True):
        model = nile.exact_model(nile.PUBLISHED["observation"], nile.PUBLISHED["level"])
        filtered = np.asarray(models.kalman_filter(model, FLOW).filtered_mean)[:, 0]
    assert not holds(found._replace(means=found.means + filtered - found.mean))


def test_nan_upholds_nothing(found):
    assert not holds(found._replace(means=found.means * np.nan))
    text = smoothing.claims(plain(smoothing.measure(found._replace(means=found.means * np.nan))))[0].ours
    assert "nan" in text


def test_paths_of_a_genealogy_share_their_early_years(found):
    backward, old = found.distinct
    assert old[0] < backward[0]
    assert np.all(backward <= smoothing.NUM_PATHS)


def test_the_bound_is_the_mode_of_a_step():
    with jax.numpy_dtype_promotion("standard"):
        level = jnp.asarray(3.0)
        density = np.asarray(nile.particle_model().transition(jnp.asarray(1), level).log_prob(level))
    bound = smoothing.log_bound(nile.PUBLISHED["level"] ** 0.5)
    assert 0 < bound - density < 1e-3
