"""The progress display of `sample` shows how many divergences there were so far.

Planted bug, shown to be caught: a text that stays at the count of the first draw.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import Status, Target
from probinf.samplers import _draw, hmc, sample


def start(key):
    return jax.random.normal(key, (2,))


def run(key):
    """Steps far too long for this density."""
    target = Target(lambda x: -jnp.sum(jnp.cosh(x)), sample_prior=start)
    kernel = hmc(step_size=30.0, num_steps=4)
    options = {"num_samples": 50, "num_warmup": 0, "num_chains": 2, "throw": False}
    return sample(key, kernel, target, progress=True, **options)


def assert_shown(text, draws):
    count = int(np.sum((draws.info["status"] & int(Status.DIVERGENT)) != 0))
    assert count > 50
    last = text.strip().splitlines()[-1]
    assert "sample: 50/50 (100 %)" in last
    assert last.endswith(f" {count} divergences")


def test_divergences_are_shown(key, capsys):
    draws = run(key)
    assert_shown(capsys.readouterr().err, draws)


def test_a_count_that_stands_still_is_caught(key, capsys, monkeypatch):
    monkeypatch.setattr(_draw, "_describe", lambda state, records: "2 divergences")
    draws = run(key)
    with pytest.raises(AssertionError):
        assert_shown(capsys.readouterr().err, draws)
