"""`warmup`: tunes a kernel with many chains that learn together, interleaved where the kernel can be."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from probinf.core._arguments import whole_number
from probinf.core._driver import run_steps
from probinf.core._status import FATAL, Status, check_status, is_fatal
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._initial import check_call, initial_states
from probinf.samplers._interleaved import SteppedKernel
from probinf.samplers._interleaved_warmup import InterleavedWarmup
from probinf.samplers._warmup_step import (
    check_target_accept,
    check_tunable,
    finish_warmup,
    start_warmup,
    warmup_step,
)


def prepare_warmup(
    kernel: Any, target: Target, chains: PyTree, num_steps: int, target_accept: float | None, mesh: Any
) -> tuple[Any, Any]:
    """The step of a warm-up, and its state at the beginning, for `run_steps` with `collect=False`."""
    step, state = warmup_step(kernel, target, num_steps, target_accept, mesh), start_warmup(kernel, chains)
    if not isinstance(kernel, SteppedKernel):
        return step, state
    interleaved = InterleavedWarmup(step.kernel, step.target, step.windows, step.target_accept, step.mesh)
    return interleaved, interleaved.begin(state)


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
    """Tunes a kernel: the step size by dual averaging, the matrix in the windows of Stan, pooled over chains.

    Args:
        key: PRNG key.
        kernel: a kernel made by `hmc` or `random_walk`, or any `TunableKernel`.
        target: density to tune for.
        num_steps: length; below 20 only the step size is tuned.
        num_chains: number of chains that learn together.
        initial_position: as for `sample`.
        target_accept: acceptance rate to aim at; None takes the kernel's (.8 for `hmc`, .234 for `random_walk`).
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
    check_tunable("warmup", kernel)
    check_call("warmup", key, kernel, target, initial_position)
    num_steps, num_chains = whole_number("num_steps", num_steps, 1), whole_number("num_chains", num_chains, 1)
    check_target_accept(target_accept)
    key_init, key_run = jax.random.split(key)
    chains = initial_states(key_init, kernel, target, num_chains, initial_position)
    if throw and np.any(np.asarray(is_fatal(chains.status))):
        check_status(chains.status, what="warmup")
    step, state = prepare_warmup(kernel, target, chains, num_steps, target_accept, None)
    run = run_steps(key_run, step, state, num_steps, name="warmup", collect=False)
    tuned = finish_warmup(kernel, run.state)
    if throw:
        faults = np.asarray(run.state.chains.status) & np.uint32(int(FATAL))
        faults = faults | np.uint32(int(Status.INTERRUPTED) if run.interrupted else 0)
        check_status(faults, what="warmup", result=tuned)
    return tuned
