"""`run_passes`: the iterations of a Markov chain on texts, compiled in chunks under the run driver of `core`.

Between chunks the host can show progress and hear Ctrl-C, so that the passes that are done are never lost; and one
program serves every number of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from probinf.core import PRNGKey, Status, run_steps
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._task import Task


class Passes(NamedTuple):
    """What is done of a chain.

    Attributes:
        records: NumPy arrays, leading axis the passes, those of the burn-in first.
        status: `INTERRUPTED` where Ctrl-C ended it early, else 0.
    """

    records: Any
    status: int


def run_passes(
    key: PRNGKey,
    step: Callable[..., tuple[PyTree, PyTree]],
    state: PyTree,
    num_burn_in: int,
    num_kept: int,
    *,
    name: str,
    progress: bool = False,
) -> Passes:
    """Runs a chain; pass i has the key `fold_in(key, i)`.

    Args:
        key: PRNG key.
        step: `(key, index, state) -> (state, record)`, an `equinox.Module`.
        state: before the first pass.
        num_burn_in: passes before those that are kept.
        num_kept: passes that are kept.
        name: of the method, for the display and the message.
        progress: whether to show how many are done.

    Raises:
        KeyboardInterrupt: Ctrl-C before any pass was done that is kept.
    """
    run = run_steps(key, step, state, num_burn_in + num_kept, name=name, progress=progress)
    if run.num_done <= num_burn_in:
        raise KeyboardInterrupt(
            f"`{name}` was interrupted after {run.num_done} passes, and the first {num_burn_in} are burn-in: there is "
            "nothing to return"
        )
    return Passes(run.records, int(Status.INTERRUPTED) if run.interrupted else 0)


def for_problems(
    key: PRNGKey, task: Task, one: Callable[[PRNGKey, int], Generations]
) -> Generations | GenerationsBatch:
    """Runs every problem of a task, with keys as in `run_task`; after Ctrl-C those that are done come back.

    Args:
        key: PRNG key.
        task: with one prompt or several.
        one: `(key, index) -> Generations`.

    Raises:
        KeyboardInterrupt: Ctrl-C before anything was done.
    """
    if not task.several:
        return one(key, 0)
    # Folded all at once: each is another key, and so is used once.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(task.ids)))
    found: list[Generations] = []
    for index in range(len(task.ids)):
        try:
            found.append(one(keys[index], index))
        except KeyboardInterrupt:
            if not found:
                raise
            found[-1] = found[-1].with_status(Status.INTERRUPTED)
        if found[-1].status & Status.INTERRUPTED:
            break
    return GenerationsBatch(tuple(found))
