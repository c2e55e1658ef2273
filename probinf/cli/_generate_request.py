"""What the options of `probinf generate` ask for, found and checked before anything is run."""

import inspect
import re
import sys
import typing
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax

from probinf import llm
from probinf.cli._check import load as load_object
from probinf.core import PRNGKey
from probinf.llm._chains import extract as last_result
from probinf.llm._selectors import AGGREGATES
from probinf.llm._selectors import RULES as SELECTION_RULES

Extract = Callable[[str], Hashable | None]

# A hyphen on the command line is an underscore in `llm`.
METHODS: Mapping[str, Callable[..., Any]] = {
    "particle-filter": llm.particle_filter,
    "tempered-filter": llm.tempered_filter,
    "entropic-filter": llm.entropic_filter,
    "waste-free": llm.waste_free,
    "particle-gibbs": llm.particle_gibbs,
    "parallel-tempering": llm.parallel_tempering,
    "best-of-n": llm.best_of_n,
    "majority": llm.majority,
    "weighted-majority": llm.weighted_majority,
    "beam": llm.beam,
    "dvts": llm.dvts,
}
# Methods whose answer is one text, and not a law of texts, and the rule by which it is chosen.
RULES = {"best-of-n": "argmax", "beam": "argmax", "dvts": "argmax"}
# What a method must be told and the command line need not.
_DEFAULTS: Mapping[str, dict[str, Any]] = {
    "particle-gibbs": {"num_iterations": 16},
    "parallel-tempering": {"num_iterations": 16},
}
# Arguments of the methods that are called otherwise on the command line, for messages.
_RENAMED = {"num_particles": "particles", "num_iterations": "iterations"}


class Request(NamedTuple):
    """A run that has been asked for.

    Attributes:
        method: function of `llm`.
        key: PRNG key.
        lm: the model.
        prompt: text.
        options: keyword arguments of the method.
        extract: text -> answer; None for the whole text.
        rule: how one text is chosen, None for not at all.
        aggregate: how its steps' scores become one; None for what the rule takes.
    """

    method: Callable[..., Any]
    key: PRNGKey
    lm: llm.LM
    prompt: str
    options: dict[str, Any]
    extract: Extract | None
    rule: str | None
    aggregate: str | None

    def run(self, on_step: Callable[[llm.StepReport], None] | None = None) -> llm.Generations:
        """Runs it; flags are left to the caller."""
        watch = {} if on_step is None else {"on_step": on_step}
        return self.method(self.key, self.lm, self.prompt, throw=False, **self.options, **watch)

    @property
    def can_be_watched(self) -> bool:
        """Whether the method tells what it does."""
        return "on_step" in arguments_of(self.method)

    def select(self, found: llm.Generations) -> llm.Selection | None:
        """The one text that was asked for, if there is one to choose from.

        Raises:
            ValueError: the rule needs scores, and there are none.
        """
        if self.rule is None or not found.weights.any():
            return None
        key = jax.random.fold_in(self.key, 0xFFFFFFFF) if self.rule == "sample" else None
        return found.select(self.rule, extract=self.extract, key=key, aggregate=self.aggregate)


def read_request(
    *,
    prompt: str | None,
    model: str,
    method: str,
    seed: int,
    step: str | None,
    answer: str | None,
    rule: str | None,
    aggregate: str | None,
    options: Mapping[str, Any],
) -> Request:
    """Finds models, method and scorer by their names.

    Args:
        prompt: text; `-` reads standard input, and so does None where that is no terminal.
        model: name or folder.
        method: name.
        seed: of every random number.
        step: text that ends a step, `block:N`, or None for the model's own.
        answer: regular expression, or None.
        rule: of `Generations.select`, or None for the method's own.
        aggregate: of `Generations.select`, and of methods that choose by scores themselves; None for their own.
        options: further arguments of the method; None was not given.

    Raises:
        ValueError: a name that leads nowhere, a number that will not do, or an option that the method has no use for.
        ImportError: a package that a model needs is missing.
        OSError: a model cannot be read.
    """
    if method not in METHODS:
        raise ValueError(f"`--method` must be one of {', '.join(METHODS)}; got {method!r}")
    for name, value, known in (("select", rule, SELECTION_RULES), ("aggregate", aggregate, AGGREGATES)):
        if value is not None and value not in known:
            raise ValueError(f"`--{name}` must be one of {', '.join(known)}; got {value!r}")
    rule = rule or RULES.get(method)
    found: dict[str, Any] = _DEFAULTS.get(method, {}) | {
        name: value for name, value in options.items() if value is not None
    }
    if aggregate is not None and ("aggregate" in arguments_of(METHODS[method]) or rule not in ("argmax", "weighted")):
        found["aggregate"] = aggregate
    _refuse_needless(method, found)
    if not 0 <= seed < 2**32:
        raise ValueError(f"`--seed` must lie between 0 and 2**32 - 1, got {seed}")
    extract = None if answer is None else answer_reader(answer)
    text = _read_prompt(prompt)
    lm = llm.load(model)
    chains = lm.name.startswith("chains")
    found["step"] = step_mode((";" if chains else "\n\n") if step is None else step)
    if "scorer" in found:
        found["scorer"] = _find_scorer(found["scorer"])
    if extract is None and chains:
        extract = last_result
    return Request(METHODS[method], jax.random.key(seed), lm, text, found, extract, rule, aggregate)


def arguments_of(method: Callable[..., Any]) -> set[str]:
    """Names of all arguments, those behind `**options: Unpack[...]` too."""
    names = set()
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (options,) = typing.get_args(parameter.annotation)
            names |= set(typing.get_type_hints(options))
        else:
            names.add(name)
    return names


def step_mode(words: str) -> llm.StepMode:
    r"""The mode of `--step`: `block:16`, or a delimiter in which `\n` and `\t` are a line break and a tab.

    Raises:
        ValueError: no number of tokens after `block:`, or nothing at all.
    """
    if words.startswith("block:"):
        size = words.removeprefix("block:")
        if not size.isdecimal():
            raise ValueError(f"`--step` is {words!r}; needed a number of tokens after the colon, such as `block:16`")
        return llm.block(int(size))
    if not words:
        raise ValueError("`--step` is empty; needed a text that ends a step, or `block:16`")
    return llm.delimiter(words.replace(r"\n", "\n").replace(r"\t", "\t"))


def answer_reader(pattern: str) -> Extract:
    """Reads the last match of a regular expression, its first group if it has one; None where nothing matches.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`--answer` {pattern!r} is no regular expression ({error}): try 'answer is (\\d+)'"
        ) from error

    def extract(text: str) -> str | None:
        matches = list(expression.finditer(text))
        return matches[-1][1 if expression.groups else 0] if matches else None

    return extract


def _read_prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise ValueError("the prompt is missing: write it behind `generate`, or pipe it in, as `echo '7+5*3>' | …`")
    text = sys.stdin.read().strip("\r\n") if prompt in (None, "-") else prompt
    if not text:
        raise ValueError("the prompt is empty: needed at least a character to go on from")
    return text


def _find_scorer(name: str) -> Any:
    module, colon, function = name.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), function)):
        found = load_object("scorer", name)
        if not callable(found):
            raise ValueError(f"`--scorer` {name} is {found!r}; needed a function of prompt and text")
        return found
    return llm.load(name)


def _refuse_needless(method: str, options: Mapping[str, Any]) -> None:
    """An option that a method would not look at is not passed over in silence."""
    known = arguments_of(METHODS[method])
    needless = [name for name in options if name not in known]
    if needless:
        shown = ", ".join(f"`--{_RENAMED.get(name, name).replace('_', '-')}`" for name in needless)
        raise ValueError(f"the method {method} has no use for {shown}: leave it out, or choose another method")
