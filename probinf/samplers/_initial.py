"""Starting states of many chains: given by the user, or uniform on (-2, 2) in each unconstrained coordinate (Stan).

Discrete sites start uniformly on their supports.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from probinf.core import is_concrete
from probinf.core._fast_key import fast_key, plain_key
from probinf.core._kernel import Kernel
from probinf.core._layout import shapes_of
from probinf.core._status import is_fatal
from probinf.core._support import IntegerInterval, support_at
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._shared import SharingKernel

RADIUS = 2
MAX_TRIES = 10


def initial_states(key: PRNGKey, kernel: Kernel, target: Target, num_chains: int, initial_position: Any) -> PyTree:
    """The states of `num_chains` chains, stacked; faults are in their `status`.

    Args:
        key: PRNG key.
        kernel: supplies `init`.
        target: density; its `sample_prior` tells the shapes of positions.
        num_chains: number of chains.
        initial_position: pytree with leading axis `num_chains`; None draws each coordinate from uniform(-2, 2), or
            uniformly on its support if discrete, at most 10 times where the density or its gradient is not finite.

    Raises:
        ValueError: wrong shapes, or none given and the target has no `sample_prior`.
        TypeError: coordinates cannot be drawn since they are not floating-point and have no known support.
    """
    shapes = None if target.sample_prior is None else shapes_of(target.sample_prior, jax.random.key(0))
    if initial_position is not None:
        positions = jax.tree.map(jnp.asarray, initial_position)
        _check_shapes(positions, shapes, num_chains)
        return _init_given(key, kernel, target, positions)
    if shapes is None:
        raise ValueError(
            "the target has no `sample_prior`, so the shape of a position is unknown: pass `initial_position` with "
            f"leading axis num_chains = {num_chains}"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) and support_at(target.supports, path) is None:
            raise TypeError(
                f"position{jax.tree_util.keystr(path)} is {leaf.dtype} and cannot be drawn from uniform(-2, 2): pass "
                "`initial_position`, or tell its range by the `supports` of the target"
            )
    return _init_uniform(key, kernel, target, num_chains)


def check_call(what: str, key: PRNGKey, kernel: Any, target: Any, initial_position: Any) -> None:
    """Raises `TypeError` for arguments that are no kernel or no target, and inside `jit`, `vmap` or `grad`."""
    for name, value in {"key": key, "kernel": kernel, "target": target, "initial_position": initial_position}.items():
        if not is_concrete(value):
            raise TypeError(
                f"`{what}` runs a loop on the host and cannot be called under `jit`, `vmap` or `grad`, but `{name}` is "
                f"traced ({type(value).__name__}): there, use `kernel.step` with `iterate` or `jax.lax.scan`"
            )
    if isinstance(kernel, type) or not all(callable(getattr(kernel, name, None)) for name in ("init", "step")):
        raise TypeError(f"`kernel` is {kernel!r}, but needs methods `init` and `step`: pass one such as `hmc()`")
    if not isinstance(target, Target):
        raise TypeError(
            f"`target` is {target!r}, but must be a `Target`: wrap a log density as `Target(log_density)`, a NumPyro "
            "model as `Target.from_numpyro(model, data)`"
        )


def step_chains(key: PRNGKey, kernel: Any, target: Target, chains: PyTree) -> tuple[PyTree, Any]:
    """One transition of all chains: the states, whose status has the bits of this step too, and the infos.

    Raises:
        TypeError: the info of the kernel is not a NamedTuple with `acceptance_rate` and `status`.
    """
    if isinstance(kernel, SharingKernel):
        key_shared, key = plain_key(jax.random.split(fast_key(key)))
        kernel = kernel.shared(key_shared)
    keys = plain_key(jax.random.split(fast_key(key), chains.status.shape[0]))
    chains, info = jax.vmap(kernel.step, (0, None, 0))(keys, target, chains)
    if not (hasattr(info, "_asdict") and hasattr(info, "acceptance_rate") and hasattr(info, "status")):
        raise TypeError(
            f"the `step` of {type(kernel).__name__} returned {type(info).__name__} as info, but it must be a "
            "NamedTuple of arrays with at least `acceptance_rate` and `status`"
        )
    # A kernel may flag a step in its info alone.
    return eqx.tree_at(lambda c: c.status, chains, chains.status | info.status), info


def _check_shapes(positions: PyTree, shapes: PyTree, num_chains: int) -> None:
    if not jax.tree.leaves(positions):
        raise ValueError("`initial_position` has no arrays: pass a pytree with leading axis `num_chains`")
    if shapes is not None and jax.tree.structure(positions) != jax.tree.structure(shapes):
        raise ValueError(
            f"`initial_position` has the structure {jax.tree.structure(positions)}, but positions of this target are "
            f"{jax.tree.structure(shapes)}"
        )
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(positions)):
        name = f"initial_position{jax.tree_util.keystr(path)}"
        if leaf.ndim == 0 or leaf.shape[0] != num_chains:
            raise ValueError(f"`{name}` has shape {leaf.shape}, but needs a leading axis of num_chains = {num_chains}")
        if shapes is not None and leaf.shape[1:] != jax.tree.leaves(shapes)[i].shape:
            expected = (num_chains, *jax.tree.leaves(shapes)[i].shape)
            raise ValueError(f"`{name}` has shape {leaf.shape}, but must have {expected}")


def init_chains(key: PRNGKey, kernel: Kernel, target: Target, positions: PyTree) -> PyTree:
    """`kernel.init` at each of the positions stacked on a leading axis.

    Raises:
        TypeError: the states of the kernel have no `position`, or no `status` of one uint32 a chain.
    """
    num_chains = jax.tree.leaves(positions)[0].shape[0]
    states = jax.vmap(kernel.init, (0, None, 0))(
        plain_key(jax.random.split(fast_key(key), num_chains)), target, positions
    )
    status = getattr(states, "status", None)
    flagged = isinstance(status, jax.Array) and status.dtype == jnp.uint32 and status.shape == (num_chains,)
    if not (flagged and hasattr(states, "position")):
        raise TypeError(
            f"the `init` of {type(kernel).__name__} returned {type(states).__name__}, but a kernel's state must have "
            "`position` and a scalar uint32 `status`: make it a NamedTuple with both, starting at `jnp.uint32(0)`"
        )
    return states


_init_given = eqx.filter_jit(init_chains)


@eqx.filter_jit
def _init_uniform(key: PRNGKey, kernel: Kernel, target: Target, num_chains: int) -> PyTree:
    shapes = eqx.filter_eval_shape(target.draw_prior, jax.random.key(0))
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = [(support_at(target.supports, path), leaf) for path, leaf in paths]

    key_draw, key_init = jax.random.split(fast_key(key))

    def draw(number: Array) -> list[Array]:
        keys = jax.random.split(jax.random.fold_in(key_draw, number), len(leaves))
        return [_drawn(k, num_chains, *leaf) for k, leaf in zip(keys, leaves, strict=True)]

    def attempt(number: Array, drawn: list[Array]) -> PyTree:
        positions = jax.tree.unflatten(structure, drawn)
        return init_chains(jax.random.fold_in(key_init, number), kernel, target, positions)

    def retry(carry: tuple[Array, PyTree, list[Array]]) -> tuple[Array, PyTree, list[Array]]:
        # Drawn a turn ahead: else XLA draws anew in all that uses the numbers, and compiles that.
        number, states, drawn = carry
        bad = is_fatal(states.status)
        fresh = attempt(number, drawn)
        return number + 1, where_chains(bad, fresh, states), draw(number + 1)

    def unfinished(carry: tuple[Array, PyTree, list[Array]]) -> Array:
        number, states, _ = carry
        return (number < MAX_TRIES) & jnp.any(is_fatal(states.status))

    # The first try is a turn of the loop too, so that it is compiled once: before it, all chains count as bad.
    first = draw(jnp.zeros((), jnp.int32))
    layout = jax.eval_shape(attempt, jnp.zeros((), jnp.int32), first)
    none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), layout)
    none = eqx.tree_at(lambda s: s.status, none, jnp.full_like(none.status, 2**32 - 1))
    return jax.lax.while_loop(unfinished, retry, (jnp.zeros((), jnp.int32), none, first))[1]


def _drawn(key: PRNGKey, num_chains: int, support: IntegerInterval | None, leaf: Any) -> Array:
    if support is None:
        return jax.random.uniform(key, (num_chains, *leaf.shape), leaf.dtype, -RADIUS, RADIUS)
    lower, upper = (jnp.broadcast_to(bound, leaf.shape)[None] for bound in (support.lower, support.upper))
    drawn = jax.random.randint(key, (num_chains, *leaf.shape), lower, upper + 1, support.lower.dtype)
    return drawn.astype(leaf.dtype)


def where_chains(mask: Bool[Array, " chains"], new: PyTree, old: PyTree) -> PyTree:
    """`new` for some chains."""
    return jax.tree.map(lambda a, b: jnp.where(per_chain(mask, a), a, b), new, old)


def per_chain(mask: Bool[Array, " chains"], leaf: Array) -> Bool[Array, "chains ..."]:
    """The mask with as many axes as a leaf."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))
