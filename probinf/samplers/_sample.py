"""`sample`: many chains of a Markov kernel, with warm-up, storage, checkpoints and flags.

Warm-up is pooled: all chains share one step size and one matrix (`probinf.samplers._warmup`).
"""

import importlib.metadata
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from probinf.core._arguments import whole_number
from probinf.core._draws import Draws
from probinf.core._driver import Run, run_steps
from probinf.core._fingerprint import fingerprint_of
from probinf.core._kernel import Kernel
from probinf.core._status import FATAL, Status, check_status
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._initial import check_call, initial_states, step_chains
from probinf.samplers._interleaved import SteppedKernel, interleave
from probinf.samplers._warmup import prepare_warmup
from probinf.samplers._warmup_step import TunableKernel, check_target_accept, finish_warmup


class SampleState(NamedTuple):
    """What a run of `sample` carries; every array has the leading axis num_chains.

    Attributes:
        chains: kernel states.
        num_divergent: int32, steps with a divergence.
        first_divergent: int32, index of the first such draw, or -1.
    """

    chains: Any
    num_divergent: Array
    first_divergent: Array


class SampleStep(eqx.Module):
    """`thin` transitions of all chains and one record; `run_steps` runs it."""

    kernel: Any
    target: Target
    thin: int = eqx.field(static=True)

    def __call__(self, key: PRNGKey, index: Int[Array, ""], state: SampleState) -> tuple[SampleState, dict[str, Any]]:
        """The next state, and `{"samples": constrained positions, "info": dict}`."""
        chains, info = self._transitions(key, state.chains)
        # Counted here and not from the records, which are not kept in a run with `collect=False`.
        divergent = (info["status"] & jnp.uint32(int(Status.DIVERGENT))) != 0
        first = jnp.where(divergent & (state.first_divergent < 0), index, state.first_divergent)
        record = {"samples": jax.vmap(self.target.constrain)(chains.position), "info": info}
        return SampleState(chains, state.num_divergent + divergent.astype(jnp.int32), first), record

    def _transitions(self, key: PRNGKey, chains: PyTree) -> tuple[PyTree, dict[str, Array]]:
        def one(chains: PyTree, key: PRNGKey) -> tuple[PyTree, dict[str, Array]]:
            chains, info = step_chains(key, self.kernel, self.target, chains)
            return chains, info._asdict()

        if self.thin == 1:
            return one(chains, key)
        chains, infos = jax.lax.scan(one, chains, jax.random.split(key, self.thin))
        return chains, {name: _thinned(name, values) for name, values in infos.items()}


class InterleavedStep(SampleStep):
    """The same for a `SteppedKernel`: in a block of records no chain waits for another."""

    def run_block(
        self, key: PRNGKey, start: Int[Array, ""], count: Int[Array, ""], state: SampleState, buffers: PyTree
    ) -> tuple[SampleState, PyTree]:
        """Records `start .. start + count - 1` of all chains, in buffers `[capacity, num_chains, ...]`, if any."""
        num_chains = state.num_divergent.shape[0]
        zeros = jnp.zeros(num_chains, jnp.uint32)

        def keep(chains: PyTree, infos: Any, made: Array, due: Array, kept: _Kept) -> _Kept:
            index, within = made // self.thin, made % self.thin
            info = {name: _joined(name, kept.info[name], value, within) for name, value in infos._asdict().items()}
            # A fault of any of its transitions is one of the draw.
            divergent = due & (within == self.thin - 1) & ((info["status"] & jnp.uint32(int(Status.DIVERGENT))) != 0)
            first = jnp.where(divergent & (kept.first_divergent < 0), start + index, kept.first_divergent)
            row = {"positions": chains.position, "info": info}
            return _Kept(
                _written(kept.rows, row, index, due),
                {name: jnp.where(_like(due, value), value, kept.info[name]) for name, value in info.items()},
                kept.status | jnp.where(due, infos.status, zeros),
                kept.num_divergent + divergent.astype(jnp.int32),
                first,
            )

        shapes = eqx.filter_eval_shape(self._transitions, key, state.chains)[1]
        info = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
        rows = None
        if buffers is not None:
            capacity = jax.tree.leaves(buffers["info"])[0].shape[0]
            positions = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape), a.dtype), state.chains.position)
            rows = {"positions": positions, "info": buffers["info"]}
        kept = _Kept(rows, info, zeros, state.num_divergent, state.first_divergent)
        made, more = start * self.thin, count * self.thin
        chains, kept = interleave(key, self.kernel, self.target, state.chains, made, more, kept, keep)
        # A kernel may flag a step in its info alone.
        chains = eqx.tree_at(lambda c: c.status, chains, chains.status | kept.status)
        if buffers is not None:
            samples = self._constrained(kept.rows["positions"], buffers["samples"], count)
            buffers = {"samples": samples, "info": kept.rows["info"]}
        return SampleState(chains, kept.num_divergent, kept.first_divergent), buffers

    def _constrained(self, positions: PyTree, samples: PyTree, count: Int[Array, ""]) -> PyTree:
        """The samples of a block, each made once."""

        def one(i: Array, samples: PyTree) -> PyTree:
            made = jax.vmap(self.target.constrain)(jax.tree.map(lambda rows: rows[i], positions))
            return jax.tree.map(lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, i, 0), samples, made)

        return jax.lax.fori_loop(jnp.zeros_like(count), count, one, samples)


class _Kept(NamedTuple):
    """What interleaved chains leave behind: rows of records, the info of the present draws, bits, divergences."""

    rows: Any
    info: dict[str, Array]
    status: Array
    num_divergent: Array
    first_divergent: Array


def _like(mask: Array, leaf: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))


def _written(rows: PyTree, row: PyTree, index: Array, due: Array) -> PyTree:
    """The rows with an entry of each chain that is due; None stays None."""
    if rows is None:
        return None
    chain = jnp.arange(index.shape[0])

    def leaf(buffer: Array, values: Array) -> Array:
        return buffer.at[jnp.where(due, index, buffer.shape[0]), chain].set(values, mode="drop")

    return jax.tree.map(leaf, rows, row)


def _joined(name: str, before: Array, value: Array, within: Array) -> Array:
    """What `_thinned` says of the transitions of a draw so far, with one more."""
    first = _like(within == 0, value)
    if name == "status" or value.dtype == bool:
        return jnp.where(first, value, before | value)
    if name == "acceptance_rate":
        return jnp.where(first, value, before + (value - before) / (within + 1).astype(value.dtype))
    return value


def _thinned(name: str, values: Array) -> Array:
    """One value for the transitions of a draw: any fault is kept, rates are averaged, else the last counts."""
    if name == "status":
        return jax.lax.reduce_or(values, (0,))
    if values.dtype == bool:
        return jnp.any(values, axis=0)
    return jnp.mean(values, axis=0) if name == "acceptance_rate" else values[-1]


class _OfSamples(eqx.Module):
    """A reducer of the samples, as one of the records of `SampleStep`."""

    reducer: Any

    def init(self, record_shape: Any) -> PyTree:
        return self.reducer.init(record_shape["samples"])

    def update(self, accumulated: PyTree, record: Any) -> PyTree:
        return self.reducer.update(accumulated, record["samples"])

    def finalize(self, accumulated: PyTree) -> Any:
        return self.reducer.finalize(accumulated)


def sample(
    key: PRNGKey,
    kernel: Kernel,
    target: Target,
    *,
    num_samples: int,
    num_warmup: int = 1000,
    num_chains: int = 4,
    initial_position: Any = None,
    target_accept: float | None = None,
    thin: int = 1,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    collect: bool = True,
    reducer: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    throw: bool = True,
) -> Draws:
    """Draws from a target by Markov chains, after a warm-up that tunes the kernel.

    Warm-up is Stan's (windows, dual averaging), pooled: all chains share one step size and one matrix, and a chain
    with a fatal status is left out of both. A kernel with nothing to tune is run `num_warmup` steps all the same. A
    chain with a fatal status stays where it was; the others do not notice it. All chains are compiled once: a second
    call with new data of the same shape, or other counts, compiles nothing.

    Args:
        key: PRNG key. The same key, shapes, dtypes and versions give the same draws, with and without a checkpoint.
        kernel: such as `hmc(num_steps=16)` or `random_walk()`.
        target: density to draw from.
        num_samples: kept draws a chain, at least 1.
        num_warmup: steps of warm-up, 0 for none.
        num_chains: number of chains, at least 1.
        initial_position: unconstrained starting points with leading axis `num_chains`. None draws every coordinate
            uniformly from (-2, 2), at most 10 times where the density or its gradient is not finite.
        target_accept: acceptance rate that warm-up aims at; None takes the kernel's.
        thin: transitions a kept draw.
        checkpoint: folder for `warmup` and `draws`; a run that was killed is resumed bit for bit by the same call.
        progress: shows progress bars on stderr.
        collect: whether draws are kept; without, memory does not depend on `num_samples`.
        reducer: streaming statistics of the samples, such as `Moments()`; the result is `attrs["reduced"]`.
        mesh: devices; chains are split over its first axis, whose size must divide `num_chains`. Random numbers do
            not depend on the number of devices, and what is pooled is added in one order. Draws are the same bits
            wherever XLA rounds one chain's density alike in batches of other sizes; it may not for matrix products,
            and on CPU with jaxlib 0.12 for fused multiply-adds, unless `XLA_FLAGS=--xla_cpu_max_isa=AVX`.
        throw: raises on fatal statuses, and warns once of the others; False hands back the flagged result.

    Returns:
        `Draws` with the constrained samples `[num_chains, num_samples, ...]`, the infos of the kernel, the tuned
        `kernel`, the last `state` and the status of each chain. After Ctrl-C, what was finished, flagged
        `INTERRUPTED`.

    Raises:
        ValueError: a count below 1 (`num_warmup` below 0), `target_accept` outside (0, 1), wrong shapes of
            `initial_position`, a mesh that does not divide the chains, or a checkpoint of another run.
        TypeError: `kernel` is no kernel, `target` is no `Target`, or an argument is traced: `sample` runs a loop on
            the host, and under `jit` or `vmap` one uses `kernel.step` with `iterate` or `jax.lax.scan`.
        InferenceError: a chain has a fatal status, before the first step where it starts at no finite density. After
            the run, `error.result` is the flagged `Draws`, so nothing is lost.
    """
    check_call("sample", key, kernel, target, initial_position)
    num_samples, num_chains = whole_number("num_samples", num_samples, 1), whole_number("num_chains", num_chains, 1)
    num_warmup, thin = whole_number("num_warmup", num_warmup), whole_number("thin", thin, 1)
    check_target_accept(target_accept)
    begun = time.perf_counter()
    fingerprint, folders = None, (None, None)
    if checkpoint is not None:
        settings = (num_warmup, num_chains, target_accept, thin)
        fingerprint = fingerprint_of(jax.random.key_data(_typed(key)), kernel, target, settings, initial_position)
        folders = (Path(checkpoint) / "warmup", Path(checkpoint) / "draws")

    key_init, key_warmup, key_draws = jax.random.split(key, 3)
    chains = initial_states(key_init, kernel, target, num_chains, initial_position)
    if throw and np.any(np.asarray(chains.status) & int(FATAL)):
        check_status(chains.status, what="sample")
    kernel, target, chains = _place(kernel, target, chains, mesh, num_chains)

    options = {"fingerprint": fingerprint, "progress": progress, "mesh": mesh}
    warmed = num_warmup == 0
    if num_warmup:
        kernel, chains, warmed = _warm_up(
            key_warmup, kernel, target, chains, num_warmup, target_accept, options | {"checkpoint": folders[0]}
        )
    tuned_at = time.perf_counter()
    state = _fresh(chains)
    run = run_steps(
        key_draws,
        _step_of(kernel, target, thin),
        state,
        num_samples if warmed else 0,
        name="sample",
        collect=collect,
        reducer=None if reducer is None else _OfSamples(reducer),
        checkpoint=folders[1] if warmed else None,
        describe=_describe,
        **options,
    )
    interrupted = run.interrupted or not warmed
    status = np.asarray(run.state.chains.status) | np.uint32(int(Status.INTERRUPTED) if interrupted else 0)
    attrs = {
        "num_warmup": num_warmup,
        "thin": thin,
        "warmup_seconds": tuned_at - begun,
        "sampling_seconds": time.perf_counter() - tuned_at,
        "inference_library": "probinf",
        "jax_version": importlib.metadata.version("jax"),
    }
    if reducer is not None:
        attrs["reduced"] = run.reduced
    draws = Draws(
        samples=_by_chain(run.records["samples"]) if collect else {},
        info=_by_chain(run.records["info"]) if collect else {},
        status=status,
        log_evidence=None,
        kernel=kernel,
        state=run.state.chains,
        attrs=attrs,
    )
    if throw:
        check_status(status, what="sample", counts=_counts(run), result=draws)
    return draws


def _step_of(kernel: Kernel, target: Target, thin: int) -> SampleStep:
    return (InterleavedStep if isinstance(kernel, SteppedKernel) else SampleStep)(kernel, target, thin)


def _typed(key: PRNGKey) -> PRNGKey:
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _warm_up(
    key: PRNGKey, kernel: Any, target: Target, chains: PyTree, num_steps: int, target_accept: float | None, options: Any
) -> tuple[Any, PyTree, bool]:
    """The tuned kernel, the chains after warm-up, and whether it was finished."""
    if not isinstance(kernel, TunableKernel):
        step, state = SampleStep(kernel, target, 1), _fresh(chains)
        run = run_steps(key, step, state, num_steps, name="warmup", collect=False, **options)
        return kernel, run.state.chains, not run.interrupted
    step, state = prepare_warmup(kernel, target, chains, num_steps, target_accept, options["mesh"])
    run = run_steps(key, step, state, num_steps, name="warmup", collect=False, **options)
    return finish_warmup(kernel, run.state), run.state.chains, not run.interrupted


@eqx.filter_jit
def _fresh(chains: PyTree) -> SampleState:
    """The state before the first draw. Divergences of warm-up are part of tuning and are forgotten; fatal bits stay."""
    chains = eqx.tree_at(lambda c: c.status, chains, chains.status & jnp.uint32(int(FATAL)))
    zeros = jnp.zeros(chains.status.shape, jnp.int32)
    return SampleState(chains, zeros, zeros - 1)


def _place(
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


def _by_chain(records: PyTree) -> PyTree:
    return jax.tree.map(lambda a: np.swapaxes(np.asarray(a), 0, 1), records)


def _describe(state: SampleState, records: PyTree) -> str:
    """The text beside the progress bar."""
    del records
    return f"{np.asarray(state.num_divergent).sum(dtype=np.int64)} divergences"


def _counts(run: Run) -> dict[str, str]:
    """Words for the warning about divergences: count, fraction, and the first draw that has one."""
    num = np.asarray(run.state.num_divergent)
    total, first = num.sum(dtype=np.int64), np.asarray(run.state.first_divergent)
    if not total:
        return {}
    steps, earliest = num.size * run.num_done, first[first >= 0].min()
    return {"DIVERGENT": f"{total} of {steps} draws ({100 * total / steps:.2g} %), first at draw {earliest}"}
