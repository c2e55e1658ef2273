"""Draws from where a run stands: the second half of `sample`, and all of `Draws.extend`.

A run of `sample` is an extension of an empty one, so both are the same compiled chunks, and old and new draws are told
apart by nothing.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from probinf.core._arguments import whole_number
from probinf.core._control import Control, Present, Remote
from probinf.core._draws import Draws
from probinf.core._driver import run_steps
from probinf.core._effects import is_concrete
from probinf.core._fingerprint import fingerprint_of
from probinf.core._status import FATAL, Status, check_status
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._sample_step import SampleState, step_of
from probinf.samplers._stopping import Converged, Looks, StopRule


class _OfSamples(eqx.Module):
    """A reducer of the samples, as one of the records of `SampleStep`."""

    reducer: Any

    def init(self, record_shape: Any) -> PyTree:
        return self.reducer.init(record_shape["samples"])

    def update(self, accumulated: PyTree, record: Any) -> PyTree:
        return self.reducer.update(accumulated, record["samples"])

    def finalize(self, accumulated: PyTree) -> Any:
        return self.reducer.finalize(accumulated)


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """What a later run needs of an earlier one besides its kernel and its draws. It is not written to files.

    Attributes:
        target: what was drawn from.
        thin: transitions a draw.
        mesh: where the chains are.
        collect: whether draws are kept.
        reducer: of the samples, or None.
        tuned: whether the warm-up was finished.
        state: of the chains after the last draw.
        accumulated: the reducer's accumulator.
        num_done: how many draws a chain there are, kept or not.
        first_divergent: `[num_chains]` index of the first divergent draw, or -1.
        keys: of all runs so far.
    """

    target: Target
    thin: int
    mesh: jax.sharding.Mesh | None
    collect: bool
    reducer: Any
    tuned: bool
    state: SampleState
    accumulated: PyTree
    num_done: int
    first_divergent: Int[np.ndarray, " chains"]
    keys: tuple[str, ...]

    def __call__(
        self,
        draws: Draws,
        key: PRNGKey,
        *,
        num_samples: int,
        stop: StopRule | None,
        checkpoint: str | Path | None,
        progress: bool,
        mesh: jax.sharding.Mesh | None,
        throw: bool,
    ) -> Draws:
        """What `Draws.extend` does."""
        if not is_concrete(key):
            raise TypeError("`extend` runs a loop on the host and cannot be called under `jit`, `vmap` or `grad`")
        num_samples = whole_number("num_samples", num_samples, 1)
        if not self.tuned:
            raise ValueError(
                "the run was interrupted in its warm-up, so its kernel is not tuned: call `sample` again; with the "
                "same `checkpoint` it goes on where it was"
            )
        if key_text(key) in self.keys:
            raise ValueError(
                "`key` is that of an earlier part of these draws, which would draw the same random numbers again: pass "
                "another, such as `jax.random.fold_in(key, 1)`"
            )
        check_stop(stop, draws)
        if throw and np.any(np.asarray(self.state.chains.status) & int(FATAL)):
            check_status(draws.status, what="extend", result=draws)
        fingerprint = None
        if checkpoint is not None:
            parts = (self.target, self.thin, self.state, self.accumulated)
            fingerprint = fingerprint_of(jax.random.key_data(typed(key)), draws.kernel, *parts)
            checkpoint = Path(checkpoint) / "draws"
        if mesh is not None and mesh != self.mesh:
            kernel, target, state = place(draws.kernel, self.target, self.state, mesh, draws.num_chains)
            everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            accumulated = jax.device_put(self.accumulated, everywhere)
            moved = dataclasses.replace(self, target=target, state=state, accumulated=accumulated, mesh=mesh)
            draws = dataclasses.replace(draws, kernel=kernel, continuation=moved)
        # Split as the key of `sample` is, so that a key is used in one way only.
        _, _, key_draws = jax.random.split(key, 3)
        attrs = draws.attrs | {"extended_at": [*draws.attrs.get("extended_at", []), self.num_done]}
        before = dataclasses.replace(draws, attrs=attrs, continuation=_with_key(draws.continuation, key))
        more = draw(
            before, key_draws, num_samples, stop=stop, checkpoint=checkpoint, fingerprint=fingerprint, progress=progress
        )
        if throw:
            check_status(more.status, what="extend", counts=divergences(more), result=more)
        return more


def draw(
    before: Draws,
    key: PRNGKey,
    num_samples: int,
    *,
    stop: StopRule | None = None,
    remote: Remote | None = None,
    checkpoint: Path | None,
    fingerprint: str | None,
    progress: bool,
) -> Draws:
    """The draws of a run with `num_samples` more a chain, or fewer if a rule or somebody ends it; flags are not raised.

    Args:
        before: draws of an unfinished run, which may have none yet; has a `Continuation`.
        key: of this part.
        num_samples: bound of new draws a chain.
        stop: rule that ends it, or None.
        remote: hold on the run from another thread, or None.
        checkpoint: folder, or None.
        fingerprint: of the run, for the checkpoint.
        progress: whether it is shown.
    """
    origin, begun = before.continuation, time.perf_counter()
    reducer = None if origin.reducer is None else _OfSamples(origin.reducer)

    def so_far(present: Present) -> Draws:
        reduced = None if reducer is None else reducer.finalize(present.accumulated)
        return _joined(before, present.state, present.records, present.accumulated, reduced, present.num_done)

    if remote is not None:
        remote.view = so_far
    looks = None if stop is None else Looks(stop, so_far, origin.num_done)
    # The other thread is told first, so that it can look at the draws on which a rule fails.
    controls: Sequence[Control] = [control for control in (remote, looks) if control is not None]
    run = run_steps(
        key,
        step_of(before.kernel, origin.target, origin.thin),
        origin.state,
        num_samples if origin.tuned else 0,
        name="sample",
        collect=origin.collect,
        reducer=reducer,
        accumulated=origin.accumulated,
        controls=controls if origin.tuned else (),
        checkpoint=checkpoint if origin.tuned else None,
        fingerprint=fingerprint,
        progress=progress,
        mesh=origin.mesh,
        describe=_describe,
    )
    draws = _joined(before, run.state, run.records, run.accumulated, run.reduced, run.num_done)
    bits = np.uint32(int(Status.INTERRUPTED) if run.interrupted or not origin.tuned else 0)
    seconds = before.attrs["sampling_seconds"] + time.perf_counter() - begun
    attrs = draws.attrs | {"sampling_seconds": seconds}
    attrs.pop("stopped", None)
    if looks is not None:
        attrs["stopped"] = {"rule": looks.name, "reached": run.stopped, "num_draws": origin.num_done + run.num_done}
    return dataclasses.replace(draws, status=draws.status | bits, attrs=attrs)


def _joined(
    before: Draws, state: SampleState, records: PyTree, accumulated: PyTree, reduced: Any, num_done: int
) -> Draws:
    """The draws with new ones behind the old."""
    origin = before.continuation
    samples, info = before.samples, before.info
    if records is not None:
        new = jax.tree.map(lambda a: np.swapaxes(a, 0, 1), records)
        if origin.num_done:
            new = jax.tree.map(lambda a, b: np.concatenate((a, b), axis=1), {"samples": samples, "info": info}, new)
        samples, info = new["samples"], new["info"]
    first = np.asarray(state.first_divergent)
    first = np.where(first < 0, -1, first + origin.num_done)
    continuation = dataclasses.replace(
        origin,
        state=state,
        accumulated=accumulated,
        num_done=origin.num_done + num_done,
        first_divergent=np.where(origin.first_divergent < 0, first, origin.first_divergent),
    )
    return dataclasses.replace(
        before,
        samples=samples,
        info=info,
        status=np.asarray(state.chains.status),
        state=state.chains,
        attrs=before.attrs | ({} if origin.reducer is None else {"reduced": reduced}),
        continuation=continuation,
    )


def divergences(draws: Draws) -> dict[str, str]:
    """Words for the warning about divergences: count, fraction, and the first draw that has one."""
    origin = draws.continuation
    num, first = np.asarray(origin.state.num_divergent), origin.first_divergent
    total = num.sum(dtype=np.int64)
    if not total:
        return {}
    steps, earliest = num.size * origin.num_done, first[first >= 0].min()
    return {"DIVERGENT": f"{total} of {steps} draws ({100 * total / steps:.2g} %), first at draw {earliest}"}


def check_stop(stop: Any, draws: Draws) -> None:
    """Raises for a rule that can never be asked or fulfilled, before anything is run."""
    if stop is None:
        return
    if not callable(stop):
        raise TypeError(f"`stop` is {stop!r}, but must be a rule such as `converged()`, or a function of `Draws`")
    origin = draws.continuation
    if not origin.collect:
        raise ValueError(
            "`stop` looks at the draws, which `collect=False` does not keep: leave it out, or fix `num_samples` and "
            "look at the `reducer`"
        )
    if isinstance(stop, Converged):
        shapes = eqx.filter_eval_shape(jax.vmap(origin.target.constrain), origin.state.chains.position)
        empty = jax.tree.map(lambda s: np.zeros((draws.num_chains, 0, *s.shape[1:]), s.dtype), shapes)
        stop.check(dataclasses.replace(draws, samples=empty))


def place(
    kernel: Any, target: Target, chains: PyTree, mesh: jax.sharding.Mesh | None, num_chains: int
) -> tuple[Any, Target, PyTree]:
    """Chains split over the first axis of the mesh, everything else on all devices."""
    if mesh is None:
        return kernel, target, chains
    axis = mesh.axis_names[0]
    if num_chains % mesh.shape[axis]:
        raise ValueError(
            f"num_chains = {num_chains} is not divisible by the {mesh.shape[axis]} devices of mesh axis '{axis}'"
        )
    spec = jax.sharding.PartitionSpec
    whole, split = jax.sharding.NamedSharding(mesh, spec()), jax.sharding.NamedSharding(mesh, spec(axis))
    dynamic, static = eqx.partition((kernel, target), eqx.is_array)
    kernel, target = eqx.combine(jax.device_put(dynamic, whole), static)
    return kernel, target, jax.device_put(chains, split)


def typed(key: PRNGKey) -> PRNGKey:
    """The key as a typed one."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def key_text(key: PRNGKey) -> str:
    """A name for the key."""
    return f"{jax.random.key_impl(typed(key))} {np.asarray(jax.random.key_data(typed(key))).tolist()}"


def _with_key(origin: Continuation, key: PRNGKey) -> Continuation:
    return dataclasses.replace(origin, keys=(*origin.keys, key_text(key)))


def _describe(state: SampleState, records: PyTree) -> str:
    """The text beside the progress bar."""
    del records
    return f"{np.asarray(state.num_divergent).sum(dtype=np.int64)} divergences"
