"""A checkpointed `sample` in a process of its own, for the tests that kill it. Usage: worker SECONDS FOLDER OUT ...

Each reading of the clock takes SECONDS, so that there is time to kill it. FOLDER "none" is a run without a checkpoint;
several pairs of FOLDER and OUT are run one after the other.
"""

import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from probinf.core._target import Target
from probinf.samplers import _draw, _sample
from probinf.samplers._hmc import hmc
from tests._posteriors import skewed_log_density

NUM_WARMUP, MOST_SAMPLES, CHUNK = 120, 1000, 10


class Enough:
    """Fulfilled at the look at 200 draws, where the sum is 494; the one before is at 160, where it is 407."""

    every = 20

    def __call__(self, draws):
        return np.abs(draws.samples["a"]).sum() > 450


def run(folder):
    rng = np.random.default_rng(0)
    start = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in {"a": (3,), "b": (3, 2)}.items()}
    return _sample.sample(
        jax.random.key(3),
        hmc(num_steps=4, dense=True),
        Target(skewed_log_density),
        num_samples=MOST_SAMPLES,
        num_warmup=NUM_WARMUP,
        num_chains=3,
        initial_position=start,
        checkpoint=folder,
        stop=Enough(),
    )


def slowed(seconds):
    """`run_steps` in many small chunks, with a clock that sleeps."""
    run_steps = _sample.run_steps

    def clock():
        time.sleep(seconds)
        return time.monotonic()

    def slow(*args, **options):
        return run_steps(*args, **options, chunk_size=CHUNK, clock=clock)

    _sample.run_steps = _draw.run_steps = slow


def write(draws, out):
    """All arrays, in one file that is there once it is whole."""
    leaves = jax.tree.leaves((draws.samples, draws.info, draws.kernel, draws.state))
    arrays = {f"{i:03d}": np.asarray(leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)}
    arrays["reached"] = np.asarray(draws.attrs["stopped"]["reached"])
    temporary = Path(f"{out}.tmp.npz")
    np.savez(temporary, allow_pickle=False, status=draws.status, **arrays)
    temporary.rename(out)


def main(seconds, *pairs):
    if float(seconds):
        slowed(float(seconds))
    warnings.simplefilter("ignore")
    for folder, out in zip(pairs[::2], pairs[1::2], strict=True):
        write(run(None if folder == "none" else folder), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
