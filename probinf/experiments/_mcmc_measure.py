r"""What runs of Markov chains are measured by: time, programs compiled, evaluations, effective draws, waiting.

With $n_{ct}$ leapfrog steps in draw t of chain c, chains in lockstep make $\sum_t \max_c n_{ct}$ steps, of which
$\frac1C \sum_{ct} n_{ct}$ are needed. Interleaved chains (`probinf.samplers._interleaved`) wait for each other only
until an eighth of them is done, and at the end.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from probinf import samplers
from probinf.core import Draws, Status
from probinf.core._arviz import as_arviz, dataset, import_arviz
from probinf.samplers._interleaved import least_waiting

_COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **_: (
        _COMPILED.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
    )
)


class Timed(NamedTuple):
    """What a call returned, its wall time, and how many programs XLA compiled for it."""

    value: Any
    seconds: float
    compilations: int


def timed(call: Callable[[], Any]) -> Timed:
    """Calls and waits for all arrays."""
    before, begun = len(_COMPILED), time.perf_counter()
    value = call()
    # `Draws` is a leaf here; its draws are on the host already.
    jax.block_until_ready(value)
    return Timed(value, time.perf_counter() - begun, len(_COMPILED) - before)


@contextmanager
def uncached() -> Iterator[None]:
    """Stores no compiled program on disk, where the next call would find it and seem to compile in no time."""
    name = "jax_persistent_cache_min_compile_time_secs"
    usual = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    try:
        yield
    finally:
        jax.config.update(name, usual)


def whole(draws: Draws) -> Draws:
    """The draws, unless Ctrl-C cut them short.

    Raises:
        KeyboardInterrupt: it did.
    """
    if np.any(np.asarray(draws.status) & int(Status.INTERRUPTED)):
        raise KeyboardInterrupt
    return draws


def evaluations(draws: Draws) -> float:
    """Gradients a transition, or evaluations of the density for kernels without gradients; a mean.

    A transition of a random number of steps, uniform on 1 .. n, counts (n + 1) / 2.
    """
    kernel, info = draws.kernel, draws.info
    for name in ("num_steps", "num_evaluations"):
        if name in info:
            return float(np.mean(np.asarray(info[name], np.float64)))
    a_step = 2 if getattr(kernel, "integrator", "") == "minimal norm" else 1
    if isinstance(kernel, samplers.ChEESHMC):
        return (int(kernel.num_steps()) + 1) / 2
    if isinstance(kernel, samplers.HMC | samplers.AdjustedMCLMC):
        most = int(kernel.num_steps)
        return float(a_step * ((most + 1) / 2 if kernel.jitter else most))
    return float(a_step)


def least_ess(columns: np.ndarray) -> float:
    """The smallest bulk ESS of [chains, draws, k] (Vehtari et al. 2021); 0 where a column has none."""
    if not np.all(np.isfinite(columns)):
        return 0.0
    # Not `diagnostics`, which takes four times as long for numbers that are not wanted here.
    found = import_arviz().ess(as_arviz({"posterior": dataset({"x": columns})}, {}), method="bulk")
    return float(np.min(np.nan_to_num(np.asarray(found["x"].values, np.float64), nan=0.0)))


def lockstep_loss(num_steps: np.ndarray) -> float:
    """Steps of chains that wait for the longest trajectory at every draw, over the mean of what they need."""
    steps = np.asarray(num_steps, np.float64)
    return float(steps.max(axis=0).sum() / steps.sum(axis=1).mean())


def interleaved_loss(num_steps: np.ndarray) -> float:
    """The same for interleaved chains, by playing through when each chain goes on."""
    steps = np.maximum(np.asarray(num_steps, np.int64), 1)
    num_chains, num_draws = steps.shape
    least = least_waiting(num_chains)
    left, made, turns = steps[:, 0].copy(), np.zeros(num_chains, np.int64), 0
    active = np.arange(num_chains)
    while active.size:
        wait = min(least, active.size) - 1
        # Where fewer are left than must wait, all of them are waited for.
        passed = max(1, int(np.partition(left[active], wait)[wait]))
        turns += passed
        left[active] -= passed
        due = active[left[active] <= 0]
        made[due] += 1
        ahead = due[made[due] < num_draws]
        left[active] = np.maximum(left[active], 0)
        left[ahead] = steps[ahead, made[ahead]]
        active = active[made[active] < num_draws]
    return turns / float(steps.sum(axis=1).mean())


def losses(num_steps: np.ndarray) -> list[dict[str, Any]]:
    """Both losses, and that of chains that never wait but for the last, of the first 1, 2, 4, ... chains."""
    steps = np.asarray(num_steps)
    sizes = [2**k for k in range(steps.shape[0].bit_length())]
    return [
        {
            "num_chains": size,
            "lockstep": lockstep_loss(steps[:size]),
            "interleaved": interleaved_loss(steps[:size]),
            "independent": float(steps[:size].sum(axis=1).max() / steps[:size].sum(axis=1).mean()),
        }
        for size in sizes
    ]
