r"""The run driver: long work as compiled chunks under one host loop.

The key of step i is `fold_in(key, i)` with the global index i, so neither chunking, nor a resume, nor the speed of
the machine changes a draw. Between chunks the host takes the records, writes the checkpoint, shows progress and asks
the `Control`s, of which Ctrl-C is one, whether the run goes on.
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from probinf.core._arguments import whole_number
from probinf.core._chunk import (
    BlockStep,
    as_state,
    buffer_capacity,
    empty_reduction,
    record_shapes,
    run_chunk,
)
from probinf.core._control import MAX_STEPS, Control, Ending, Present, interrupts
from probinf.core._fingerprint import fingerprint_of
from probinf.core._layout import layout_of
from probinf.core._progress import Report, progress_display
from probinf.core._storage import RunStore, Snapshot, StorageWarning, identity_of, open_store
from probinf.core._types import PRNGKey

SECONDS_PER_CALL = 0.5
SECONDS_PER_BLOCK = 2.0  # of a step that makes a block at once: chains wait for each other at its end
SECONDS_BETWEEN_WRITES = 5.0
MOST_PACES, CAUTION = 256, 64
WRITE_SHARE = 0.02  # of the time, at most, for checkpoints of large states


class Run(NamedTuple):
    """What `run_steps` returns.

    Attributes:
        state: after step `num_done`.
        records: pytree of NumPy arrays, leading axis `num_done`; None with `collect=False`.
        reduced: what the reducer's `finalize` made of the records; None without a reducer.
        num_done: number of finished steps; less than `num_steps` only if stopped or interrupted.
        interrupted: whether Ctrl-C, or a control that answered so, ended the run early.
        stopped: whether a control ended the run because nothing more is needed.
        accumulated: the reducer's accumulator, from which a later run can go on; None without a reducer.
    """

    state: PyTree
    records: PyTree
    reduced: Any
    num_done: int
    interrupted: bool
    stopped: bool = False
    accumulated: PyTree = None


def run_steps(
    key: PRNGKey,
    step: Callable[..., Any],
    state: PyTree,
    num_steps: int,
    *,
    name: str = "run",
    chunk_size: int | None = None,
    collect: bool = True,
    reducer: Any = None,
    accumulated: PyTree = None,
    controls: Sequence[Control] = (),
    checkpoint: str | Path | None = None,
    fingerprint: str | None = None,
    progress: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    clock: Callable[[], float] = time.monotonic,
    describe: Callable[[PyTree, PyTree], str] | None = None,
) -> Run:
    r"""Runs `state, record = step(fold_in(key, i), i, state)` for i = 0 .. num_steps - 1.

    Law: the result depends on `key`, `step`, `state` and `num_steps` alone; a run that was killed and resumed, or
    cut into other chunks, gives the same bits (same device, versions and shapes). One compilation serves every
    chunk, every `num_steps` and every new value in the array leaves of `step` and `state`.

    The first Ctrl-C ends the run after the call in progress (about half a second, or two for a `BlockStep`) and
    returns what is done; a second one raises. Whatever else ends the run, an error included, the finished steps are
    first written to the checkpoint. A disk that fails during the run gives one `StorageWarning`; the run goes on in
    memory and tries again at every write.

    Args:
        key: PRNG key of the run.
        step: `(key_i, index, state) -> (state, record)`, an `equinox.Module` with its data in array leaves or a
            module-level function; `index` is an int32 scalar; `record` a pytree of arrays. Shapes and dtypes of the
            state must stay.
        state: pytree; array leaves are carried, other leaves are static.
        num_steps: number of steps in all, those of an earlier run in `checkpoint` included; 0 .. 2^31 - 1.
        name: for the progress display and the checkpoint's manifest.
        chunk_size: number of steps between two writes to the checkpoint; None for about every 5 s. Compiled calls
            last half a second or two, and never cross such a border.
        collect: whether the records are kept (in host memory, and in the checkpoint).
        reducer: a `Reducer` that folds the records on the device, in memory independent of `num_steps`.
        accumulated: what the reducer starts from, that of an earlier run; None for nothing. With a `checkpoint` it
            belongs into the `fingerprint`.
        controls: asked in this order before the first call and after each one whether the run ends; Ctrl-C comes
            last. What they see can be kept: it does not change later.
        checkpoint: folder; made if absent, resumed if it holds this run, returned at once if it is finished there.
        fingerprint: what identifies the run besides key, shapes and versions; None hashes `step` and `state`.
        progress: whether to show progress on stderr, at least every 5 s of `clock`, or at every step that lasts longer.
        mesh: the state's array leaves stay sharded as they come (`NamedSharding`), others are replicated over it.
        clock: seconds; only paces the work, never enters the results.
        describe: `(state, records of the last call or None) -> text` for the progress display.

    Returns:
        A `Run`.

    Raises:
        ValueError: `num_steps` or `chunk_size` out of range; more than one JAX process; `checkpoint` holds another
            run, is damaged, holds more steps than asked for, or is being written by another process.
        TypeError: `step` changes the structure, shapes or dtypes of the state.
        OSError: the checkpoint folder cannot be made.
    """
    num_steps, chunk_size = _checked(num_steps, chunk_size)
    shardings, state = _placed(state, mesh, (key, step))
    shapes = record_shapes(step, key, state)
    fresh = Snapshot(0, state, empty_reduction(reducer, shapes) if accumulated is None else accumulated)
    records = _host_arrays(shapes, num_steps) if collect else None
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(interrupts())
        ending, everyone = None, (*controls, interrupt)
        store = None
        if checkpoint is not None:
            name_of = fingerprint if fingerprint is not None else fingerprint_of(step, state, reducer)
            identity = identity_of(key, state, shapes if collect else None, fresh.accumulated, name_of)
            store = stack.enter_context(open_store(checkpoint, identity, name))
        at = fresh if store is None else store.load(fresh, records, num_steps)
        saver = _Saver(store, records, at, chunk_size, clock)
        report = stack.enter_context(progress_display(name, at.done, num_steps, clock)) if progress else None
        whole = isinstance(step, BlockStep)
        capacity = buffer_capacity(shapes) if collect or whole else MAX_STEPS
        program = layout_of(step, state, collect, reducer) if clock is time.monotonic else None
        pacer = _Pacer(capacity, chunk_size, SECONDS_PER_BLOCK if whole else SECONDS_PER_CALL, clock, program)
        try:
            while not (ending := _ending(everyone, name, at, num_steps, records)) and at.done < num_steps:
                count = pacer.begin(at.done, min(num_steps, *(control.border(at.done) for control in everyone)))
                at, part = _advance(key, step, reducer, at, count, records, shardings)
                pacer.end()
                saver.offer(at)
                _show(report, at, part, describe)
        except KeyboardInterrupt:
            if interrupt.requested:
                raise
        finally:
            saver.finish(at)
    return _result(at, records, reducer, num_steps, ending is Ending.STOPPED)


def _checked(num_steps: int, chunk_size: int | None) -> tuple[int, int | None]:
    num_steps = whole_number("num_steps", num_steps)
    if num_steps > MAX_STEPS:
        raise ValueError(
            f"`num_steps` is {num_steps}; needed at most {MAX_STEPS}, as steps are counted in int32. "
            "For more, start a second run from the state of the first, with another key"
        )
    if jax.process_count() > 1:
        # Each process would choose its own number of steps a call, and their collectives would wait for ever.
        raise ValueError(
            f"`run_steps` runs in one process, and jax.distributed has {jax.process_count()}: start each run in a "
            "process of its own, or use the devices of one host"
        )
    return num_steps, None if chunk_size is None else whole_number(
        "chunk_size", chunk_size, 1, "; None lets the driver choose"
    )


def _placed(state: PyTree, mesh: jax.sharding.Mesh | None, others: PyTree) -> tuple[tuple[Any, ...] | None, PyTree]:
    """The state where it will stay, and the shardings to keep: an array that moved would compile the chunk again."""
    dynamic, static = eqx.partition(as_state(state), eqx.is_array)
    leaves, structure = jax.tree.flatten(dynamic)
    if mesh is None:
        committed = [
            leaf for leaf in jax.tree.leaves((dynamic, others)) if isinstance(leaf, jax.Array) and leaf.committed
        ]
        if committed and all(leaf.sharding == committed[0].sharding for leaf in committed):
            leaves = [leaf if leaf.committed else jax.device_put(leaf, committed[0].sharding) for leaf in leaves]
        return None, eqx.combine(jax.tree.unflatten(structure, leaves), static)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    kept = tuple(a.sharding if isinstance(a.sharding, jax.sharding.NamedSharding) else everywhere for a in leaves)
    leaves = [jax.device_put(leaf, sharding) for leaf, sharding in zip(leaves, kept, strict=True)]
    return kept, eqx.combine(jax.tree.unflatten(structure, leaves), static)


def _host_arrays(shapes: PyTree, num_steps: int) -> PyTree:
    """Arrays for all records; the system gives the memory only as they fill."""
    try:
        return jax.tree.map(lambda s: np.empty((num_steps, *s.shape), s.dtype), shapes)
    except MemoryError as error:
        raise MemoryError(
            f"the records of {num_steps} steps do not fit in memory: pass `collect=False` with a `reducer`, "
            "record less, or run fewer steps"
        ) from error


def _advance(
    key: PRNGKey, step: Any, reducer: Any, at: Snapshot, count: int, records: PyTree, shardings: tuple | None
) -> tuple[Snapshot, PyTree]:
    """Runs `count` steps and moves their records to the host; returns where the run is and the new records."""
    start, length = jnp.asarray(at.done, jnp.int32), jnp.asarray(count, jnp.int32)
    collect = records is not None
    chunk = run_chunk(key, step, reducer, start, length, at.state, at.accumulated, collect, shardings)
    jax.block_until_ready(eqx.filter(chunk, eqx.is_array))
    part = jax.tree.map(lambda host: host[at.done : at.done + count], records)
    jax.tree.map(lambda target, buffer: np.copyto(target, np.asarray(buffer)[:count]), part, chunk.records)
    return Snapshot(at.done + count, chunk.state, chunk.accumulated), part


def _ending(controls: Sequence[Control], name: str, at: Snapshot, num_steps: int, records: PyTree) -> Ending | None:
    """The first answer of a control that ends the run."""
    done = jax.tree.map(lambda host: host[: at.done], records)
    present = Present(name, at.done, num_steps, at.state, done, at.accumulated)
    answers = (control(present) for control in controls)
    return next((answer for answer in answers if answer is not None), None)


_PACES: dict[Hashable, int] = {}  # steps of a call, by program; the oldest first


class _Pacer:
    """Chooses how many steps the next call takes: so many seconds' worth, never across a write.

    The first two calls are one step each: the first may compile, the second measures. After that each call takes at
    most eight times as many steps as the one before. A program that this process has run before goes on at the pace
    that it had.
    """

    def __init__(
        self,
        capacity: int,
        chunk_size: int | None,
        seconds: float,
        clock: Callable[[], float],
        program: Hashable | None = None,
    ):
        self._capacity, self._chunk_size, self._seconds, self._clock = capacity, chunk_size, seconds, clock
        self._program, self._count, self._begun = program, 1, 0.0
        self._wanted, self._first = _PACES.get(program, 1), program not in _PACES
        self._measured = self._first

    def begin(self, index: int, end: int) -> int:
        border = end if self._chunk_size is None else index - index % self._chunk_size + self._chunk_size
        # A remembered pace may be that of much shorter steps: a small part of it is tried first.
        wanted = self._wanted if self._measured else -(-self._wanted // CAUTION)
        self._count = min(wanted, self._capacity, end - index, border - index)
        self._begun = self._clock()
        return self._count

    def end(self) -> None:
        seconds = self._clock() - self._begun
        most = 1 if self._first else 8 * max(self._count, min(self._wanted, self._capacity))
        fits = most if seconds <= 0 else int(self._count * self._seconds / seconds)
        self._wanted, self._first, self._measured = max(1, min(most, fits)), False, True
        if self._program is not None:
            _PACES.pop(self._program, None)
            _PACES[self._program] = self._wanted
            for old in list(_PACES)[:-MOST_PACES]:
                _PACES.pop(old, None)


class _Saver:
    """Decides when the checkpoint is written, and keeps a failing disk from ending the run."""

    def __init__(
        self,
        store: RunStore | None,
        records: PyTree,
        at: Snapshot,
        chunk_size: int | None,
        clock: Callable[[], float],
    ):
        self._store, self._records, self._chunk_size, self._clock = store, records, chunk_size, clock
        self._saved, self._warned, self._last, self._pause = at.done, False, clock(), SECONDS_BETWEEN_WRITES

    def offer(self, at: Snapshot) -> None:
        """Writes if it is time."""
        if self._chunk_size is not None:
            due = at.done % self._chunk_size == 0
        else:
            due = self._clock() - self._last >= self._pause
        if due:
            self._write(at)

    def finish(self, at: Snapshot) -> None:
        """Writes what is left."""
        if at.done > self._saved:
            self._write(at)
        if self._store is not None and at.done > self._saved and self._warned:
            warnings.warn(
                f"the run ended with only {self._saved} of {at.done} steps in the checkpoint folder "
                f"{self._store.folder}; the rest is in the returned result: save it elsewhere",
                StorageWarning,
                stacklevel=3,
            )

    def _write(self, at: Snapshot) -> None:
        if self._store is None:
            return
        begun = self._clock()
        pending = jax.tree.map(lambda a: a[self._saved : at.done], self._records)
        try:
            self._store.save(self._saved, pending, at)
        except OSError as error:
            self._warn(error, at)
        else:
            self._saved = at.done
        self._last = self._clock()
        self._pause = max(SECONDS_BETWEEN_WRITES, (self._last - begun) / WRITE_SHARE)

    def _warn(self, error: OSError, at: Snapshot) -> None:
        if self._warned or self._store is None:
            return
        self._warned = True
        warnings.warn(
            f"the checkpoint folder {self._store.folder} cannot be written ({error}). {self._saved} of {at.done} "
            "finished steps are safe there; the run goes on in memory and tries again at every write: make room",
            StorageWarning,
            stacklevel=5,
        )


def _show(report: Report | None, at: Snapshot, part: PyTree, describe: Callable[[PyTree, PyTree], str] | None) -> None:
    if report is not None:
        report(at.done, lambda: "" if describe is None else describe(at.state, part))


def _result(at: Snapshot, records: PyTree, reducer: Any, num_steps: int, stopped: bool) -> Run:
    done = at.done
    kept = records if done == num_steps else jax.tree.map(lambda a: a[:done].copy(), records)
    reduced = None if reducer is None else reducer.finalize(at.accumulated)
    return Run(at.state, kept, reduced, done, done < num_steps and not stopped, stopped, at.accumulated)
