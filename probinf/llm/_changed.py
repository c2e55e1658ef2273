"""`run_changed`: `run_task` for methods that return something else than what a run makes, such as votes as weights."""

import functools
from collections.abc import Callable
from typing import Any

from probinf.core import PRNGKey
from probinf.llm._collect import StepReport
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._run import Rule
from probinf.llm._task import Task, run_task

Change = Callable[[Generations], Generations]


def run_changed(
    key: PRNGKey,
    task: Task,
    rule: Rule,
    change: Change,
    *,
    on_step: Callable[[StepReport], Any] | None = None,
    throw: bool = True,
    **options: Any,
) -> Generations | GenerationsBatch:
    """Runs a method whose results are changed wherever they show: returned, reported at a step, or in an error.

    Args:
        key: PRNG key.
        task: what to write.
        rule: what happens between the steps.
        change: `Generations -> Generations`.
        on_step: as in `run_task`.
        throw: as in `run_task`.
        **options: of `run_task`.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    watch = functools.partial(_report, on_step, change) if callable(on_step) else on_step
    result = run_task(key, task, rule, on_step=watch, throw=False, **options)
    if isinstance(result, Generations):
        result = change(result)
    else:
        result = GenerationsBatch(tuple(change(one) for one in result))
    return result.check() if throw else result


def _report(on_step: Callable[[StepReport], Any], change: Change, report: StepReport) -> None:
    on_step(report._replace(generations=lambda: change(report.generations())))
