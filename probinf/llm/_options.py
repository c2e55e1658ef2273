"""Arguments that all methods share, as types: those of `make_task`, and those of `run_task` that are a user's."""

from collections.abc import Callable, Sequence
from typing import (
    Any,
    Concatenate,
    NamedTuple,
    ParamSpec,
    Protocol,
    Required,
    TypedDict,
    cast,
    overload,
    runtime_checkable,
)

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf.core import PRNGKey
from probinf.llm._collect import StepReport
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._labels import label_of, name_of
from probinf.llm._lm import LM
from probinf.llm._masks import TokenMask
from probinf.llm._potential_types import Potential
from probinf.llm._step import StepMode, as_ends
from probinf.llm._task import Task, make_task
from probinf.samplers import AbstractScheme
from probinf.samplers._particle_filter import find_scheme


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


Others = ParamSpec("Others")


@runtime_checkable
class Method(Protocol[Others]):
    """A method of this room: one prompt gives `Generations`, a list of prompts a `GenerationsBatch`."""

    @overload
    def __call__(
        self, key: PRNGKey, lm: LM, prompt: str | Sequence[int], *args: Others.args, **kwargs: Others.kwargs
    ) -> Generations: ...

    @overload
    def __call__(
        self,
        key: PRNGKey,
        lm: LM,
        prompt: list[str] | Sequence[Sequence[int]],
        *args: Others.args,
        **kwargs: Others.kwargs,
    ) -> GenerationsBatch: ...

    def __call__(self, key: Any, lm: Any, prompt: Any, *args: Others.args, **kwargs: Others.kwargs) -> Any:
        """Runs the method."""
        ...


def one_or_several(
    function: Callable[Concatenate[PRNGKey, LM, Any, Others], Generations | GenerationsBatch],
) -> Method[Others]:
    """The function itself, with a type that tells what it returns for what prompt.

    Args:
        function: a method.
    """
    return cast(Any, function)


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
    """A task of `make_task`, which checks everything, and whose settings name all that it was told.

    Raises:
        TypeError: an option is missing or unknown.
    """
    for name in ("step", "max_steps"):
        if name not in text:
            mend = 'step=llm.delimiter(";")' if name == "step" else "max_steps=40"
            raise TypeError(f"`{name}` is missing: pass, for example, `{mend}`")
    task = make_task(lm, prompt, **text)
    told = {
        **label_of(task.setup.potential)._asdict(),
        "step_tokens": task.setup.step_tokens,
        "stop": list(as_ends("stop", text.get("stop"))) or None,
        "mask": name_of(text.get("mask")),
    }
    return task._replace(settings=task.settings | told)


class Resampling(NamedTuple):
    """How a method resamples.

    Attributes:
        scheme: draws ancestors.
        name: of the scheme.
        threshold: the fraction of N below which an ESS asks for it.
        settings: both, for the result.
    """

    scheme: AbstractScheme
    name: str
    threshold: Float[Array, ""]
    settings: dict[str, Any]


def resampling_of(resampling: str | AbstractScheme, ess_threshold: Any) -> Resampling:
    """A user's arguments `resampling` and `ess_threshold`, checked.

    Args:
        resampling: a name or a scheme.
        ess_threshold: a number in [0, 1].

    Raises:
        ValueError: the name is unknown, or the number is out of range.
    """
    scheme, threshold = find_scheme(resampling), fraction("ess_threshold", ess_threshold)
    name = type(scheme).__name__.lower()
    return Resampling(scheme, name, threshold, {"resampling": name, "ess_threshold": float(ess_threshold)})


def fraction(name: str, value: Any) -> Float[Array, ""]:
    """`value` as an array.

    Args:
        name: what the caller calls it, for the error.
        value: a number in [0, 1].

    Raises:
        ValueError: it is not.
    """
    if value is None or not 0 <= float(value) <= 1:
        raise ValueError(f"`{name}` is {value!r}; needed a number in [0, 1]")
    return jnp.asarray(value, float)
