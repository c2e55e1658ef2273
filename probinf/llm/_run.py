r"""`run_steps`: the one loop of all methods, in the verbs of `core`.

    for t = 1 .. T:  rule (from the second step on: who goes on),  extend by one step

A *rule* is a transformer of populations whose info is a `ResampleInfo`, such as `core.resample(scheme, when=...)` or
the pruning of a beam search. It is given rows without their caches (`Rows.with_heavy`), may move them as it likes, and
what it did is read off `Rows.slot`; the caches then follow. Nothing is done before the first step, nor once all rows
are finished, when a rule could only add noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from probinf.core import (
    Population,
    PRNGKey,
    ResampleInfo,
    WeightInfo,
    cond,
    extend,
    is_traceable,
    iterate,
    place,
    sequence,
    spawn,
    take,
    unwrap_key,
    with_changes,
)
from probinf.llm._decode import any_row
from probinf.llm._gather import copy_rows, settle
from probinf.llm._model import LanguageSteps
from probinf.llm._rows import Rows, with_fields

Rule = Callable[..., tuple[Population, ResampleInfo]]


class StepRecord(NamedTuple):
    """What is kept of every step; stacked over steps, [T, ...].

    Attributes:
        ess: effective sample size after the step's weights.
        resampled: whether the rule moved rows on the way to the step.
        ancestors: [N], the slot that each row stood in before that.
        log_weights: [N], after the step.
        log_evidence: after the step.
        finished: [N], after the step.
        step_tokens: [N], tokens made in the step.
        scorer_tokens: [N], tokens that the scorer was fed in the step.
        status: bits set so far.
        num_nan: log weights that were NaN.
        extra: what `record` returned.
    """

    ess: Float[Array, ""]
    resampled: Bool[Array, ""]
    ancestors: Int[Array, " n"]
    log_weights: Float[Array, " n"]
    log_evidence: Float[Array, ""]
    finished: Bool[Array, " n"]
    step_tokens: Int[Array, " n"]
    scorer_tokens: Int[Array, " n"]
    status: UInt32[Array, ""]
    num_nan: Int[Array, ""]
    extra: PyTree


class Run(NamedTuple):
    """What a run of T steps returns.

    Attributes:
        population: of `Rows`, after the last step.
        records: a `StepRecord`, stacked over the T steps.
    """

    population: Population
    records: StepRecord


class Between(eqx.Module):
    """What happens between two steps: the rule on rows without caches, and then the caches.

    Attributes:
        rule: see above.
        home: where rows are.
        axis_name: the axis of problems, if they are mapped.
        fixed_slots: whether a slot has a meaning for the rule (a temperature, say). If not, rows are rearranged so that
            every one that goes on keeps its slot, and few caches are copied.
    """

    rule: Rule
    home: place
    axis_name: str | None = eqx.field(static=True, default=None)
    fixed_slots: bool = eqx.field(static=True, default=False)

    @property
    def traceable(self) -> bool:
        """Whether the rule may run under `jit`."""
        return is_traceable(self.rule)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, ResampleInfo]:
        """Moves rows from the second step on, until all are finished; ancestors are those of `Rows.slot`."""
        rows: Rows = population.particles
        slots = jnp.arange(population.num_particles, dtype=jnp.int32)
        light = with_changes(population, particles=with_fields(rows.with_heavy(), slot=slots))
        # Whole on every device, so that sums of weights do not depend on the mesh.
        light = self.home.whole(light)

        bits, restore = unwrap_key(key)  # a typed key in a branch counts as used by both

        def move(light: Population) -> tuple[Population, ResampleInfo]:
            moved, info = self.rule(restore(bits), light, step)
            if not isinstance(info, ResampleInfo):
                raise TypeError(f"the info of a rule must be a `ResampleInfo`, got {type(info).__name__}")
            if not self.fixed_slots:
                moved = _rearranged(moved)
            return moved, ResampleInfo(info.ess, info.resampled, moved.particles.slot)

        def stay(light: Population) -> tuple[Population, ResampleInfo]:
            return light, ResampleInfo(light.ess, jnp.zeros((), bool), slots)

        due = (jnp.asarray(step) > 1) & jnp.any(~rows.finished)
        light, info = cond(due, move, stay, light) if self.traceable else (move if bool(due) else stay)(light)
        heavy = self._copied(rows.heavy, info.ancestors)
        return self.home.put(with_changes(light, particles=light.particles.with_heavy(heavy))), info

    def _copied(self, heavy: PyTree, ancestors: Int[Array, " n"]) -> PyTree:
        if self.home.mesh is None and not self.fixed_slots:
            return copy_rows(heavy, ancestors, self.axis_name)
        gather = self.home.gather
        moved = any_row(ancestors != jnp.arange(ancestors.shape[0], dtype=jnp.int32), self.axis_name)
        return jax.lax.cond(moved, gather, lambda tree, _: tree, heavy, ancestors)


def _rearranged(population: Population) -> Population:
    """The same particles and weights in other slots: every row that goes on has a copy where it was."""
    order = settle(population.particles.slot)
    particles, log_weights, eve = take((population.particles, population.log_weights, population.eve), order)
    return with_changes(population, particles=particles, log_weights=log_weights, eve=eve)


def run_steps(
    key: PRNGKey,
    model: LanguageSteps,
    rule: Rule,
    *,
    num_particles: int,
    context: PyTree = None,
    record: Callable[[Population], PyTree] | None = None,
    home: place | None = None,
    fixed_slots: bool = False,
) -> Run:
    """Writes N texts, step by step, with a rule between the steps. Traceable; `run_task` is the host's side of it.

    Args:
        key: PRNG key.
        model: a `LanguageSteps` whose potential is traceable.
        rule: transformer whose info is a `ResampleInfo`, such as `resample(systematic, when=ess_below(0.5))`.
            It sees rows without logits, cache and state of the potential.
        num_particles: N >= 1.
        context: the population's first context, for rules that remember.
        record: `population -> pytree`, looked at after each step, stacked into `records.extra`.
        home: `place(mesh)` to spread rows over devices.
        fixed_slots: whether slots have a meaning for the rule; see `Between`.

    Returns:
        A `Run`.
    """
    home = place(None) if home is None else home
    start_key, loop_key = jax.random.split(key)
    body, recorder = loop_of(model, rule, record=record, home=home, fixed_slots=fixed_slots)
    with home.near():
        population = spawn(model, num_particles, context=context)(start_key)
        steps = iterate(body, over=jnp.arange(1, model.max_steps + 1, dtype=jnp.int32), record=recorder)
        return Run(*steps(loop_key, population))


def loop_of(
    model: LanguageSteps,
    rule: Rule,
    *,
    record: Callable[[Population], PyTree] | None = None,
    home: place,
    fixed_slots: bool = False,
) -> tuple[sequence, "Recorder"]:
    """The body of the loop of `run_steps`, and what is recorded of it; arguments are those of `run_steps`."""
    between = Between(rule, home, model.decoder.axis_name, fixed_slots)
    return sequence(home, between, extend(model)), Recorder(record, home)


class Recorder(eqx.Module):
    """`(population, info of the loop's body) -> StepRecord`."""

    record: Callable[[Population], PyTree] | None
    home: place | None = None

    def __call__(self, population: Population, info: tuple[None, ResampleInfo, WeightInfo]) -> StepRecord:
        """The record of one step."""
        _, moving, weighting = info
        rows: Rows = population.particles
        # Whole, so that sums of weights do not depend on the mesh.
        if self.home is not None:
            population = with_changes(self.home.whole(with_changes(population, particles=None)), particles=rows)
        return StepRecord(
            ess=population.ess,
            resampled=moving.resampled,
            ancestors=moving.ancestors,
            log_weights=population.log_weights,
            log_evidence=population.log_evidence,
            finished=rows.finished,
            step_tokens=rows.step_tokens,
            scorer_tokens=rows.scorer_tokens,
            status=population.status,
            num_nan=weighting.num_nan,
            extra=None if self.record is None else self.record(population),
        )
