r"""Composition of transformers: `sequence`, `iterate`, and `trace_back` through recorded ancestors."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.core._choices import categorical
from probinf.core._effects import choose, scan
from probinf.core._fast_key import fast_key, plain_key
from probinf.core._population import Population, weigh
from probinf.core._status import Status, flag, is_fatal
from probinf.core._types import PRNGKey

Transformer = Callable[..., tuple[Population, Any]]


class sequence(eqx.Module):  # noqa: N801 - a verb
    """Does one transformer after the other, with the same step. `info` is the tuple of theirs."""

    parts: tuple[Transformer, ...]

    def __init__(self, *parts: Transformer):
        for part in parts:
            if not callable(part):
                raise TypeError(f"`sequence` takes transformers `(key, population, step)`, got {part!r}")
        self.parts = parts

    @property
    def traceable(self) -> bool:
        """Whether all parts may run under `jit`."""
        return all(is_traceable(part) for part in self.parts)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, tuple]:
        """Applies the parts in order."""
        return self.apply(self.split(fast_key(key)), population, step)

    def split(self, key: PRNGKey) -> Array:
        """The keys of the parts, [num_parts]."""
        return jax.random.split(key, len(self.parts))

    def apply(self, keys: Array, population: Population, step: Any) -> tuple[Population, tuple]:
        """Applies the parts in order, each with its own key."""
        infos = []
        for index, part in enumerate(self.parts):
            population, info = part(plain_key(keys[index]), population, step)
            infos.append(info)
        return population, tuple(infos)


def is_traceable(part: object) -> bool:
    """Whether a transformer may run under `jit`; those that do not say can."""
    return getattr(part, "traceable", True)


def record_scalars(population: Population, info: PyTree) -> PyTree:
    """The default record: status and log evidence, and every scalar of `info` (memory independent of N)."""
    scalars = jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) == 0 else None, info)
    return {"log_evidence": population.log_evidence, "status": population.status, "info": scalars}


def iterate(
    body: Transformer,
    *,
    over: PyTree = None,
    until: Callable[[Population], Bool[Array, ""]] | None = None,
    max_steps: int | None = None,
    record: Callable[[Population, Any], PyTree] = record_scalars,
) -> "Iterate":
    """Repeats a transformer: over a schedule, or until a predicate holds.

    Step i uses the key `fold_in(key, i)`. With `over`, the body gets each slice of the schedule as its step, in
    one `lax.scan`. With `until`, it gets the step number, in a loop of at most `max_steps` steps; ending there
    undone sets `MAX_STEPS`. A body that is not traceable runs in a host loop with the same results.

    Args:
        body: a transformer.
        over: pytree of arrays with a common leading axis T (such as `jnp.arange(1, T)`).
        until: `population -> bool`, looked at before each step.
        max_steps: bound of the loop; needed with `until`.
        record: `(population, info) -> pytree`, stacked over steps; with `until`, [max_steps, ...] of which the
            first `num_steps` count.

    Returns:
        A transformer whose info is the stacked records, or with `until` the pair (records, num_steps).

    Raises:
        ValueError: not exactly one of `over` and `until`; `until` without `max_steps` >= 1; leaves of `over`
            of different lengths.
    """
    if (over is None) == (until is None):
        raise ValueError("`iterate` takes exactly one of `over` (a schedule) and `until` (a predicate)")
    if until is not None and (max_steps is None or max_steps < 1):
        raise ValueError(f"`iterate(until=)` needs `max_steps` >= 1, got {max_steps}: every loop is bounded")
    if over is not None:
        over = jax.tree.map(jnp.asarray, over)
        lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(over)}
        if len(lengths) != 1 or None in lengths:
            raise ValueError(f"the leaves of `over` must share a leading axis; they have {lengths}")
    return Iterate(body, over, until, record, max_steps)


class Iterate(eqx.Module):
    """See `iterate`."""

    body: Transformer
    over: PyTree
    until: Callable[[Population], Bool[Array, ""]] | None
    record: Callable[[Population, Any], PyTree]
    max_steps: int | None = eqx.field(static=True)

    @property
    def traceable(self) -> bool:
        """Whether the body may run under `jit`."""
        return is_traceable(self.body)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, PyTree]:
        """Runs the loop; the outer `step` is not used."""
        del step
        return self._along_schedule(key, population) if self.until is None else self._until_done(key, population)

    def _along_schedule(self, key: PRNGKey, population: Population) -> tuple[Population, PyTree]:
        length = jax.tree.leaves(self.over)[0].shape[0]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(fast_key(key), jnp.arange(length))
        body = self.body
        # Keys are derived for all steps at once: in the loop it would cost more than a small population's numbers.
        in_parts = isinstance(body, sequence)
        keys = jax.vmap(body.split)(keys) if isinstance(body, sequence) else keys

        def one(population: Population, item: tuple[Array, PyTree]) -> tuple[Population, PyTree]:
            keys, step = item
            population, info = body.apply(keys, population, step) if in_parts else body(plain_key(keys), population, step)
            return population, self.record(population, info)

        return scan(one, population, (keys, self.over), length, traceable=self.traceable)

    def _until_done(self, key: PRNGKey, population: Population) -> tuple[Population, PyTree]:
        done = self.until
        bound = self.max_steps

        def one(step: Array, population: Population) -> tuple[Population, PyTree]:
            population, info = self.body(jax.random.fold_in(key, step), population, step)
            return population, self.record(population, info)

        shapes = jax.eval_shape(one, jnp.zeros((), jnp.int32), population)[1]
        buffer = jax.tree.map(lambda s: jnp.zeros((bound, *s.shape), s.dtype), shapes)

        def unfinished(carry: tuple) -> Array:
            step, population, _ = carry
            return (step < bound) & ~done(population) & ~is_fatal(population.status)

        def advance(carry: tuple) -> tuple:
            step, population, buffer = carry
            population, row = one(step, population)
            return step + 1, population, jax.tree.map(lambda b, r: b.at[step].set(r), buffer, row)

        carry = (jnp.zeros((), jnp.int32), population, buffer)
        if self.traceable:
            carry = jax.lax.while_loop(unfinished, advance, carry)
        else:
            while bool(unfinished(carry)):
                carry = advance(carry)
        steps, population, buffer = carry
        undone = ~done(population) & (steps >= bound)
        status = population.status | flag(Status.MAX_STEPS, undone)
        return eqx.tree_at(lambda p: p.status, population, status), (buffer, steps)


def trace_back(
    key: PRNGKey,
    log_weights: Float[Array, " n"],
    particles: PyTree,
    ancestors: Int[Array, "t n"],
    num_paths: int = 1,
) -> PyTree:
    """Draws paths from the genealogy of a run: final particles by weight, then their ancestors.

    Args:
        key: PRNG key.
        log_weights: [N], of the final population.
        particles: leaves [T + 1, N, ...], the particles after times 0 .. T.
        ancestors: [T, N]; row t tells the slot at time t that each slot at time t + 1 came from.
        num_paths: number of paths drawn.

    Returns:
        Leaves [T + 1, num_paths, ...].
    """
    relative = weigh(log_weights).relative
    last = choose(key, categorical, jnp.broadcast_to(relative, (num_paths, relative.shape[0])))

    def back(slot: Array, row: Array) -> tuple[Array, Array]:
        slot = row[slot]
        return slot, slot

    _, earlier = jax.lax.scan(back, last, ancestors, reverse=True)
    slots = jnp.concatenate([earlier, last[None]])
    return jax.tree.map(lambda leaf: jax.vmap(lambda row, slot: row[slot])(leaf, slots), particles)
