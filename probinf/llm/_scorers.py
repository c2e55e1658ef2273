r"""`Scorer`: says how good the texts so far are, as a reward $r_t \in [0, 1]$ or as a log weight.

A scorer knows nothing of targets; a potential turns what it says into weights. Rewards travel as log odds
$\log r - \log(1 - r)$, which hold 1e-30 and 1 - 1e-7 in float32 as well as 0 (-inf) and 1 (+inf).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.llm._odds import log_odds
from probinf.llm._potential_types import Prompt, StepView

GIVES = ("reward", "log_weight")


class Reading(NamedTuple):
    """What a scorer says of N rows.

    Attributes:
        value: [N] log odds of the reward, or a log weight, whichever the scorer gives; NaN where it failed. Entries of
            rows that were not wanted mean nothing.
        num_tokens: [N] tokens that a language model was fed.
    """

    value: Float[Array, " n"]
    num_tokens: Int[Array, " n"]


class Scorer(eqx.Module):
    """Scores of the texts so far; subclass it and define `update`. `bind`, `start` and the rest are as in `Potential`.

    Law: the state of a row that is not active does not change.
    """

    @property
    def traceable(self) -> bool:
        """Whether it may run under `jit`."""
        return True

    @property
    def gives(self) -> str:
        """What its values are: "reward" (log odds of r in [0, 1]) or "log_weight"."""
        return "reward"

    def for_model(self, lm: Any) -> "Scorer":
        """The scorer for texts of one model; by default itself.

        Args:
            lm: the `LM` that proposes.

        Returns:
            The scorer.
        """
        del lm
        return self

    def context(self) -> int | None:
        """The most tokens, prompt and text together, that it can read; None for any number."""
        return None

    def bind(self, prompt: Prompt) -> "Scorer":
        """The scorer for this prompt; by default itself."""
        del prompt
        return self

    def start(self, num_rows: int, capacity: int) -> PyTree:
        """The state before the first step; by default None."""
        del num_rows, capacity
        return None

    def update(self, state: PyTree, step: StepView, wanted: Bool[Array, " n"]) -> tuple[PyTree, Reading]:
        """Reads one step; only rows in `wanted`, all of them active, need a value."""
        raise TypeError(f"`{type(self).__name__}` does not define `update`: define it")

    def causes(self) -> Mapping[str, int]:
        """What failed on the host since `bind`, and for how many rows."""
        return {}


class DeviceScorer(Scorer):
    """See `device_scorer`."""

    function: Callable[[StepView], Float[Array, " n"]]
    returns: str = eqx.field(static=True)

    @property
    def gives(self) -> str:
        """What its values are."""
        return self.returns

    def update(self, state: PyTree, step: StepView, wanted: Bool[Array, " n"]) -> tuple[PyTree, Reading]:
        """Calls the function."""
        del wanted
        value = checked_shape(self.function(step), step, getattr(self.function, "__name__", "the scorer's function"))
        value = value.astype(step.log_prob.dtype)
        value = log_odds(value) if self.returns == "reward" else value
        return state, Reading(value, jnp.zeros_like(step.count))


def device_scorer(function: Callable[[StepView], Float[Array, " n"]], *, returns: str = "reward") -> DeviceScorer:
    """A scorer from a function on the device.

    Args:
        function: `StepView -> [N]`, traceable; an `equinox.Module` if it has parameters that are to change without a
            new compilation. A reward outside [0, 1] counts as NaN.
        returns: "reward" for numbers in [0, 1], or "log_weight".

    Raises:
        ValueError: `returns` is neither; or, when called, the result is not of shape [N].
        TypeError: `function` is not callable.
    """
    if not callable(function):
        raise TypeError(f"`function` must be a function of a `StepView`, got {function!r}")
    return DeviceScorer(function, check_returns(returns))


def check_returns(returns: str) -> str:
    """`returns` itself if a scorer can give it.

    Raises:
        ValueError: it cannot.
    """
    if returns not in GIVES:
        raise ValueError(f"`returns` is {returns!r}; needed one of {', '.join(map(repr, GIVES))}")
    return returns


def checked_shape(value: Any, step: StepView, name: str) -> Float[Array, " n"]:
    """`value` as an array if it has one entry a row.

    Args:
        value: what a scorer's function returned.
        step: what it was given.
        name: what to call the function in the message.

    Raises:
        ValueError: it has another shape, or holds no numbers.
    """
    value, needed = jnp.asarray(value), step.count.shape
    if value.shape != needed:
        raise ValueError(f"`{name}` returned shape {value.shape} for tokens {step.tokens.shape}; needed {needed}")
    if jnp.iscomplexobj(value):
        raise ValueError(f"`{name}` returned {value.dtype} numbers; needed real ones")
    return value
