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
from probinf.core._resample import unwrap_key
from probinf.core._status import Status, flag, is_fatal
from probinf.core._types import PRNGKey

Transformer = Callable[..., tuple[Population, Any]]


class sequence(eqx.Module):
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
) -> "Along | Until":
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
    if until is not None:
        if max_steps is None or max_steps < 1:
            raise ValueError(f"`iterate(until=)` needs `max_steps` >= 1, got {max_steps}: every loop is bounded")
        return Until(body, until, record, max_steps)
    over = jax.tree.map(jnp.asarray, over)
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(over)}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"the leaves of `over` must share a leading axis; they have {lengths}: pass arrays")
    return Along(body, over, record)


class Along(eqx.Module):
    """A transformer repeated along a schedule; see `iterate`."""

    body: Transformer
    over: PyTree
    record: Callable[[Population, Any], PyTree]

    @property
    def traceable(self) -> bool:
        """Whether the body may run under `jit`."""
        return is_traceable(self.body)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, PyTree]:
        """Runs the loop; the outer `step` is not used."""
        del step
        length = jax.tree.leaves(self.over)[0].shape[0]
        body = self.body
        keys = jax.vmap(jax.random.fold_in, (None, 0))(fast_key(key), jnp.arange(length))
        if isinstance(body, sequence):
            # The keys of the parts are derived for all steps at once: in the loop that would cost as much as the
            # numbers of a small population.
            keys, apply = jax.vmap(body.split)(keys), body.apply
        else:

            def apply(keys: Array, population: Population, step: Any) -> tuple[Population, Any]:
                return body(plain_key(keys), population, step)

        # The loop takes the bits of the keys: under `vmap` the key-reuse checker calls a scan over typed keys reuse.
        bits, restore = unwrap_key(keys)

        def one(population: Population, item: tuple[Array, PyTree]) -> tuple[Population, PyTree]:
            population, info = apply(restore(item[0]), population, item[1])
            return population, self.record(population, info)

        return scan(one, population, (bits, self.over), length, traceable=self.traceable)


class Until(eqx.Module):
    """A transformer repeated until a predicate holds; see `iterate`."""

    body: Transformer
    until: Callable[[Population], Bool[Array, ""]]
    record: Callable[[Population, Any], PyTree]
    max_steps: int = eqx.field(static=True)

    @property
    def traceable(self) -> bool:
        """Whether the body may run under `jit`."""
        return is_traceable(self.body)

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, PyTree]:
        """Runs the loop; the outer `step` is not used."""
        del step

        whole = fast_key(key)

        def one(step: Array, population: Population) -> tuple[Population, PyTree]:
            population, info = self.body(plain_key(jax.random.fold_in(whole, step)), population, step)
            return population, self.record(population, info)

        def unfinished(carry: tuple) -> Array:
            step, population, _ = carry
            return (step < self.max_steps) & ~self.until(population) & ~is_fatal(population.status)

        def advance(carry: tuple) -> tuple:
            step, population, buffer = carry
            population, row = one(step, population)
            return step + 1, population, jax.tree.map(lambda rows, new: rows.at[step].set(new), buffer, row)

        start = jnp.zeros((), jnp.int32)
        shapes = jax.eval_shape(one, start, population)[1]
        buffer = jax.tree.map(lambda s: jnp.zeros((self.max_steps, *s.shape), s.dtype), shapes)
        carry = (start, population, buffer)
        if self.traceable:
            carry = jax.lax.while_loop(unfinished, advance, carry)
        else:
            while bool(unfinished(carry)):
                carry = advance(carry)
        steps, population, buffer = carry
        undone = ~self.until(population) & (steps >= self.max_steps)
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

    If all weights are zero there is no law to draw from and the paths mean nothing: look at `status` first.

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
