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
    "twisted-smc": llm.twisted_smc,
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
_WORDS = {None: "every step"}  # of a threshold


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

    def run(
        self, on_step: Callable[[llm.StepReport], None] | None = None, *, progress: bool = False
    ) -> llm.Generations:
        """Runs it; flags are left to the caller. `progress` is for methods that show by themselves what is done."""
        watch: dict[str, Any] = {} if on_step is None else {"on_step": on_step}
        if progress and "progress" in arguments_of(self.method):
            watch["progress"] = True
        return self.method(self.key, self.lm, self.prompt, throw=False, **self.options, **watch)

    @property
    def can_be_watched(self) -> bool:
        """Whether the method tells what it does after each step."""
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
    _refuse_missing(method, found)
    if not 0 <= seed < 2**32:
        raise ValueError(f"`--seed` must lie between 0 and 2**32 - 1, got {seed}")
    extract = None if answer is None else answer_reader(answer)
    text = _read_prompt(prompt)
    lm = llm.load(model)
    chains = lm.name.startswith("chains")
    found["step"] = step_mode((";" if chains else "\n\n") if step is None else step)
    for name in ("scorer", "twist"):
        if name in found:
            found[name] = _find_scorer(name, found[name])
    if "stop" in found:
        found["stop"] = [unescaped(words) for words in found["stop"]]
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


def default_of(argument: str) -> str:
    """The words for the default of an argument of the methods: the most common one, and what others have instead.

    Args:
        argument: its name; of methods that have one of their own.
    """
    methods: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        parameter = inspect.signature(method).parameters.get(argument)
        if parameter is not None:
            default = parameter.default
            methods.setdefault(str(_WORDS.get(default, default)), []).append(name)
    common, *others = sorted(methods, key=lambda words: -len(methods[words]))
    return "; ".join([common, *(f"{words} for {' and '.join(methods[words])}" for words in others)])


def unescaped(words: str) -> str:
    r"""The text with a line break for `\n` and a tab for `\t`, which are hard to type in a shell."""
    return words.replace(r"\n", "\n").replace(r"\t", "\t")


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
    return llm.delimiter(unescaped(words))


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


def _find_scorer(option: str, name: str) -> Any:
    module, colon, function = name.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), function)):
        found = load_object(option, name)
        if not callable(found):
            raise ValueError(f"`--{option}` {name} is {found!r}; needed a function of prompt and text")
        return found
    return llm.load(name)


def _refuse_needless(method: str, options: Mapping[str, Any]) -> None:
    """An option that a method would not look at is not passed over in silence."""
    known = arguments_of(METHODS[method])
    needless = [name for name in options if name not in known]
    if needless:
        shown = ", ".join(map(_option, needless))
        raise ValueError(f"the method {method} has no use for {shown}: leave it out, or choose another method")


def _refuse_missing(method: str, options: Mapping[str, Any]) -> None:
    """What a method cannot do without is asked for by the name that it has here."""
    needed = [
        name
        for name, parameter in inspect.signature(METHODS[method]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is inspect.Parameter.empty
    ]
    missing = [name for name in needed if name not in options and name != "step"]  # a step has a default here
    if missing:
        raise ValueError(f"the method {method} needs {', '.join(map(_option, missing))}")


def _option(name: str) -> str:
    return f"`--{_RENAMED.get(name, name).replace('_', '-')}`"
