r"""`mhg`: Metropolis-Hastings-Green with an auxiliary variable and an involution.

Draw $v \sim q(\cdot \mid x)$, map $(x', v') = \Phi(x, v)$ with $\Phi \circ \Phi = \mathrm{id}$, and accept with

$$\alpha = \min\Big\{1, \frac{\pi(x')\,q(v' \mid x')}{\pi(x)\,q(v \mid x)}
\Big|\det \frac{\partial \Phi}{\partial (x, v)}\Big|\Big\}.$$

Every Metropolis-Hastings kernel is an instance (Green 1995; Tierney 1998; Neklyudov et al. 2020; Andrieu, Lee,
Livingstone 2020): the move type belongs to v, and v' holds the reverse move.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from probinf.core._effects import choose
from probinf.core._fast_key import fast_key, plain_key
from probinf.core._kernel import Point, evaluate, point_gradient, point_log_density
from probinf.core._status import Status, flag, is_fatal
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey


class MHGState(NamedTuple):
    """The state of a Markov chain.

    Attributes:
        point: the position and what the target said there (never evaluated again).
        status: [] uint32, OR of the bits of all steps so far. A fatal bit freezes the chain.
    """

    point: Point
    status: Array

    @property
    def position(self) -> Position:
        """The position, which every kernel's state has."""
        return self.point.position


class MHGInfo(NamedTuple):
    """One transition.

    Attributes:
        acceptance_rate: [] in [0, 1], the probability with which the proposal was accepted.
        accepted: [] bool.
        log_density: [] of the new state, up to the constant of the target.
        energy_error: [] minus the log acceptance ratio; inf where the proposal was impossible.
        divergent: [] bool: the ratio was NaN, or the energy error over the kernel's bound.
        status: [] uint32, the bits of this step.
    """

    acceptance_rate: Array
    accepted: Array
    log_density: Array
    energy_error: Array
    divergent: Array
    status: Array


@runtime_checkable
class Auxiliary(Protocol):
    r"""The law $q(\cdot \mid x)$ of the auxiliary variable.

    Law: `sample` draws from the density (or mass) whose log, up to a constant free of x and v, is `log_prob`.
    """

    def sample(self, key: PRNGKey, target: Target, state: MHGState) -> Any:
        """One draw given the state."""
        ...

    def log_prob(self, target: Target, state: MHGState, v: Any) -> Float[Array, ""]:
        """Its log density; -inf where v cannot be drawn (such a reverse move is rejected)."""
        ...


@runtime_checkable
class Involution(Protocol):
    r"""The map $\Phi$ of (state, v).

    Law: `f(f(x, v)) == (x, v)`, and `log_det` is $\log|\det \partial\Phi|$ over the continuous coordinates of
    (x, v). Returning None as `log_det` has it computed by automatic differentiation, which suits maps whose
    continuous coordinates all move freely (no padding). New states are made by `relocate`.
    """

    def __call__(self, target: Target, state: MHGState, v: Any) -> tuple[MHGState, Any, Any]:
        """`(state', v', log_det)`."""
        ...


@runtime_checkable
class PaddedInvolution(Involution, Protocol):
    r"""An involution of padded arrays, in which only some coordinates are part of the state.

    Law: the derivative of the map over the coordinates active at (x, v) and at (x', v') is square, and `log_det` is
    that of this block. The derivative of the padded whole is singular.
    """

    def active(self, state: MHGState, v: Any) -> Any:
        """A pytree like `(position, v)` of masks, each of its leaf's shape; those of discrete leaves do not count."""
        ...

    def contains(self, position: Position) -> Bool[Array, ""]:
        """Whether the position is one of the state space; its model index may be outside the table."""
        ...

    def canonical(self, position: Position) -> Position:
        """The position with zeros in its padding, so that equal states have equal bits."""
        ...


def require_floating(kernel: str, position: Position) -> None:
    """Raises `TypeError`, with the name of the kernel, unless all leaves of the position are floating-point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(position):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{kernel} needs floating-point positions, but position{jax.tree_util.keystr(path)} is "
                f"{jnp.result_type(leaf)}: convert it, or run this kernel `on_sites` of floating-point numbers, and "
                "another one such as `gibbs` on the discrete ones"
            )


def relocate(target: Target, state: MHGState, position: Position) -> MHGState:
    """The state at another position, evaluated once (with gradients if `state` has them); for involutions."""
    point = evaluate(target, position, gradient=state.point.grad_log_prior is not None)
    return MHGState(point, state.status)


class Accept(eqx.Module):
    """The Bernoulli choice with probability min(1, exp(log_ratio)); zero only where the ratio is zero."""

    def sample(self, key: PRNGKey, log_ratio: Float[Array, ""]) -> Bool[Array, ""]:
        # An exponential is never infinite, as the log of a uniform is when it is exactly zero.
        return -jax.random.exponential(fast_key(key), dtype=log_ratio.dtype) <= log_ratio

    def law(self, log_ratio: Float[Array, ""]) -> tuple[Bool[Array, " 2"], Float[Array, " 2"]]:
        probability = jnp.exp(jnp.minimum(log_ratio, 0))
        return jnp.array([True, False]), jnp.stack([probability, 1 - probability])


class MHG(eqx.Module):
    """The kernel made by `mhg`.

    Attributes:
        auxiliary: law of the auxiliary variable.
        involution: map of (state, v).
        check: whether each proposal's involution and Jacobian are verified.
        gradient: whether states carry gradients.
        max_energy_error: bound over which a proposal counts as divergent.
    """

    auxiliary: Auxiliary
    involution: Involution
    check: bool = eqx.field(static=True, default=False)
    gradient: bool = eqx.field(static=True, default=False)
    max_energy_error: float = eqx.field(static=True, default=float("inf"))

    def as_mhg(self) -> "MHG":
        """Itself; kernels built on `mhg` have this method too, by which `validity` checks their parts."""
        return self

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`; flags `NONFINITE_INIT` where density or gradient is not finite there."""
        del key
        position = jax.tree.map(jnp.asarray, position)
        outside = jnp.asarray(False)
        if isinstance(self.involution, PaddedInvolution):
            position, outside = self.involution.canonical(position), ~self.involution.contains(position)
        point = evaluate(target, position, gradient=self.gradient)
        log_density = point_log_density(target, point)
        finite = jnp.isfinite(log_density) & ~outside
        if self.gradient:
            finite &= jnp.all(jnp.isfinite(ravel_pytree(point_gradient(target, point))[0]))
        status = flag(Status.NONFINITE_INIT, ~finite) | flag(Status.POSINF_LOG_WEIGHT, log_density == jnp.inf)
        return MHGState(point, status)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, MHGInfo]:
        """One transition. Leaves the target invariant; reversible."""
        key_auxiliary, key_accept = jax.random.split(fast_key(key))
        v = self.auxiliary.sample(plain_key(key_auxiliary), target, state)
        proposal, v_back, log_det = self.involution(target, state, v)
        if log_det is None:
            log_det = _autodiff_log_det(self.involution, target, state, v)
        before, after = point_log_density(target, state.point), point_log_density(target, proposal.point)
        log_q = self.auxiliary.log_prob(target, state, v)
        log_q_back = self.auxiliary.log_prob(target, proposal, v_back)
        # Differences of like with like first: the numerator alone would round away small ratios of large densities.
        log_ratio = (after - before) + (log_q_back - log_q) + log_det
        numerator = after + log_q_back + log_det
        invalid = jnp.isnan(numerator) | jnp.isnan(log_q)
        # A NaN density counts as zero, and from probability zero any possible state is accepted.
        impossible_now = jnp.isnan(before) | (before == -jnp.inf)
        log_ratio = jnp.where(
            invalid | (numerator == -jnp.inf), -jnp.inf, jnp.where(impossible_now, jnp.inf, log_ratio)
        )

        # The flags are set from the proposal as it is, before anything is repaired.
        divergent = invalid | (-log_ratio > self.max_energy_error)
        bits = flag(Status.DIVERGENT, divergent) | flag(Status.NAN_LOG_WEIGHT, jnp.isnan(before))
        bits |= flag(Status.POSINF_LOG_WEIGHT, (after == jnp.inf) | (numerator == jnp.inf))
        if isinstance(self.involution, PaddedInvolution):
            bits |= flag(Status.BAD_INVOLUTION, _leaves_state_space(self.involution, state, v, proposal, v_back))
        if self.check:
            bad = _is_bad_involution(self.involution, target, state, v, (proposal, v_back, log_det))
            bits |= flag(Status.BAD_INVOLUTION, bad & jnp.isfinite(numerator) & ~divergent)

        frozen = is_fatal(state.status)
        bits = jnp.where(frozen, jnp.zeros_like(bits), bits)
        log_ratio = jnp.where(frozen | is_fatal(bits), -jnp.inf, log_ratio)
        accepted = choose(key_accept, Accept(), log_ratio)
        point = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal.point, state.point)
        info = MHGInfo(
            acceptance_rate=jnp.exp(jnp.minimum(log_ratio, 0)),
            accepted=accepted,
            log_density=jnp.where(accepted, after, before),
            energy_error=-log_ratio,
            divergent=divergent & ~frozen,
            status=bits,
        )
        return MHGState(point, state.status | bits), info


def mhg(
    auxiliary: Auxiliary,
    involution: Involution,
    *,
    check: bool = False,
    gradient: bool = False,
    max_energy_error: float = float("inf"),
) -> MHG:
    r"""The Metropolis-Hastings-Green kernel of an auxiliary law and an involution.

    Leaves the target invariant for every pair that keeps the laws of `Auxiliary` and `Involution`. A proposal of
    NaN density, auxiliary density or Jacobian is rejected and flagged `DIVERGENT`; one of density +inf is
    rejected, flagged `POSINF_LOG_WEIGHT`, and freezes the chain where it is.

    Args:
        auxiliary: has `sample(key, target, state)` and `log_prob(target, state, v)`; write it as an
            `equinox.Module`, tunables as array leaves.
        involution: `(target, state, v) -> (state', v', log_det)`; `log_det` may be None (see `Involution`).
        check: verifies at each proposal that the involution inverts itself, that its two log-determinants cancel,
            and, where all of (x, v) is continuous, that `log_det` is that of automatic differentiation, each to the
            square root of the rounding unit; `BAD_INVOLUTION` (fatal) if not. For debugging: costs d derivatives. A
            `PaddedInvolution` is compared on its active coordinates, whether or not there are discrete ones.
        gradient: whether states carry gradients for the involution.
        max_energy_error: a proposal whose log ratio is below minus this bound counts as divergent.

    Returns:
        A `Kernel`.

    Raises:
        TypeError: `auxiliary` or `involution` lacks what it needs.
    """
    if not (callable(getattr(auxiliary, "sample", None)) and callable(getattr(auxiliary, "log_prob", None))):
        raise TypeError(f"`auxiliary` needs methods `sample` and `log_prob`, but is a {type(auxiliary).__name__}")
    if not callable(involution):
        raise TypeError(f"`involution` must be callable, but is a {type(involution).__name__}")
    return MHG(auxiliary, involution, check, gradient, max_energy_error)


def _active(involution: PaddedInvolution, state: MHGState, v: Any) -> Bool[Array, " n"]:
    """The masks of the continuous coordinates of (x, v), in the order of `ravel_pytree`."""
    pairs = zip(jax.tree.leaves((state.point.position, v)), jax.tree.leaves(involution.active(state, v)), strict=True)
    masks = [jnp.ravel(mask) for leaf, mask in pairs if eqx.is_inexact_array(leaf)]
    return jnp.concatenate([jnp.zeros(0, bool), *masks])


def _leaves_state_space(
    involution: PaddedInvolution, state: MHGState, v: Any, proposal: MHGState, v_back: Any
) -> Bool[Array, ""]:
    """Whether the map starts or ends outside the table of models, or changes the number of active coordinates."""
    before, after = jnp.sum(_active(involution, state, v)), jnp.sum(_active(involution, proposal, v_back))
    contained = involution.contains(state.point.position) & involution.contains(proposal.point.position)
    return (before != after) | ~contained


def _autodiff_log_det(involution: Involution, target: Target, state: MHGState, v: Any) -> Float[Array, ""]:
    """Log absolute determinant of the involution's derivative over the (active) continuous coordinates."""
    moving, fixed = eqx.partition((state.point.position, v), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(moving)
    if flat.size == 0:
        return jnp.zeros_like(state.point.log_prior)

    def mapped(coordinates: Float[Array, " n"]) -> tuple[Float[Array, " m"], Any]:
        position, v_in = eqx.combine(unravel(coordinates), fixed)
        # Evaluated afresh, since cached gradients depend on the position too.
        new, v_out, _ = involution(target, relocate(target, state, position), v_in)
        return ravel_pytree(eqx.filter((new.point.position, v_out), eqx.is_inexact_array))[0], (new, v_out)

    jacobian, (new, v_out) = jax.jacfwd(mapped, has_aux=True)(flat)
    if jacobian.shape[0] != jacobian.shape[1]:
        raise ValueError(
            f"the involution maps {jacobian.shape[1]} continuous coordinates of (x, v) to {jacobian.shape[0]}: they "
            "must be as many, or no inverse exists"
        )
    if isinstance(involution, PaddedInvolution):
        jacobian = _block(jacobian, _active(involution, new, v_out), _active(involution, state, v))
    return jnp.linalg.slogdet(jacobian)[1]


def _block(matrix: Float[Array, "n n"], rows: Bool[Array, " n"], columns: Bool[Array, " n"]) -> Float[Array, "n n"]:
    """The block of some rows and columns, moved to the front, and ones on the rest of the diagonal."""
    front = matrix[jnp.argsort(~rows, stable=True)][:, jnp.argsort(~columns, stable=True)]
    index = jnp.arange(matrix.shape[0])
    within = (index < jnp.sum(rows))[:, None] & (index < jnp.sum(columns))[None, :]
    return jnp.where(within, front, jnp.eye(matrix.shape[0], dtype=matrix.dtype))


def _is_bad_involution(
    involution: Involution, target: Target, state: MHGState, v: Any, image: tuple[MHGState, Any, Any]
) -> Bool[Array, ""]:
    """Whether f(f(x, v)) != (x, v), or the Jacobians do not cancel or differ from the derivative."""
    proposal, v_back, log_det = image
    again, v_again, log_det_back = involution(target, proposal, v_back)
    padded = isinstance(involution, PaddedInvolution)
    continuous = all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves((state.point.position, v)))
    start, end = (state.point.position, v), (again.point.position, v_again)
    if padded:
        start, end = _without_padding(involution, state, v), _without_padding(involution, again, v_again)
    bad = _differs(start, end)
    if log_det_back is None and padded:
        log_det_back = _autodiff_log_det(involution, target, proposal, v_back)
    if log_det_back is not None:
        bad |= _differs(-log_det, log_det_back)
    if continuous or padded:
        bad |= _differs(log_det, _autodiff_log_det(involution, target, state, v))
    return bad


def _without_padding(involution: PaddedInvolution, state: MHGState, v: Any) -> Any:
    """(x, v) with zeros where it is not active."""
    return jax.tree.map(
        lambda leaf, mask: jnp.where(mask, leaf, jnp.zeros_like(leaf)),
        (state.point.position, v),
        involution.active(state, v),
    )


def _differs(expected: Any, found: Any) -> Bool[Array, ""]:
    def leaf_differs(a: Any, b: Any) -> Bool[Array, ""]:
        a, b = jnp.asarray(a), jnp.asarray(b)
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return jnp.any(a != b)
        # Relative to the largest entry: leapfrog loses a few digits on the way there and back.
        tolerance = jnp.sqrt(jnp.finfo(a.dtype).eps) * (1 + jnp.max(jnp.abs(a), initial=0))
        return ~jnp.all(jnp.abs(a - b) <= tolerance)

    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    return jnp.any(jnp.stack([leaf_differs(a, b) for a, b in pairs]))
