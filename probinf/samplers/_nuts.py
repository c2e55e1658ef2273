r"""`nuts`: the no-U-turn sampler with multinomial sampling of trajectories, one leapfrog step at a time.

A trajectory doubles in a random direction until it turns back. Of its points $(x_i, z_i)$, with z the momentum in
coordinates in which its law is N(0, I), one is drawn in proportion to $e^{-H}$, biased towards the newest half. A
(sub)trajectory with ends a, b and sum of momenta $\rho$ turns where

$$z_a \cdot (\rho - \tfrac12 (z_a + z_b)) \le 0 \quad\text{or}\quad z_b \cdot (\rho - \tfrac12 (z_a + z_b)) \le 0,$$

which no subtrajectory of a dyadic number of points may do. Hoffman, Gelman (2014); Betancourt (2017), appendix A.
Every step is alike: subtrajectories that end at a point are checked against $\log_2$ many earlier ones that are kept
(Phan, Pradhan, Jankowiak 2019; Lao, Dillon 2020), so there is no recursion, and a trajectory can be left at any step.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from probinf.core._arguments import whole_number
from probinf.core._fast_key import fast_key
from probinf.core._kernel import Point, point_log_density
from probinf.core._normal import standard_normal
from probinf.core._status import Status, flag, is_fatal
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._factor import Factor, check_dimension
from probinf.samplers._hmc import HMC, MAX_ENERGY_ERROR, flattened, force, hmc, leapfrog, unflattened
from probinf.samplers._interleaved import whole_transition
from probinf.samplers._mhg import MHGState, require_floating

LARGEST_DEPTH = 20


class NUTSInfo(NamedTuple):
    """One transition.

    Attributes:
        acceptance_rate: [] in [0, 1], the mean over the trajectory of the probability with which its points would be
            accepted from the start; what warm-up tunes the step size to.
        log_density: [] of the new state, up to the constant of the target.
        energy: [] Hamiltonian at the start of the trajectory.
        divergent: [] bool, whether an energy error was NaN or over 1000.
        num_steps: [] int32, leapfrog steps.
        tree_depth: [] int32, finished doublings.
        reached_max_depth: [] bool, whether these are all that `max_depth` allows.
        status: [] uint32, the bits of this step.
    """

    acceptance_rate: Array
    log_density: Array
    energy: Array
    divergent: Array
    num_steps: Array
    tree_depth: Array
    reached_max_depth: Array
    status: Array


class Noise(NamedTuple):
    """The random numbers of a transition.

    Attributes:
        z: [d] momentum.
        words: [2] words of the threefry key of its tree.
    """

    z: Array
    words: Array


class End(NamedTuple):
    """An end of a trajectory: position, momentum and force, each [d]."""

    x: Array
    z: Array
    pull: Array


class Kept(NamedTuple):
    """Points of a half at which subtrajectories begin, a row each; in rows that are not in use anything may stand.

    Attributes:
        z: [rows, d] momenta.
        momentum: [rows, d] sums of momenta up to there.
        square, product: [rows] of each row z'z, and z with `momentum`.
    """

    z: Array
    momentum: Array
    square: Array
    product: Array


class Trajectory(NamedTuple):
    """A trajectory that is being built.

    Attributes:
        key: [2] words of a threefry key, of the transition.
        words: [2] random bits of the next step; drawn a step ahead, for XLA draws them again in all that uses them.
        step_size: [] of the kernel that started it.
        energy: [] at its start.
        left, right: its ends.
        chosen: the point drawn from it, flattened.
        log_weight: [] log of its sum of exp(-H), less that of the start.
        momentum: [d] sum of momenta.
        depth: [] int32, finished doublings.
        head: the end of the half that is being added.
        head_chosen, head_log_weight, head_momentum: as above, of that half.
        head_steps: [] int32, how many points it has.
        forward: [] bool, its direction.
        kept: of its points where subtrajectories begin.
        acceptance: [] sum of acceptance probabilities.
        num_steps: [] int32.
        bits: [] uint32, of this transition.
        done: [] bool.
    """

    key: Array
    words: Array
    step_size: Array
    energy: Array
    left: End
    right: End
    chosen: Point
    log_weight: Array
    momentum: Array
    depth: Array
    head: End
    head_chosen: Point
    head_log_weight: Array
    head_momentum: Array
    head_steps: Array
    forward: Array
    kept: Kept
    acceptance: Array
    num_steps: Array
    bits: Array
    done: Array


class NUTS(eqx.Module):
    """The kernel made by `nuts`.

    Attributes:
        step_size: [] leapfrog step.
        factor: L with inverse mass matrix L L', `[d]`, `[d, d]`, a `LowRankFactor`, or None for the identity.
        max_depth: bound of the doublings.
        dense: whether warm-up learns a full matrix.
        default_target_accept: the acceptance rate that warm-up aims at.
        rank: how many directions warm-up learns beside the diagonal.
    """

    step_size: Array
    factor: Factor | None = None
    max_depth: int = eqx.field(static=True, default=10)
    dense: bool = eqx.field(static=True, default=False)
    default_target_accept: float = eqx.field(static=True, default=0.8)
    rank: int = eqx.field(static=True, default=0)

    def tuned(self, step_size: Array, factor: Factor | None) -> "NUTS":
        """The same kernel with another step size and factor."""
        return dataclasses.replace(self, step_size=step_size, factor=factor)

    def short(self) -> HMC:
        """One leapfrog step, whose acceptance tells whether the step size is of the right order."""
        one = jnp.ones((), jnp.int32)
        return HMC(self.step_size, one, self.factor, False, self.dense, False, self.default_target_accept)

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`.

        Raises:
            TypeError: a leaf of `position` is not a floating-point array.
        """
        require_floating("NUTS", position)
        return self.short().init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, NUTSInfo]:
        """One transition."""
        return whole_transition(key, self, target, state)

    def draw(self, key: PRNGKey, state: MHGState) -> Noise:
        """A new momentum, and what decides in the tree."""
        key_z, key_tree = jax.random.split(fast_key(key))
        x, _ = ravel_pytree(state.position)
        return Noise(standard_normal(key_z, x.shape, x.dtype), jax.random.bits(key_tree, (2,), jnp.uint32))

    def start(self, noise: Noise, target: Target, state: MHGState, before: Trajectory | None = None) -> Trajectory:
        """A trajectory of one point. It is done at once where the state is fatal."""
        point = flattened(state.point)
        x = point.position
        check_dimension(self.factor, x.size)
        pull = force(target, self.factor, point)
        # A traced step size that is not positive would stand still and look healthy: NaN makes it a divergence.
        z = jnp.where(self.step_size > 0, noise.z, jnp.nan)
        end, none = End(x, z, pull), jnp.zeros((), jnp.int32)
        energy = _energy(target, point, z)
        zero = jnp.zeros_like(energy)
        return Trajectory(
            key=noise.words,
            words=_words(noise.words, none),
            step_size=self.step_size.astype(x.dtype),
            energy=energy,
            left=end,
            right=end,
            chosen=point,
            log_weight=jnp.where(jnp.isfinite(energy), zero, -jnp.inf),  # NaN counts as density zero
            momentum=z,
            depth=none,
            # What follows is set by the first step of a half: a selection less for each where chains are interleaved.
            head=end if before is None else before.head,
            head_chosen=point if before is None else before.head_chosen,
            forward=jnp.zeros((), bool) if before is None else before.forward,
            kept=_blank(x, self.max_depth) if before is None else before.kept,
            head_log_weight=jnp.full_like(zero, -jnp.inf),
            head_momentum=jnp.zeros_like(z),
            head_steps=none,
            acceptance=zero,
            num_steps=none,
            bits=flag(Status.NAN_LOG_WEIGHT, jnp.isnan(energy) & (self.step_size > 0)),
            done=is_fatal(state.status),
        )

    def grow(self, target: Target, position: Position, tree: Trajectory) -> Trajectory:
        """One leapfrog step and, where that finishes a half, its merging with the other. What is done stays so."""
        live = ~tree.done
        words = tree.words
        at_start = tree.head_steps == 0
        # The bit is not among those of the uniform numbers.
        forward = jnp.where(at_start, words[0] & 1 == 1, tree.forward)
        head = _where(at_start, _where(forward, tree.right, tree.left), tree.head)
        epsilon = jnp.where(forward, tree.step_size, -tree.step_size)
        unravel = ravel_pytree(position)[1]
        point, z, pull = leapfrog(target, self.factor, epsilon, unravel, *head)
        head = End(point.position, z, pull)

        log_density = point_log_density(target, point)
        # From density zero any other is accepted: weights are then measured from 1.
        known = jnp.isfinite(tree.energy)
        change = jnp.where(known, tree.energy, 0) - _energy(target, point, z)
        divergent = jnp.isnan(change) | (known & (change < -MAX_ENERGY_ERROR))
        infinite = log_density == jnp.inf
        log_weight = jnp.where(divergent | infinite, -jnp.inf, change)
        bits = flag(Status.DIVERGENT, divergent & live) | flag(Status.POSINF_LOG_WEIGHT, infinite & live)
        acceptance = jnp.where(known, jnp.exp(jnp.minimum(log_weight, 0)), (log_weight > -jnp.inf).astype(change.dtype))
        acceptance = jnp.where(live, acceptance, 0)

        # One point of the half, in proportion to the weights.
        half_weight = jnp.logaddexp(tree.head_log_weight, log_weight)
        taken = at_start | (_uniform(words[0], change.dtype) < jnp.exp(log_weight - half_weight))
        head_chosen = _where(taken, point, tree.head_chosen)
        head_momentum = tree.head_momentum + z

        index = tree.head_steps
        kept, turned = _check_subtrajectories(tree.kept, index, z, head_momentum)
        whole = index + 1 == 1 << tree.depth
        stopped = turned | divergent | infinite
        merged = whole & ~stopped & live

        # The newer half wins more often than its share: still invariant, and it moves further.
        wins = _uniform(words[1], change.dtype) < jnp.exp(half_weight - tree.log_weight)
        chosen = _where(merged & wins, head_chosen, tree.chosen)
        left = _where(merged & ~forward, head, tree.left)
        right = _where(merged & forward, head, tree.right)
        momentum = jnp.where(merged, tree.momentum + head_momentum, tree.momentum)
        depth = tree.depth + merged.astype(jnp.int32)
        done = tree.done | stopped | (merged & (_turns(left.z, right.z, momentum) | (depth >= self.max_depth)))
        return Trajectory(
            key=tree.key,
            words=_words(tree.key, tree.num_steps + 1),
            step_size=tree.step_size,
            energy=tree.energy,
            left=left,
            right=right,
            chosen=chosen,
            log_weight=jnp.where(merged, jnp.logaddexp(tree.log_weight, half_weight), tree.log_weight),
            momentum=momentum,
            depth=depth,
            head=head,
            head_chosen=head_chosen,
            head_log_weight=jnp.where(merged, -jnp.inf, half_weight),
            head_momentum=jnp.where(merged, 0, head_momentum),
            head_steps=jnp.where(merged, 0, index + 1),
            forward=forward,
            kept=kept,
            acceptance=tree.acceptance + acceptance,
            num_steps=tree.num_steps + live.astype(jnp.int32),
            bits=tree.bits | bits,
            done=done,
        )

    def finish(self, target: Target, state: MHGState, tree: Trajectory) -> tuple[MHGState, NUTSInfo]:
        """The state at the chosen point, and what is told of the transition."""
        divergent = (tree.bits & jnp.uint32(int(Status.DIVERGENT))) != 0
        info = NUTSInfo(
            acceptance_rate=tree.acceptance / jnp.maximum(tree.num_steps, 1).astype(tree.acceptance.dtype),
            log_density=point_log_density(target, tree.chosen),
            energy=tree.energy,
            divergent=divergent,
            num_steps=tree.num_steps,
            tree_depth=tree.depth,
            reached_max_depth=tree.depth >= self.max_depth,
            status=tree.bits,
        )
        chosen = unflattened(tree.chosen, ravel_pytree(state.position)[1])
        return MHGState(chosen, state.status | tree.bits), info


def _energy(target: Target, point: Point, z: Float[Array, " d"]) -> Float[Array, ""]:
    log_density = point_log_density(target, point)
    # A sum, and no product of matrices, which XLA may round by the number of chains on a device.
    return 0.5 * jnp.sum(z * z).astype(log_density.dtype) - log_density


def _words(key: UInt32[Array, " words"], step: Int[Array, ""]) -> UInt32[Array, " 2"]:
    """The random bits of a step."""
    whole = fast_key(jax.random.wrap_key_data(key, impl="threefry2x32"))
    return jax.random.bits(jax.random.fold_in(whole, step), (2,), jnp.uint32)


def _uniform(word: UInt32[Array, ""], dtype: Any) -> Float[Array, ""]:
    """A multiple of 2^-24 below 1, from the upper bits."""
    return (word >> 8).astype(dtype) * 2.0**-24


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _dot(a: Float[Array, "*n d"], b: Float[Array, " d"]) -> Float[Array, "*n"]:
    # XLA's CPU compiler vectorises products of matrices, and not sums of products. It may round them by the number of
    # chains on a device, so only signs are taken of what is made with them.
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _turns(first: Float[Array, " d"], last: Float[Array, " d"], momentum: Float[Array, " d"]) -> Bool[Array, ""]:
    """Whether a trajectory turns, from its ends and its sum of momenta."""
    inner = momentum - 0.5 * (first + last)
    return (_dot(first, inner) <= 0) | (_dot(last, inner) <= 0)


def _blank(x: Float[Array, " d"], max_depth: int) -> Kept:
    rows = max(1, max_depth - 1)
    points, sums = jnp.zeros((rows, x.size), x.dtype), jnp.zeros(rows, x.dtype)
    return Kept(points, points, sums, sums)


def _check_subtrajectories(
    kept: Kept, index: Int[Array, ""], z: Float[Array, " d"], momentum: Float[Array, " d"]
) -> tuple[Kept, Bool[Array, ""]]:
    """What is kept after a point of the half, and whether a subtrajectory that ends there turns (as `_turns`).

    In a half the dyadic subtrajectories that begin at an even point n are kept in the row of the number of ones in n,
    where none is overwritten that is still to end.
    """
    rows = jnp.arange(kept.square.shape[0], dtype=index.dtype)
    row = jax.lax.population_count(index >> 1)
    even = index % 2 == 0
    here = (rows == row) & even
    square, product = _dot(z, z), _dot(z, momentum)
    kept = Kept(
        jnp.where(here[:, None], z[None], kept.z),
        jnp.where(here[:, None], momentum[None], kept.momentum),
        jnp.where(here, square, kept.square),
        jnp.where(here, product, kept.product),
    )
    # An odd point with k trailing ones ends k subtrajectories, which began in the last k rows.
    ones = jax.lax.population_count(index & ~(index + 1))
    ending = (rows <= row) & (rows > row - ones) & ~even
    # The sum of momenta of each is that up to here, less that before its first point; multiplied out.
    between = _dot(kept.z, z)
    first = _dot(kept.z, momentum) - kept.product + 0.5 * (kept.square - between)
    last = product - _dot(kept.momentum, z) + 0.5 * (between - square)
    return kept, jnp.any(ending & ((first <= 0) | (last <= 0)))


def nuts(
    step_size: Any = 0.1,
    *,
    inverse_mass_matrix: Any = None,
    max_depth: int = 10,
    dense: bool = False,
    rank: int = 0,
    target_accept: float = 0.8,
) -> NUTS:
    """The no-U-turn sampler: Hamiltonian trajectories that end where they would turn back.

    Leaves any target with a differentiable log density invariant, reversibly. An energy error that is NaN or over 1000
    ends the trajectory and is flagged `DIVERGENT`; a density of +inf is flagged `POSINF_LOG_WEIGHT` and freezes the
    chain. `sample` and `warmup` interleave its chains, so that none waits for another's longer trajectory until a call
    ends; under `vmap`, in a `cycle` and in SMC moves all wait for the longest.

    Args:
        step_size: positive scalar; warm-up tunes it to `target_accept`.
        inverse_mass_matrix: as for `hmc`; warm-up learns it.
        max_depth: bound of the doublings, so that a trajectory has at most 2^max_depth points; static.
        dense: whether warm-up learns a full matrix; implied by a full `inverse_mass_matrix`.
        rank: as for `hmc`.
        target_accept: the acceptance rate in (0, 1) that warm-up aims at unless it is told another.

    Returns:
        A `Kernel` with the array leaves `step_size` and `factor`.

    Raises:
        ValueError: `step_size` not finite and positive, `max_depth` not in 1 .. 20, a wrong or indefinite matrix,
            `rank` below 0, or above it with a full matrix.
        TypeError: `max_depth` or `rank` is not an integer.
    """
    like = hmc(
        step_size, 1, inverse_mass_matrix=inverse_mass_matrix, dense=dense, rank=rank, target_accept=target_accept
    )
    depth = whole_number("max_depth", max_depth, 1)
    if depth > LARGEST_DEPTH:
        raise ValueError(f"`max_depth` is {depth}; needed at most {LARGEST_DEPTH}, which is a million steps")
    return NUTS(like.step_size, like.factor, depth, like.dense, target_accept, like.rank)
