"""Arguments that all methods share, as types: those of `make_task`, and those of `run_task` that are a user's."""

from collections.abc import Callable
from typing import Any, NamedTuple, Required, TypedDict

import jax

from probinf.llm._collect import StepReport
from probinf.llm._lm import LM
from probinf.llm._masks import TokenMask
from probinf.llm._potential_types import Potential
from probinf.llm._step import StepMode
from probinf.llm._task import Task, make_task


class TextOptions(TypedDict, total=False):
    """What a method is told about its texts; each is as in `particle_filter`."""

    step: Required[StepMode]
    max_steps: Required[int]
    scorer: Any
    potential: Potential | str | None
    max_tokens: int | None
    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    mask: TokenMask | None
    base: str
    stop: Any


class RunOptions(TextOptions, total=False):
    """What a method is told about its texts and its run; each is as in `particle_filter`."""

    mesh: jax.sharding.Mesh | None
    on_step: Callable[[StepReport], Any] | None
    throw: bool


class Parted(NamedTuple):
    """Options for `make_task`, and for `run_task`."""

    text: dict[str, Any]
    run: dict[str, Any]


RUN = ("mesh", "on_step", "throw")


def part(options: RunOptions) -> Parted:
    """The options by whom they are for."""
    run = {name: value for name, value in options.items() if name in RUN}
    return Parted({name: value for name, value in options.items() if name not in RUN}, run)


def task_of(lm: LM, prompt: Any, text: dict[str, Any]) -> Task:
    """A task of `make_task`, which checks everything.

    Raises:
        TypeError: an option is missing or unknown.
    """
    for name in ("step", "max_steps"):
        if name not in text:
            mend = 'step=llm.delimiter(";")' if name == "step" else "max_steps=40"
            raise TypeError(f"`{name}` is missing: pass, for example, `{mend}`")
    return make_task(lm, prompt, **text)
