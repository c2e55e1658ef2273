"""A checkpointed run in a process of its own, for the tests that kill it. Usage: worker FOLDER NUM_STEPS SECONDS."""

import sys
import time

import jax
import jax.numpy as jnp

from probinf.core._driver import run_steps
from probinf.core._reducers import Moments


def step(key, index, state):
    """A chain with carried keys, integers and floats, whose law is skewed."""
    x, count, carried = state
    carried, use = jax.random.split(carried)
    noise = jax.random.normal(key, x.shape, x.dtype) + jax.random.gamma(use, 2.0, x.shape, x.dtype)
    x = 0.9 * x + noise
    return (x, count + 1, carried), {"x": x, "index": index, "odd": count % 2 == 1}


def start():
    return jnp.zeros(3), jnp.zeros((), jnp.int32), jax.random.key(7)


def run(folder, num_steps, **options):
    return run_steps(
        jax.random.key(3), step, start(), num_steps, checkpoint=folder, chunk_size=50, reducer=Moments(), **options
    )


if __name__ == "__main__":
    folder, num_steps, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

    def clock():
        """Makes the run slow enough to be killed in the middle."""
        time.sleep(seconds)
        return time.monotonic()

    run(folder, num_steps, clock=clock)
