"""`warmup`: tunes a kernel with many chains that learn together, interleaved where they can be."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from probinf.core._arguments import whole_number
from probinf.core._driver import run_steps
from probinf.core._status import FATAL, Status, check_status, is_fatal
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._find_tuner import find_tuner
from probinf.samplers._initial import check_call, initial_states
from probinf.samplers._interleaved import SteppedKernel
from probinf.samplers._interleaved_warmup import InterleavedWarmup
from probinf.samplers._stan_tuner import StanTuner
from probinf.samplers._tuner import check_target_accept
from probinf.samplers._warmup_step import PlainWarmupStep, WarmupStep, finish_warmup


def prepare_warmup(
    kernel: Any, target: Target, chains: PyTree, num_steps: int, target_accept: float | None, mesh: Any
) -> tuple[Any, Any]:
    """The step of a warm-up, and its state at the beginning, for `run_steps` with `collect=False`.

    A kernel with nothing to tune is only run. `finish_warmup` takes the step and the last state.
    """
    tuner = find_tuner(kernel, num_steps, target_accept)
    if tuner is None:
        step = PlainWarmupStep(kernel, target)
    else:
        # A tuner of the user's own expects a transition of all chains a step, and may have nothing to prepare.
        stepped = isinstance(kernel, SteppedKernel) and isinstance(tuner, StanTuner)
        step = (InterleavedWarmup if stepped else WarmupStep)(tuner, target, mesh)
    return step, step.begin(chains)


def warmup(
    key: PRNGKey,
    kernel: Any,
    target: Target,
    *,
    num_steps: int = 1000,
    num_chains: int = 4,
    initial_position: Any = None,
    target_accept: float | None = None,
    throw: bool = True,
) -> Any:
    """Tunes a kernel with many chains that learn together.

    A `TunableKernel` learns its step size by dual averaging and its matrix in the windows of Stan, both pooled over
    the chains; other kernels have a `Tuner` of their own, and combined ones are tuned part by part.

    Args:
        key: PRNG key.
        kernel: with something to tune: a `TunableKernel` such as those made by `hmc`, `nuts` and `random_walk`, one
            that has a tuner of its own, or a combination in which there is one.
        target: density to tune for.
        num_steps: length; below 20 only the step size is tuned.
        num_chains: number of chains that learn together.
        initial_position: as for `sample`.
        target_accept: acceptance rate to aim at, the same for each part of a combined kernel; None takes the
            kernel's (.8 for `hmc`, .234 for `random_walk`).
        throw: raises where a chain has a fatal status, and warns where Ctrl-C cut the warm-up short; False hands
            back the kernel all the same. Divergences are part of tuning and are not told.

    Returns:
        The tuned kernel: `sample(key, tuned, target, num_warmup=0)` uses it. Chains with a fatal status are left
        out; when all are, the kernel keeps its matrix.

    Raises:
        TypeError: the kernel has nothing to tune, `target` is no `Target`, or an argument is traced.
        ValueError: a count below 1, or `target_accept` outside (0, 1).
        InferenceError: a chain has a fatal status at its start, or at the end; then `error.result` is the kernel.
    """
    if find_tuner(kernel, 1, None) is None:
        raise TypeError(
            f"`kernel` is {kernel!r}, in which `warmup` finds nothing to tune: pass `nuts()`, `hmc()`, "
            "`random_walk()`, another `TunableKernel`, or one with a method `tuner`"
        )
    check_call("warmup", key, kernel, target, initial_position)
    num_steps, num_chains = whole_number("num_steps", num_steps, 1), whole_number("num_chains", num_chains, 1)
    check_target_accept(target_accept)
    key_init, key_run = jax.random.split(key)
    chains = initial_states(key_init, kernel, target, num_chains, initial_position)
    if throw and np.any(np.asarray(is_fatal(chains.status))):
        check_status(chains.status, what="warmup")
    step, state = prepare_warmup(kernel, target, chains, num_steps, target_accept, None)
    run = run_steps(key_run, step, state, num_steps, name="warmup", collect=False)
    tuned = finish_warmup(step, run.state)
    if throw:
        faults = np.asarray(run.state.chains.status) & np.uint32(int(FATAL))
        faults = faults | np.uint32(int(Status.INTERRUPTED) if run.interrupted else 0)
        check_status(faults, what="warmup", result=tuned)
    return tuned
