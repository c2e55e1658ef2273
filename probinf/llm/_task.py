"""`make_task` and `run_task`: the host's side of every method, from the user's arguments to `Generations`.

A method makes a task of its arguments, and runs it with its rule; all methods thus share the checks, the compiled
programs and the account of costs.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from probinf.core import (
    Population,
    PRNGKey,
    Status,
    compiled,
    is_traceable,
    place,
    whole_number,
    with_changes,
)
from probinf.llm._collect import StepReport, make_generations
from probinf.llm._decode import BASES
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._host_run import State, as_run, run_on_host
from probinf.llm._keep_best import score_of_steps
from probinf.llm._labels import prompt_tokens
from probinf.llm._lm import LM, bucket, make_prompt
from probinf.llm._masks import TokenMask
from probinf.llm._matcher import find_matcher
from probinf.llm._model import Setup
from probinf.llm._potential_types import Potential, Prompt
from probinf.llm._potentials import find_potential
from probinf.llm._rows import Rows
from probinf.llm._run import Recorder, Rule, Run, run_steps
from probinf.llm._sampling import sampling_of
from probinf.llm._step import StepMode, as_ends
from probinf.llm._step_reader import PROBLEMS


class Task(NamedTuple):
    """What a run is told, checked.

    Attributes:
        lm: the model that writes.
        setup: all but the prompts.
        texts: the prompts as texts.
        ids: their token ids.
        size: what they are padded to.
        several: whether they came as a list, so that a `GenerationsBatch` goes back.
        settings: plain values, for the result.
    """

    lm: LM
    setup: Setup
    texts: tuple[str, ...]
    ids: tuple[np.ndarray, ...]
    size: int
    several: bool
    settings: dict[str, Any]

    def prompt(self, index: int, *, with_text: bool = False) -> Prompt:
        """The prompt of one problem, padded."""
        return make_prompt(self.ids[index], self.size, self.texts[index] if with_text else None)

    def prompts(self) -> tuple[Array, Array]:
        """Tokens [P] and length [] of the prompt; of several of them, stacked."""
        tokens = np.zeros((len(self.ids), self.size), np.int32)
        for row, ids in zip(tokens, self.ids, strict=True):
            row[: ids.size] = ids
        lengths = np.asarray([ids.size for ids in self.ids], np.int32)
        if self.several:
            return jnp.asarray(tokens), jnp.asarray(lengths)
        return jnp.asarray(tokens[0]), jnp.asarray(lengths[0])


def make_task(
    lm: LM,
    prompt: Any,
    *,
    scorer: Any = None,
    potential: Potential | str | None = None,
    step: StepMode,
    max_steps: int,
    max_tokens: int | None = None,
    temperature: Any = 1.0,
    top_k: Any = None,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    mask: TokenMask | None = None,
    base: str = "proposal",
    stop: Any = None,
) -> Task:
    """Checks the arguments that all methods share; they are those of `particle_filter`.

    Raises:
        ValueError: a number is out of range, a prompt is empty, unknown to the model or longer than a context, or names
            do not exist.
        TypeError: an argument is of a wrong type.
    """
    if not isinstance(lm, LM):
        raise TypeError(f"`lm` is a {type(lm).__name__}; needed an `LM`, such as `llm.load('chains')`")
    if not isinstance(step, StepMode):
        raise TypeError(f'`step` is {step!r}; needed `llm.delimiter(";")` or `llm.block(16)`')
    if not (mask is None or isinstance(mask, TokenMask)):
        raise TypeError(f"`mask` is {mask!r}; needed a `TokenMask`, such as `llm.ban_tokens([5])`, or None")
    if base not in BASES:
        raise ValueError(f"`base` is {base!r}; needed one of {list(BASES)}")
    max_steps = whole_number("max_steps", max_steps, 1)
    found = find_potential(potential, scorer, lm)
    several = _is_several(prompt)
    prompts = list(prompt) if several else [prompt]
    if not prompts:
        raise ValueError("`prompt` is an empty list: needed a prompt, or a list of prompts")
    names = [f"prompt[{i}]" for i in range(len(prompts))] if several else ["prompt"]
    ids = tuple(lm.encode(one, name) for one, name in zip(prompts, names, strict=True))
    texts = tuple(one if isinstance(one, str) else lm.decode(row) for one, row in zip(prompts, ids, strict=True))
    size, capacity = _sizes(lm, found, ids, names, max_steps * step.max_tokens, max_tokens)
    setup = Setup(
        network=lm.model,
        sampling=sampling_of(temperature, top_k, top_p, min_p),
        mask=mask,
        delimiters=find_matcher("step", step.delimiters, lm),
        stops=find_matcher("stop", (*as_ends("stop", stop), *lm.stop_ids), lm),
        potential=found,
        max_steps=max_steps,
        step_tokens=step.max_tokens,
        capacity=capacity,
        base=base,
    )
    settings = {
        "model": lm.name,
        "step": repr(step.delimiters) if step.delimiters else f"{step.max_tokens} tokens",
        "max_steps": max_steps,
        "max_tokens": capacity,
        "base": base,
    }
    numbers = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    settings |= {name: _plain(value) for name, value in numbers.items() if value is not None}
    return Task(lm, setup, texts, ids, size, several, settings)


def run_task(
    key: PRNGKey,
    task: Task,
    rule: Rule,
    *,
    num_particles: int,
    method: str,
    scheme: str = "",
    settings: Mapping[str, Any] | None = None,
    has_evidence: bool = True,
    context: PyTree = None,
    record: Callable[[Population], PyTree] | None = None,
    fixed_slots: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    on_step: Callable[[StepReport], Any] | None = None,
    throw: bool = True,
) -> Generations | GenerationsBatch:
    """Runs a method on the prompts of a task: in one compiled program, or in a host loop where that is needed.

    Problem i of a list is the run of `jax.random.fold_in(key, i)`. With a potential, or a rule, that cannot be traced,
    or with `on_step`, problems run one after the other, and after Ctrl-C those that were begun come back.

    Args:
        key: PRNG key.
        task: of `make_task`.
        rule: what happens between the steps, see `run_steps`.
        num_particles: N >= 1.
        method: its name.
        scheme: the name of its resampling scheme.
        settings: further plain values for the result.
        has_evidence: whether the rule keeps the law of the population, so that there is an evidence.
        context: see `run_steps`.
        record: see `run_steps`; its leaves must be arrays, which come back in `records` by name if it gives a dict.
        fixed_slots: see `run_steps`.
        mesh: devices to spread the rows over, or None.
        on_step: called after each step.
        throw: whether a fatal status raises; others give one warning.

    Returns:
        `Generations`, or a `GenerationsBatch` for a list of prompts.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    num_particles = whole_number("num_particles", num_particles, 1)
    if not (on_step is None or callable(on_step)):
        raise TypeError(f"`on_step` is {on_step!r}; needed a function of a `StepReport`, or None")
    home, began = place(mesh), time.perf_counter()
    finish = functools.partial(
        _generations,
        task,
        method=method,
        scheme=scheme,
        has_evidence=has_evidence,
        settings=task.settings | {"num_particles": num_particles} | dict(settings or {}),
    )
    options = {"num_particles": num_particles, "context": context, "record": record, "fixed_slots": fixed_slots}
    found = []
    if task.setup.potential.traceable and is_traceable(rule) and on_step is None:
        run_arrays = _run(key, task.setup, *task.prompts(), rule, home=home, several=task.several, **options)
        runs = jax.device_get(run_arrays)
        seconds = time.perf_counter() - began
        for index in range(len(task.ids)):
            run = jax.tree.map(lambda leaf, i=index: leaf[i], runs) if task.several else runs
            found.append(finish(index, run, seconds, {}))
    else:
        for index in range(len(task.ids)):
            own_key = jax.random.fold_in(key, index) if task.several else key
            watch = None
            if on_step is not None:
                read = prompt_tokens(task.setup.potential, task.ids[index].size)
                watch = functools.partial(_tell, on_step, task, functools.partial(finish, index), record, began, read)
            run, potential = run_on_host(
                own_key, task.setup, task.prompt(index, with_text=True), rule, home=home, watch=watch, **options
            )
            run = jax.device_get(_light(run))
            found.append(finish(index, run, time.perf_counter() - began, potential.causes()))
            if run.population.status & Status.INTERRUPTED:
                break
    result = GenerationsBatch(tuple(found)) if task.several else found[0]
    return result.check() if throw else result


@compiled
def _run(
    key: PRNGKey,
    setup: Setup,
    tokens: Int[Array, "*problems p"],
    length: Int[Array, "*problems"],
    rule: Rule,
    *,
    num_particles: int,
    context: PyTree,
    record: Callable[[Population], PyTree] | None,
    home: place,
    fixed_slots: bool,
    several: bool,
) -> Run:
    def one(key: PRNGKey, tokens: Array, length: Array) -> Run:
        model = setup.model(Prompt(tokens, length), axis_name=PROBLEMS if several else None)
        return _light(
            run_steps(
                key,
                model,
                rule,
                num_particles=num_particles,
                context=context,
                record=record,
                home=home,
                fixed_slots=fixed_slots,
            )
        )

    if not several:
        return one(key, tokens, length)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(length.shape[0]))
    return jax.vmap(one, axis_name=PROBLEMS)(keys, tokens, length)


def _light(run: Run) -> Run:
    """The run without caches."""
    population = with_changes(run.population, particles=run.population.particles.with_heavy())
    return Run(population, run.records)


def _generations(
    task: Task,
    index: int,
    run: Run,
    seconds: float,
    causes: Mapping[str, int],
    *,
    method: str,
    scheme: str,
    has_evidence: bool,
    settings: Mapping[str, Any],
) -> Generations:
    """The result of one problem."""
    population, records = run
    rows: Rows = population.particles
    scored = int(np.sum(records.scorer_tokens))
    bad = np.flatnonzero(np.asarray(records.status))
    extra = records.extra if isinstance(records.extra, dict) else {}
    return make_generations(
        prompt=task.texts[index],
        prompt_ids=task.ids[index],
        decode=task.lm.decode,
        tokens=rows.tokens,
        length=rows.length,
        finished=rows.stopped,
        log_prob=rows.log_prob,
        log_weights=population.log_weights,
        scores=rows.scores,
        boundaries=rows.boundaries,
        num_steps=rows.num_steps,
        ancestors=records.ancestors[1:],
        ess=records.ess,
        resampled=records.resampled,
        log_weight_path=records.log_weights,
        finished_path=records.finished,
        method=method,
        tokens_used=int(np.sum(records.step_tokens)),
        scorer_tokens_used=scored + prompt_tokens(task.setup.potential, task.ids[index].size),
        seconds=seconds,
        log_evidence=float(records.log_evidence[-1]) if has_evidence else float("nan"),
        scheme=scheme,
        status=int(population.status),
        num_failed=int(np.sum(records.num_nan)),
        first_bad_step=int(bad[0]) if bad.size else -1,
        causes=causes,
        settings=settings,
        records=extra,
    )


def _tell(
    on_step: Callable[[StepReport], Any],
    task: Task,
    finish: Callable[..., Generations],
    record: Callable[[Population], PyTree] | None,
    began: float,
    read: int,
    state: State,
    potential: Potential,
) -> None:
    """Reports a step to the user."""
    population, last, seconds = state.population, state.records[-1], time.perf_counter() - began
    rows: Rows = population.particles
    # Of equal weights, as where scores weigh nothing, the best score.
    best = _first_best(population.log_weights, score_of_steps(rows.scores, "last"))
    scored = int(sum(jnp.sum(row.scorer_tokens) for row in state.records))

    def whole() -> Generations:
        return finish(
            jax.device_get(_light(as_run(state, Recorder(record), task.setup.max_steps))), seconds, potential.causes()
        )

    report = StepReport(
        step=len(state.records),
        max_steps=task.setup.max_steps,
        ess=float(last.ess),
        resampled=bool(last.resampled),
        num_finished=int(jnp.sum(rows.finished)),
        tokens_used=int(sum(jnp.sum(row.step_tokens) for row in state.records)),
        scorer_tokens_used=scored + read,
        seconds=seconds,
        best_text=task.lm.decode(np.asarray(rows.tokens[best])[: int(rows.length[best])]),
        generations=whole,
    )
    on_step(report)


def _first_best(log_weights: Array, scores: Array) -> int:
    """The first row of the largest weight, and among those of the largest score; NaN is the least of all."""
    keys = (np.nan_to_num(np.asarray(values, np.float64), nan=-np.inf) for values in (log_weights, scores))
    return max(enumerate(zip(*keys, strict=True)), key=lambda item: (item[1], -item[0]))[0]


def _is_several(prompt: Any) -> bool:
    """Whether it is a list of prompts: not a text, and not a list of numbers."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return False
    return len(prompt) == 0 or not all(isinstance(item, int | np.integer) for item in prompt)


def _sizes(
    lm: LM, potential: Potential, ids: Sequence[np.ndarray], names: Sequence[str], wanted: int, max_tokens: int | None
) -> tuple[int, int]:
    """What prompts are padded to, and the most tokens of a text."""
    theirs = potential.context()
    most = lm.max_length if theirs is None else min(lm.max_length, theirs)
    longest = max(range(len(ids)), key=lambda i: ids[i].size)
    length = int(ids[longest].size)
    whose = "the model" if most == lm.max_length else "the scorer"
    if length >= most:
        raise ValueError(
            f"`{names[longest]}` has {length} tokens, and {whose} reads {most}, prompt and text together: shorten it"
        )
    size = bucket(length, most)
    if max_tokens is None:
        # By the padded length where that leaves room, so that another length of prompt is no other program.
        return size, wanted if wanted <= most - size else min(wanted, most - length)
    capacity = whole_number("max_tokens", max_tokens, 1)
    if length + capacity > most:
        raise ValueError(
            f"`max_tokens` is {capacity} behind `{names[longest]}` of {length} tokens, and {whose} reads {most}, "
            f"prompt and text together: needed at most {most - length}"
        )
    return size, capacity


def _plain(value: Any) -> Any:
    number = np.asarray(value)
    return number.item() if number.ndim == 0 else value
