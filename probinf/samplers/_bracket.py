r"""Slice sampling along a curve through the current point: stepping out and shrinkage, one evaluation at a time.

With $f(t)$ the log density at the point t of the curve, 0 being the current one: draw the level
$\ell = f(0) - e$, $e \sim \text{Exp}(1)$; place a bracket of length w at random around 0; move its ends outwards by w
while they are in the slice $\{t : f(t) \ge \ell\}$, at most M times, a random share of them to each side; then draw t
uniformly from the bracket, and cut the bracket at t, on the side of 0 where t is not, until t is in the slice.
Neal (2003), figures 3 and 5 (M is his m - 1).

Both loops are bounded, and no bound bends the law: with the split of M at random every bracket is as likely from any
of the points of the slice in it (Neal 2003, section 4.1), and for each number of cuts a path and the one back are
equally likely, so that a chain that stays where it is when all cuts are used up does so reversibly.

Stepping out and shrinking are turns of one loop, with one evaluation each. So the density is compiled once, chains do
not wait for the slowest at the end of each part, and kernels can leave a transition after any turn (`SteppedKernel`).
"""

from typing import Any, ClassVar, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, UInt32

from probinf.core._arguments import whole_number
from probinf.core._fast_key import fast_key
from probinf.core._kernel import Point, evaluate, point_log_density
from probinf.core._status import Status, flag, is_fatal
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._interleaved import SteppedKernel, whole_transition
from probinf.samplers._mhg import MHGState, require_floating

LARGEST_BOUND = 2**30  # two of them are counted in 32 bits


class SliceInfo(NamedTuple):
    """One transition of a slice sampler.

    Attributes:
        acceptance_rate: [] in [0, 1], one over the number of candidates that it took, 0 where none was in the slice;
            the wider the first bracket the smaller, and what warm-up tunes that to.
        accepted: [] bool, whether a candidate was in the slice.
        log_density: [] of the new state, up to the constant of the target.
        num_expansions: [] int32, how often the bracket was widened.
        num_evaluations: [] int32, of the density.
        divergent: [] bool, whether a density was NaN.
        status: [] uint32, the bits of this step.
    """

    acceptance_rate: Array
    accepted: Array
    log_density: Array
    num_expansions: Array
    num_evaluations: Array
    divergent: Array
    status: Array


class Line(eqx.Module):
    """The straight line through `start` along `direction`, both [d]."""

    start: Array
    direction: Array

    def __call__(self, t: Float[Array, ""]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The point at t, and 0."""
        return self.start + t * self.direction, jnp.zeros_like(t)


class Ellipse(eqx.Module):
    r"""The ellipse $m + (x - m) \cos t + \nu \sin t$ in coordinates in which a Gaussian is N(m, S).

    Attributes:
        centre, first, second: [d], m, x - m and nu.
        squares: [3] the sums u'u, u'n and n'n of the same two axes in coordinates in which S is the identity.
    """

    centre: Array
    first: Array
    second: Array
    squares: Array

    def __call__(self, t: Float[Array, ""]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The point at angle t, and what the log density of the Gaussian lacks there."""
        c, s = jnp.cos(t), jnp.sin(t)
        missing = 0.5 * (self.squares[0] * c * c + 2 * self.squares[1] * c * s + self.squares[2] * s * s)
        return self.centre + c * self.first + s * self.second, missing


class BracketNoise(NamedTuple):
    """The random numbers of a transition, those of its turns excepted.

    Attributes:
        drop: [] standard exponential, by which the level is below the density.
        place: [] uniform, where the first bracket lies.
        left_steps: [] int32, how often its left end may be moved.
        words: [2] words of the threefry key of the turns.
    """

    drop: Array
    place: Array
    left_steps: Array
    words: Array


class SliceTransition(NamedTuple):
    """A transition that is being made.

    Attributes:
        curve: t -> the point and what is added to its log density.
        key: [2] words of a threefry key, of the transition.
        uniform: [] random number of the next turn; drawn a turn ahead, for XLA draws it again in all that uses it.
        width: [] length of the first bracket.
        level: [] of the slice.
        left, right: [] the bracket, around 0.
        left_steps, right_steps: [] int32, how often its ends may still be moved outwards.
        point: the new point, without gradients; the old one while there is none.
        num_expansions, num_candidates, num_evaluations: [] int32.
        accepted: [] bool.
        bits: [] uint32, of this transition.
        done: [] bool.
    """

    curve: Any
    key: Array
    uniform: Array
    width: Array
    level: Array
    left: Array
    right: Array
    left_steps: Array
    right_steps: Array
    point: Point
    num_expansions: Array
    num_candidates: Array
    num_evaluations: Array
    accepted: Array
    bits: Array
    done: Array


def initial_state(target: Target, position: Position) -> MHGState:
    """The state at `position`, without gradients; flags `NONFINITE_INIT` where the density is not finite there."""
    point = evaluate(target, jax.tree.map(jnp.asarray, position), gradient=False)
    log_density = point_log_density(target, point)
    status = flag(Status.NONFINITE_INIT, ~jnp.isfinite(log_density))
    return MHGState(point, status | flag(Status.POSINF_LOG_WEIGHT, log_density == jnp.inf))


def draw_bracket(key: PRNGKey, max_expansions: int, dtype: Any) -> BracketNoise:
    """The random numbers of a transition."""
    key_level, key_place, key_split, key_turns = jax.random.split(fast_key(key), 4)
    drop = jax.random.exponential(key_level, dtype=dtype)
    left_steps = jax.random.randint(key_split, (), 0, max_expansions + 1, jnp.int32)
    words = jax.random.bits(key_turns, (2,), jnp.uint32)
    return BracketNoise(drop, jax.random.uniform(key_place, (), dtype), left_steps, words)


def begin(
    noise: BracketNoise, target: Target, state: MHGState, curve: Any, width: Float[Array, ""], max_expansions: int
) -> SliceTransition:
    """A level and a bracket. The transition is done at once where the state is fatal or the width is no length."""
    frozen = is_fatal(state.status)
    # A traced width that is not positive would stand still and look healthy.
    good = (width > 0) & jnp.isfinite(width)
    width = jnp.where(good, width, 1)
    value = _lifted(curve, jnp.zeros_like(width), point_log_density(target, state.point))
    infinite = value == jnp.inf
    bits = flag(Status.NAN_LOG_WEIGHT, jnp.isnan(value)) | flag(Status.POSINF_LOG_WEIGHT, infinite)
    bits |= flag(Status.DIVERGENT, ~good)
    # NaN counts as density zero, below which everything possible is in the slice.
    level = jnp.where(jnp.isnan(value), -jnp.inf, value - noise.drop.astype(value.dtype))
    left, none = -width * noise.place, jnp.zeros((), jnp.int32)
    return SliceTransition(
        curve=curve,
        key=noise.words,
        uniform=_uniform(noise.words, none, width.dtype),
        width=width,
        level=level,
        left=left,
        right=left + width,
        left_steps=noise.left_steps,
        right_steps=max_expansions - noise.left_steps,
        point=Point(*state.point[:3], None, None),
        num_expansions=none,
        num_candidates=none,
        num_evaluations=none,
        accepted=jnp.zeros((), bool),
        bits=jnp.where(frozen, jnp.zeros_like(bits), bits),
        done=frozen | infinite | ~good,
    )


def advance(target: Target, position: Position, transition: SliceTransition, max_shrinks: int) -> SliceTransition:
    """One turn: looks at an end of the bracket while that is stepping out, then at a candidate. Done stays done."""
    old, live = transition, ~transition.done
    to_left = old.left_steps > 0
    to_right = ~to_left & (old.right_steps > 0)
    proposing = ~(to_left | to_right)
    inner = old.left + (old.right - old.left) * old.uniform
    t = jnp.where(to_left, old.left, jnp.where(to_right, old.right, inner))

    flat, _ = old.curve(t)
    point = evaluate(target, ravel_pytree(position)[1](flat), gradient=False)
    value = _lifted(old.curve, t, point_log_density(target, point))
    infinite, invalid = value == jnp.inf, jnp.isnan(value)
    inside = (value >= old.level) & (value > -jnp.inf) & ~infinite
    bits = flag(Status.DIVERGENT, invalid & live) | flag(Status.POSINF_LOG_WEIGHT, infinite & live)

    accepted = proposing & inside & live
    cut = proposing & ~inside
    num_candidates = old.num_candidates + (proposing & live).astype(jnp.int32)
    num_evaluations = old.num_evaluations + live.astype(jnp.int32)
    return SliceTransition(
        curve=old.curve,
        key=old.key,
        uniform=_uniform(old.key, num_evaluations, old.uniform.dtype),
        width=old.width,
        level=old.level,
        left=jnp.where(to_left & inside, old.left - old.width, jnp.where(cut & (t < 0), t, old.left)),
        right=jnp.where(to_right & inside, old.right + old.width, jnp.where(cut & (t >= 0), t, old.right)),
        left_steps=jnp.where(to_left, jnp.where(inside, old.left_steps - 1, 0), old.left_steps),
        right_steps=jnp.where(to_right, jnp.where(inside, old.right_steps - 1, 0), old.right_steps),
        point=jax.tree.map(lambda new, now: jnp.where(accepted, new, now), point, old.point),
        num_expansions=old.num_expansions + (~proposing & inside & live).astype(jnp.int32),
        num_candidates=num_candidates,
        num_evaluations=num_evaluations,
        accepted=old.accepted | accepted,
        bits=old.bits | bits,
        done=old.done | accepted | infinite | (num_candidates >= max_shrinks),
    )


def conclude(target: Target, state: MHGState, transition: SliceTransition) -> tuple[MHGState, SliceInfo]:
    """The new state, with gradients if the old one has them, and what is told of the transition."""
    point = transition.point
    if state.point.grad_log_prior is not None:
        # The gradient is needed at the end alone, where other kernels of a cycle go on.
        fresh = evaluate(target, point.position, gradient=True)
        point = jax.tree.map(lambda new, old: jnp.where(transition.accepted, new, old), fresh, state.point)
    log_density = point_log_density(target, point)
    share = 1 / jnp.maximum(transition.num_candidates, 1).astype(log_density.dtype)
    info = SliceInfo(
        acceptance_rate=jnp.where(transition.accepted, share, 0),
        accepted=transition.accepted,
        log_density=log_density,
        num_expansions=transition.num_expansions,
        num_evaluations=transition.num_evaluations,
        divergent=(transition.bits & jnp.uint32(int(Status.DIVERGENT))) != 0,
        status=transition.bits,
    )
    return MHGState(point, state.status | transition.bits), info


class BracketKernel(eqx.Module):
    """What slice samplers share: a `SteppedKernel` of which `draw` and `start` are missing.

    Attributes:
        width: [] of the first bracket.
        max_shrinks: how many candidates are looked at.
    """

    title: ClassVar[str]
    width: eqx.AbstractVar[Array]
    max_shrinks: eqx.AbstractVar[int]

    @property
    def step_size(self) -> Array:
        """What warm-up tunes to reach the acceptance rate."""
        return self.width

    @property
    def default_target_accept(self) -> float:
        """The share of candidates that warm-up aims at; between .5 and .7 the evaluations a draw are the fewest."""
        return 0.6

    def short(self) -> "BracketKernel":
        """The cheapest kernel whose acceptance tells whether the width is of the right order."""
        return self

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`.

        Raises:
            TypeError: a leaf of `position` is not a floating-point array.
        """
        del key
        require_floating(self.title, position)
        return initial_state(target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, SliceInfo]:
        """One transition."""
        return whole_transition(key, cast(SteppedKernel, self), target, state)

    def grow(self, target: Target, position: Position, transition: SliceTransition) -> SliceTransition:
        """One evaluation: of an end of the bracket, or of a candidate."""
        return advance(target, position, transition, self.max_shrinks)

    def finish(self, target: Target, state: MHGState, transition: SliceTransition) -> tuple[MHGState, SliceInfo]:
        """The new state, and what is told of the transition."""
        return conclude(target, state, transition)


def bound_of_loop(name: str, value: Any, least: int) -> int:
    """The bound of a loop as a Python integer; raises `TypeError` or `ValueError` for what is none."""
    bound = whole_number(name, value, least)
    if bound >= LARGEST_BOUND:
        raise ValueError(f"`{name}` is {bound}; needed less than {LARGEST_BOUND}: try 100")
    return bound


def _lifted(curve: Any, t: Float[Array, ""], log_density: Float[Array, ""]) -> Float[Array, ""]:
    """The log density along the curve, with what the curve adds to it."""
    return log_density + curve(t)[1].astype(log_density.dtype)


def _uniform(words: UInt32[Array, " 2"], turn: Int[Array, ""], dtype: Any) -> Float[Array, ""]:
    """The random number of a turn. A threefry key whatever the run's is: see `chain_keys` in `_interleaved`."""
    key = fast_key(jax.random.wrap_key_data(words, impl="threefry2x32"))
    return jax.random.uniform(jax.random.fold_in(key, turn), (), dtype)
