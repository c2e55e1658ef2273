"""Chains of passes under the run driver: what is kept of one that Ctrl-C ends, of one prompt and of several.

The passes here are a counter; those of particle Gibbs are in `test_gibbs.py`.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import Status, run_steps
from probinf.llm import _passes
from probinf.llm._passes import for_problems, run_passes
from tests.llm._runs import texts
from tests.llm._tables import table_lm
from tests.llm._tiny import After, tiny_task


class Count(eqx.Module):
    """Counts, and draws a number."""

    def __call__(self, key, index, state):
        return state + 1, (state, jax.random.uniform(key))


def passes(key, num_burn_in, num_kept):
    return run_passes(key, Count(), jnp.zeros((), jnp.int32), num_burn_in, num_kept, name="chain")


def test_passes_that_are_done_are_kept(key, monkeypatch):
    whole = passes(jax.random.clone(key), 2, 5)
    assert whole.status == 0
    assert whole.records[0].tolist() == list(range(7))
    monkeypatch.setattr(_passes, "run_steps", functools.partial(run_steps, controls=[After(3)]))
    part = passes(jax.random.clone(key), 2, 5)
    assert part.status == Status.INTERRUPTED
    np.testing.assert_array_equal(part.records[1], whole.records[1][:3])
    monkeypatch.setattr(_passes, "run_steps", functools.partial(run_steps, controls=[After(2)]))
    with pytest.raises(KeyboardInterrupt, match="`chain` was interrupted after 2 passes, and the first 2 are burn-in"):
        passes(jax.random.clone(key), 2, 5)


@pytest.mark.parametrize("noticed", [True, False])
def test_problems_that_are_done_are_kept(key, noticed):
    """Whether the second of three comes back with what there is, or could not even begin."""
    task = tiny_task(table_lm(0, 2, 3))
    task = task._replace(several=True, ids=task.ids * 3, texts=task.texts * 3)

    def one(key, index):
        if index == 1 and not noticed:
            raise KeyboardInterrupt
        return texts(weights=[1], status=int(Status.INTERRUPTED) * index)

    found: Any = for_problems(key, task, one)
    assert len(found) == 1 + noticed
    assert found.status == Status.INTERRUPTED


def test_nothing_is_lost_in_silence(key):
    task = tiny_task(table_lm(0, 2, 3))

    def one(key, index):
        raise KeyboardInterrupt

    for several in (False, True):
        with pytest.raises(KeyboardInterrupt):
            for_problems(jax.random.clone(key), task._replace(several=several), one)
