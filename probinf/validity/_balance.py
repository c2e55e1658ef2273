r"""Balance at a point: the laws of a Metropolis-Hastings-Green kernel, each without Monte Carlo error.

At a draw (x, v) with $(x', v') = \Phi(x, v)$ it must hold that $\Phi(x', v') = (x, v)$, that the stated
$\log|\det\partial\Phi|$ is the derivative's, and, with the acceptance probability $\alpha$ that the kernel itself
reports,

$$\pi(x)\,q(v \mid x)\,\alpha(x, v) = \pi(x')\,q(v' \mid x')\,\alpha(x', v')\,|\det\partial\Phi(x, v)|$$

(Tierney 1998). What the states cache must be what the target says at their position.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from probinf.core import PRNGKey, Target, whole_number
from probinf.validity._report import Check, Report

LAWS = ("involution", "Jacobian", "balance", "fresh caches")


@runtime_checkable
class Involutive(Protocol):
    """A kernel that says which auxiliary variable and which involution it is made of."""

    def as_mhg(self) -> Any:
        """The `mhg` kernel that it is, with fields `auxiliary` and `involution`."""
        ...


@runtime_checkable
class _Padded(Protocol):
    """An involution of padded arrays: `active(state, v)` is a pytree of masks like `(position, v)`."""

    def active(self, state: Any, v: Any) -> Any: ...


class _Given(eqx.Module):
    """The auxiliary law, drawn at one value."""

    law: Any
    v: Any

    def sample(self, key: PRNGKey, target: Target, state: PyTree) -> PyTree:
        del key, target, state
        return self.v

    def log_prob(self, target: Target, state: PyTree, v: PyTree) -> Array:
        return self.law.log_prob(target, state, v)


class _Errors(NamedTuple):
    involution: Array
    jacobian: Array
    balance: Array
    caches: Array
    rounding: Array
    usable: Array


def balance(
    key: PRNGKey,
    kernel: Any,
    target: Target,
    draw: Callable[[PRNGKey], PyTree],
    *,
    num_points: int = 256,
    subject: str = "",
) -> Report:
    """Whether an involutive kernel is in balance at random points.

    Args:
        key: PRNG key.
        kernel: has `as_mhg()`, as all kernels made by `mhg` have.
        target: its target.
        draw: key -> position, from any law that covers the target.
        num_points: how many points.
        subject: a name for the table.

    Returns:
        A `Report` with a false-alarm rate of zero. The bounds are the square root of the rounding unit; the error of
        the balance is in nats, beyond what rounding of the log densities explains, and "resolution" fails where that
        is over a tenth of a nat.

    Raises:
        TypeError: the kernel has no `as_mhg`.
    """
    if not isinstance(kernel, Involutive):
        raise TypeError(f"`kernel` is a {type(kernel).__name__} without `as_mhg()`; needed one made by `mhg`")
    num_points = whole_number("num_points", num_points, 1)
    errors = _errors(kernel.as_mhg(), target, draw, jax.random.split(key, num_points))
    usable = np.asarray(errors.usable)
    name = subject or type(kernel).__name__
    bound = float(np.sqrt(jnp.finfo(jnp.result_type(float)).eps))
    rounding = np.asarray(errors.rounding, float)[usable]
    checks = [
        Check("points", f"{name}: share without flow", float(1 - usable.mean()), 0.9, 0.0, "a kernel that never moves"),
        Check("resolution", f"{name}: rounding of log densities", float(np.max(rounding, initial=0)), 0.1, 0.0, "nats"),
    ]
    for law, values in zip(LAWS, errors[:4], strict=True):
        seen = np.asarray(values, float)[usable]
        found = float(np.max(seen)) if len(seen) else float("nan")
        checks.append(Check(law, f"{name}: {len(seen)} points", found, bound, 0.0, f"{bound:.1g}"))
    return Report(tuple(checks), name)


@eqx.filter_jit
def _errors(mhg: Any, target: Target, draw: Callable, keys: Array) -> _Errors:
    def at(key: PRNGKey) -> _Errors:
        draw_key, init_key, v_key, fresh_key, step_key = jax.random.split(key, 5)
        state = mhg.init(init_key, target, draw(draw_key))
        v = mhg.auxiliary.sample(v_key, target, state)
        there, v_there, log_det = mhg.involution(target, state, v)
        fresh = mhg.init(fresh_key, target, there.position)
        back, v_back, _ = mhg.involution(target, fresh, v_there)
        masks = _masks(mhg, state, v), _masks(mhg, there, v_there)
        derivative = _log_det(mhg, target, (state.position, v), masks)

        def flow(key: PRNGKey, state: PyTree, v: PyTree) -> Array:
            """Log density, log q and log acceptance probability, which the kernel knows where it underflows."""
            given = eqx.tree_at(lambda kernel: kernel.auxiliary, mhg, _Given(mhg.auxiliary, v))
            _, info = given.step(key, target, state)
            terms = target.log_density(state.position), mhg.auxiliary.log_prob(target, state, v)
            return jnp.stack([*terms, jnp.minimum(-info.energy_error, 0)])

        # One program for the way out and the way home.
        ends = jax.tree.map(lambda a, b: jnp.stack([a, b]), (state, v), (fresh, v_there))
        out, home = jax.vmap(flow)(jax.random.split(step_key), *ends)
        given = derivative if log_det is None else log_det
        # A point is of no use where nothing flows either way. Where it flows one way only, the error is infinite.
        flows = jnp.stack([jnp.all(out > -jnp.inf), jnp.all(home > -jnp.inf)])
        usable = jnp.any(flows)
        rounding = 32 * jnp.finfo(out.dtype).eps * jnp.sum(jnp.abs(out[:2]) + jnp.abs(home[:2]))
        error = jnp.abs(jnp.sum(jnp.where(usable, out - home, 0)) - derivative)
        error = jnp.where(jnp.all(flows), jnp.maximum(error - rounding, 0), jnp.inf)
        return _Errors(
            involution=_distance((state.position, v), (back.position, v_back), masks[0]),
            jacobian=_distance(given, derivative),
            balance=error,
            caches=_distance(there.point, fresh.point),
            rounding=jnp.where(jnp.all(flows), rounding, 0),
            usable=usable,
        )

    return jax.vmap(at)(keys)


def _masks(mhg: Any, state: PyTree, v: PyTree) -> PyTree:
    """Which coordinates of (x, v) are part of the state: all, but for padded arrays."""
    if isinstance(mhg.involution, _Padded):
        return mhg.involution.active(state, v)
    return jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), (state.position, v))


def _log_det(mhg: Any, target: Target, start: PyTree, masks: tuple[PyTree, PyTree]) -> Float[Array, ""]:
    """Log absolute determinant of the involution, over its continuous coordinates that are active before and after."""
    moving, fixed = eqx.partition(start, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(moving)
    if flat.size == 0:
        return jnp.zeros(())
    columns, rows = (_front(start, mask) for mask in masks)

    def mapped(numbers: Float[Array, " n"]) -> Float[Array, " n"]:
        position, v = eqx.combine(unravel(numbers), fixed)
        state, v, _ = mhg.involution(target, mhg.init(jax.random.key(0), target, position), v)
        return ravel_pytree(eqx.filter((state.position, v), eqx.is_inexact_array))[0]

    # The active block in front, and ones on the rest of the diagonal.
    block = jax.jacfwd(mapped)(flat)[rows.order][:, columns.order]
    within = rows.active[:, None] & columns.active[None, :]
    block = jnp.where(within, block, jnp.eye(flat.size, dtype=block.dtype))
    log_det = jnp.linalg.slogdet(block)[1].astype(flat.dtype)
    return jnp.where(jnp.sum(rows.active) == jnp.sum(columns.active), log_det, jnp.nan)


class _Order(NamedTuple):
    order: Array
    active: Array


def _front(start: PyTree, masks: PyTree) -> _Order:
    """The order that puts active continuous coordinates first, and which of the ordered ones are active."""
    pairs = zip(jax.tree.leaves(start), jax.tree.leaves(masks), strict=True)
    active = jnp.concatenate([jnp.ravel(mask) for leaf, mask in pairs if eqx.is_inexact_array(leaf)])
    order = jnp.argsort(~active, stable=True)
    return _Order(order, active[order])


def _distance(expected: PyTree, found: PyTree, masks: PyTree = None) -> Float[Array, ""]:
    """The largest difference of two pytrees, relative to the largest number of a leaf."""
    worst = jnp.zeros(())
    leaves = jax.tree.leaves(expected), jax.tree.leaves(found)
    seen = [True] * len(leaves[0]) if masks is None else jax.tree.leaves(masks)
    for a, b, mask in zip(*leaves, seen, strict=True):
        a, b = (jnp.where(mask, jnp.asarray(x, jnp.result_type(float)), 0) for x in (a, b))
        worst = jnp.maximum(worst, jnp.max(jnp.abs(a - b), initial=0) / (1 + jnp.max(jnp.abs(a), initial=0)))
    return worst
