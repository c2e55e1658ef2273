"""`sample`: many chains of a Markov kernel, with warm-up, storage, checkpoints, stop rules and flags.

Warm-up is pooled: all chains share one step size and one matrix (`probinf.samplers._warmup`). The draws after it are
made by `probinf.samplers._draw`.
"""

import importlib.metadata
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from probinf.core._arguments import whole_number
from probinf.core._control import Remote
from probinf.core._draws import Draws
from probinf.core._driver import run_steps
from probinf.core._fingerprint import fingerprint_of
from probinf.core._kernel import Kernel
from probinf.core._status import FATAL, check_status
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._draw import Continuation, check_stop, divergences, draw, key_text, place, typed
from probinf.samplers._initial import check_call, initial_states
from probinf.samplers._sample_step import SampleState
from probinf.samplers._stopping import StopRule
from probinf.samplers._tuner import check_target_accept
from probinf.samplers._warmup import prepare_warmup
from probinf.samplers._warmup_step import finish_warmup


def sample(
    key: PRNGKey,
    kernel: Kernel,
    target: Target,
    *,
    num_samples: int,
    num_warmup: int = 1000,
    num_chains: int = 4,
    initial_position: Any = None,
    target_accept: float | None = None,
    thin: int = 1,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    collect: bool = True,
    reducer: Any = None,
    stop: StopRule | None = None,
    mesh: jax.sharding.Mesh | None = None,
    throw: bool = True,
) -> Draws:
    """Draws from a target by Markov chains, after a warm-up that tunes the kernel.

    Warm-up is that of the kernel's `Tuner`; most have Stan's (windows, dual averaging), pooled: all chains share one
    step size and one matrix, and a chain with a fatal status is left out of both. A kernel with nothing to tune is run
    `num_warmup` steps all the same. A chain with a fatal status stays where it was; the others do not notice it. All
    chains are compiled once: a second call with new data of the same shape, or other counts, compiles nothing.

    `draws.extend(key, num_samples=...)` goes on with a finished run. A tuned kernel is used again by
    `sample(key, draws.kernel, target, num_warmup=0, initial_position=draws.state.position, ...)`, for another target of
    the same shape too; `start_sampling` does the same as `sample` in the background.

    Args:
        key: PRNG key. The same key, shapes, dtypes and versions give the same draws, with and without a checkpoint.
        kernel: such as `nuts()`, `hmc(num_steps=16)` or `random_walk()`.
        target: density to draw from.
        num_samples: kept draws a chain, at least 1; with `stop` their bound.
        num_warmup: steps of warm-up, 0 for none.
        num_chains: number of chains, at least 1.
        initial_position: unconstrained starting points with leading axis `num_chains`. None draws every coordinate
            uniformly from (-2, 2), at most 10 times where the density or its gradient is not finite.
        target_accept: acceptance rate that warm-up aims at; None takes the kernel's.
        thin: transitions a kept draw.
        checkpoint: folder for `warmup` and `draws`; a run that was killed is resumed bit for bit by the same call.
        progress: shows progress bars on stderr.
        collect: whether draws are kept; without, memory does not depend on `num_samples`.
        reducer: streaming statistics of the samples, such as `Moments()`; the result is `attrs["reduced"]`.
        stop: ends the run once the draws are good enough: `converged(r_hat=1.01, ess=400, mcse=None)`, or a function
            `Draws -> bool` that looks at the draws so far. It is asked at fixed counts, so a run that was killed and
            resumed stops at the same draw. `attrs["stopped"]` tells whether the rule was fulfilled. A checkpoint can
            be continued with another rule, a larger `num_samples`, or none.
        mesh: devices; chains are split over its first axis, whose size must divide `num_chains`. Random numbers do
            not depend on the number of devices, and what is pooled is added in one order. Draws are the same bits
            wherever XLA rounds one chain's density alike in batches of other sizes; it may not for matrix products
            (`nuts` looks for turns with such, of which only signs count), and on CPU with jaxlib 0.12 for fused
            multiply-adds, unless `XLA_FLAGS=--xla_cpu_max_isa=AVX`.
        throw: raises on fatal statuses, and warns once of the others; False hands back the flagged result.

    Returns:
        `Draws` with the constrained samples `[num_chains, num_samples, ...]`, the infos of the kernel, the tuned
        `kernel`, the last `state` and the status of each chain. After Ctrl-C, what was finished, flagged
        `INTERRUPTED`.

    Raises:
        ValueError: a count below 1 (`num_warmup` below 0), `target_accept` outside (0, 1), wrong shapes of
            `initial_position`, a mesh that does not divide the chains, a checkpoint of another run, or a `stop` that
            can never hold, as with `collect=False`.
        TypeError: `kernel` is no kernel, `target` is no `Target`, or an argument is traced: `sample` runs a loop on
            the host, and under `jit` or `vmap` one uses `kernel.step` with `iterate` or `jax.lax.scan`.
        InferenceError: a chain has a fatal status, before the first step where it starts at no finite density. After
            the run, `error.result` is the flagged `Draws`, so nothing is lost.
    """
    job = SampleJob(
        key, kernel, target, num_samples, num_warmup, num_chains, initial_position, target_accept, thin,
        checkpoint, progress, collect, reducer, stop, mesh, throw,
    )  # fmt: skip
    draws = run_job(checked(job, "sample"))
    if throw:
        check_status(draws.status, what="sample", counts=divergences(draws), result=draws)
    return draws


class SampleJob(NamedTuple):
    """The arguments of `sample`."""

    key: PRNGKey
    kernel: Kernel
    target: Target
    num_samples: int
    num_warmup: int
    num_chains: int
    initial_position: Any
    target_accept: float | None
    thin: int
    checkpoint: str | Path | None
    progress: bool
    collect: bool
    reducer: Any
    stop: StopRule | None
    mesh: jax.sharding.Mesh | None
    throw: bool


def checked(job: SampleJob, what: str) -> SampleJob:
    """The job with its counts as Python integers; raises for bad arguments of the function `what`."""
    check_call(what, job.key, job.kernel, job.target, job.initial_position)
    check_target_accept(job.target_accept)
    return job._replace(
        num_samples=whole_number("num_samples", job.num_samples, 1),
        num_chains=whole_number("num_chains", job.num_chains, 1),
        num_warmup=whole_number("num_warmup", job.num_warmup),
        thin=whole_number("thin", job.thin, 1),
    )


def run_job(job: SampleJob, remote: Remote | None = None) -> Draws:
    """Runs it all; flags after the first step are not raised.

    Args:
        job: checked arguments.
        remote: hold on the run from another thread, or None.
    """
    begun = time.perf_counter()
    fingerprint, folders = None, (None, None)
    if job.checkpoint is not None:
        settings = (job.num_warmup, job.num_chains, job.target_accept, job.thin)
        data = jax.random.key_data(typed(job.key))
        fingerprint = fingerprint_of(data, job.kernel, job.target, settings, job.initial_position)
        folders = (Path(job.checkpoint) / "warmup", Path(job.checkpoint) / "draws")

    name = key_text(job.key)
    key_init, key_warmup, key_draws = jax.random.split(job.key, 3)
    chains = initial_states(key_init, job.kernel, job.target, job.num_chains, job.initial_position)
    if job.throw and np.any(np.asarray(chains.status) & int(FATAL)):
        check_status(chains.status, what="sample")
    kernel, target, chains = place(job.kernel, job.target, chains, job.mesh, job.num_chains)

    attrs = {
        "num_warmup": job.num_warmup,
        "thin": job.thin,
        "warmup_seconds": 0.0,
        "sampling_seconds": 0.0,
        "inference_library": "probinf",
        "jax_version": importlib.metadata.version("jax"),
    }
    nowhere = np.full(job.num_chains, -1, np.int32)

    def nothing(kernel: Any, chains: PyTree, tuned: bool) -> Draws:
        """The draws before the first one."""
        origin = Continuation(
            target, job.thin, job.mesh, job.collect, job.reducer, tuned, _fresh(chains), None, 0, nowhere, (name,)
        )
        seconds = {"warmup_seconds": time.perf_counter() - begun}
        chains = origin.state.chains
        return Draws({}, {}, np.asarray(chains.status), None, kernel, chains, attrs | seconds, origin)

    before = nothing(kernel, chains, job.num_warmup == 0)
    check_stop(job.stop, before)
    if job.num_warmup:
        controls = () if remote is None else (remote,)
        if remote is not None:
            remote.view = lambda present: nothing(kernel, present.state.chains, False)
        options = {"checkpoint": folders[0], "fingerprint": fingerprint, "progress": job.progress, "mesh": job.mesh}
        options["controls"] = controls
        before = nothing(*_warm_up(key_warmup, kernel, target, chains, job.num_warmup, job.target_accept, options))
    return draw(
        before, key_draws, job.num_samples, stop=job.stop, remote=remote, checkpoint=folders[1],
        fingerprint=None if fingerprint is None else fingerprint_of(fingerprint, job.reducer),
        progress=job.progress,
    )  # fmt: skip


def _warm_up(
    key: PRNGKey, kernel: Any, target: Target, chains: PyTree, num_steps: int, target_accept: float | None, options: Any
) -> tuple[Any, PyTree, bool]:
    """The tuned kernel, the chains after warm-up, and whether it was finished."""
    step, state = prepare_warmup(kernel, target, chains, num_steps, target_accept, options["mesh"])
    run = run_steps(key, step, state, num_steps, name="warmup", collect=False, **options)
    return finish_warmup(step, run.state), run.state.chains, not run.interrupted


@eqx.filter_jit
def _fresh(chains: PyTree) -> SampleState:
    """The state before the first draw. Divergences of warm-up are part of tuning and are forgotten; fatal bits stay."""
    chains = eqx.tree_at(lambda c: c.status, chains, chains.status & jnp.uint32(int(FATAL)))
    zeros = jnp.zeros(chains.status.shape, jnp.int32)
    return SampleState(chains, zeros, zeros - 1)
