r"""`text_scorer`: a function of the user on the host that reads texts, and what becomes of its faults.

Whatever it does, the run goes on: an exception, None, NaN, a wrong type or a time limit gives NaN for that row, which
counts as weight zero, is flagged (`NAN_LOG_WEIGHT`) and counted, and the cause is kept for the message.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from probinf.core import is_concrete, whole_number
from probinf.llm._host_calls import Outcome, call_all
from probinf.llm._lm import LM
from probinf.llm._potential_types import Prompt, StepView
from probinf.llm._scorers import Reading, Scorer, check_returns

MAX_CAUSES = 20  # different ones kept: messages may hold the text itself


class FaultLog:
    """Counts what failed, by cause. One object a run, changed in place by the host loop.

    Attributes:
        causes: cause -> number of rows, the first `MAX_CAUSES` causes and "other causes".
        num_calls: texts that were judged, equal ones of a step once.
    """

    def __init__(self) -> None:
        self.causes: Counter[str] = Counter()
        self.num_calls = 0

    def add(self, cause: str, rows: int) -> None:
        """Notes that `rows` rows failed for one cause."""
        known = cause in self.causes or len(self.causes) < MAX_CAUSES
        self.causes[cause if known else "other causes"] += rows


class TextScorer(Scorer):
    """See `text_scorer`."""

    function: Callable[..., Any] = eqx.field(static=True)
    returns: str = eqx.field(static=True)
    batched: bool = eqx.field(static=True)
    timeout: float | None = eqx.field(static=True)
    num_workers: int = eqx.field(static=True)
    writer: LM | None = None
    prompt: str | None = eqx.field(static=True, default=None)
    log: FaultLog = eqx.field(static=True, default_factory=FaultLog)

    @property
    def traceable(self) -> bool:
        """Never: it reads texts."""
        return False

    @property
    def gives(self) -> str:
        """What its values are."""
        return self.returns

    def for_model(self, lm: Any) -> "TextScorer":
        """Takes the tokenizer of `lm`, and leaves its weights."""
        return dataclasses.replace(self, writer=LM(None, lm.tokenizer))

    def bind(self, prompt: Prompt) -> "TextScorer":
        """Takes the prompt's text, and starts a new count of faults."""
        text = prompt.text
        if text is None:
            _check_concrete(prompt, self.function)
            text = self._decode(np.asarray(prompt.tokens)[: int(prompt.length)])
        return dataclasses.replace(self, prompt=text, log=FaultLog())

    def update(self, state: PyTree, step: StepView, wanted: Bool[Array, " n"]) -> tuple[PyTree, Reading]:
        """Judges the texts of the rows in `wanted`, equal ones once."""
        _check_concrete((step, wanted), self.function)
        tokens, lengths = np.asarray(step.all_tokens), np.asarray(step.length)
        rows = np.flatnonzero(np.asarray(wanted))
        texts = [self._decode(tokens[i, : lengths[i]]) for i in rows]
        counts = Counter(texts)
        values = np.zeros(len(lengths))
        found = self._judge(counts)
        values[rows] = [found[text] for text in texts]
        return state, Reading(jnp.asarray(values, step.log_prob.dtype), jnp.zeros_like(step.count))

    def causes(self) -> Mapping[str, int]:
        """What failed since `bind`, and for how many rows."""
        return dict(self.log.causes)

    def _judge(self, counts: Counter[str]) -> dict[str, float]:
        """Text -> value; `counts` says how many rows have it."""
        found = {}
        for text, outcome in zip(counts, self._call(list(counts)), strict=True):
            number, cause = _read(outcome, self.returns, _name(self.function))
            found[text] = number
            if cause:
                self.log.add(cause, counts[text])
        self.log.num_calls += len(counts)
        return found

    def _call(self, texts: list[str]) -> list[Outcome]:
        if not texts:
            return []
        options = {"timeout": self.timeout, "num_workers": self.num_workers}
        if not self.batched:
            return call_all(self.function, [(self.prompt, text) for text in texts], **options)
        (whole,) = call_all(self.function, [(self.prompt, texts)], **options)
        if whole.error is not None or whole.value is None:
            return [whole] * len(texts)
        shape = np.shape(whole.value)
        if shape != (len(texts),):
            raise ValueError(f"`{_name(self.function)}` returned shape {shape}; needed ({len(texts)},), one a text")
        return [Outcome(value) for value in whole.value]

    def _decode(self, ids: np.ndarray) -> str:
        if self.writer is None:
            raise TypeError("`for_model` before `bind` and `update`: the tokenizer is that of the model that writes")
        return self.writer.decode(ids)


def text_scorer(
    function: Callable[..., Any],
    *,
    returns: str = "reward",
    timeout: float | int | None = None,
    num_workers: int = 1,
    batched: bool = False,
) -> TextScorer:
    """A scorer from a function on the host, called after each step for each different text.

    `function(prompt, text)` gets the prompt and what was generated so far, as text, and returns a number; in the
    batched form `function(prompt, texts)` gets a list and returns as many numbers. It sees only rows that are being
    written; equal texts are judged once. An exception, None, NaN, a wrong type, a reward outside [0, 1] or a call past
    `timeout` counts as weight zero for that row (in the batched form: an exception or a timeout, for all rows).
    Ctrl-C and `SystemExit` pass through.

    Args:
        function: called in this thread; in others if `timeout` is given or `num_workers` > 1.
        returns: "reward" for numbers in [0, 1] (True is 1), or "log_weight".
        timeout: seconds that one call may take, or None for any time. A thread cannot be stopped: a call that is given
            up goes on in the background, so let a function that waits for a server have a limit of its own too.
        num_workers: how many calls go on at a time; more than 1 helps functions that wait, and they must bear it.
        batched: whether it takes all texts at once.

    Returns:
        A `Scorer`.

    Raises:
        ValueError: an option is out of range; or, when called, it returned arrays of a wrong shape.
        TypeError: `function` is not callable, or `num_workers` not an integer.
    """
    if not callable(function):
        raise TypeError(f"`function` must be a function of the prompt and a text, got {function!r}")
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(f"`timeout` is {timeout!r}; needed seconds above 0, or None")
    workers = whole_number("num_workers", num_workers, 1)
    limit = None if timeout is None else float(timeout)
    return TextScorer(function, check_returns(returns), bool(batched), limit, workers)


def _read(outcome: Outcome, returns: str, name: str) -> tuple[float, str | None]:
    """A function's answer as log odds or log weight, and why it is NaN if it is."""
    value, error = outcome
    if error is not None:
        return math.nan, f"`{name}` raised {type(error).__name__}: {str(error)[:200]}".rstrip(": ")
    shape = getattr(value, "shape", ())
    if shape != ():
        raise ValueError(f"`{name}` returned an array of shape {tuple(shape)} for one text; needed a number")
    number = _as_float(value)
    if number is None:
        what = "None" if value is None else f"{str(value)[:50]!r} ({type(value).__name__})"
        return math.nan, f"`{name}` returned {what}, needed a number"
    if math.isnan(number):
        return math.nan, f"`{name}` returned NaN"
    if returns == "log_weight":
        return number, None
    if not 0 <= number <= 1:
        return math.nan, f"`{name}` returned {number:g}, needed a reward in [0, 1]"
    with np.errstate(divide="ignore"):
        return float(np.log(number) - np.log1p(-number)), None


def _as_float(value: Any) -> float | None:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__") or np.iscomplexobj(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _check_concrete(arrays: PyTree, function: Callable[..., Any]) -> None:
    if not is_concrete(arrays):
        raise TypeError(
            f"`{_name(function)}` reads texts on the host, so that its potential (`traceable` is False) cannot run "
            "under `jit`, `vmap` or `scan`: run it in a host loop, or write a `llm.device_scorer`"
        )
