"""`kept`: what is made of plain numbers is made once, and the sizes of caches; errors and arrays pass through.

Planted bug, shown to be caught: a number that is kept from within a trace, where it is a tracer.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from probinf.core import is_concrete
from probinf.llm._kept import kept, real
from probinf.llm._lm import cache_size
from probinf.llm._sampling import sampling_of


def test_plain_numbers_are_put_on_the_device_once():
    assert real(0.8125) is real(0.8125)
    assert real(0.8125) is not real(0.75)
    array = real(0.8125) * 1
    assert sampling_of(array, None, None, 0.0) is not sampling_of(array, None, None, 0.0)
    assert sampling_of(0.8125, 3, 0.9, 0.0) is sampling_of(0.8125, 3, 0.9, 0.0)


def test_equal_arguments_of_other_types_are_other_arguments():
    sampling_of(1.0, 1, None, 0.0)
    with pytest.raises(TypeError, match="top_k"):
        sampling_of(1.0, True, None, 0.0)


@pytest.mark.usefixtures("x64")
def test_what_is_kept_follows_the_precision():
    assert real(0.3125).dtype == jnp.float64
    with jax.enable_x64(False):
        assert real(0.3125).dtype == jnp.float32


def leaks(keep):
    """Whether a number that is first asked for within a trace is a tracer afterwards."""
    number = keep(lambda value: jnp.asarray(value, float))

    @jax.jit
    def traced(x):
        return x + number(0.1875)

    traced(jnp.asarray(1.0))
    return not is_concrete(number(0.1875))


def test_nothing_is_kept_of_a_trace():
    assert not leaks(kept)


def test_planted_leak_is_seen():
    assert leaks(functools.lru_cache)


def test_caches_have_room_in_multiples_of_32_within_the_context():
    assert [cache_size(capacity, 100) for capacity in (1, 32, 33, 96, 97, 100)] == [32, 32, 64, 96, 100, 100]
    assert cache_size(7, 7) == 7
