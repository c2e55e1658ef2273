r"""`fit_mixture`: expectation maximisation for mixtures of directional distributions (Banerjee et al. 2005, movMF).

E step: $r_{ih} \propto \pi_h f(x_i; \mu_h, \kappa_h)$ (soft), or 1 for the largest and 0 for the others (hard).
M step: $\pi_h = \sum_i r_{ih} / n$, and each component's own maximum: for von Mises-Fisher the direction of
$\sum_i r_{ih} x_i$ and the concentration of its length; for the power spherical distribution one Newton step for the
direction. All densities are relative to the uniform distribution, so that float32 suffices in thousands of
dimensions. The start is greedy k-means++ (Arthur, Vassilvitskii 2007) with the distance 1 - cosine: each seed is the
best of a few drawn; then spherical k-means, at most 30 steps.

Memory beyond the data is of order points times components; a step is two matrix products.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int
from numpyro.distributions import Categorical, MixtureSameFamily

from probinf.core import fast_key, is_concrete
from probinf.core._arguments import whole_number
from probinf.core._types import PRNGKey
from probinf.distributions import _power_spherical_normaliser as power_spherical
from probinf.distributions import _von_mises_fisher_normaliser as von_mises_fisher
from probinf.distributions._concentration import solve, unbiased
from probinf.distributions._directional import AbstractDirectional
from probinf.distributions._power_spherical import PowerSpherical
from probinf.distributions._power_spherical_fit import newton_parts, unit_or, weighted
from probinf.distributions._von_mises_fisher import VonMisesFisher
from probinf.distributions._von_mises_fisher_fit import Directions

KINDS = ("soft", "hard")
MAX_START_STEPS = 30


class MixtureFit(NamedTuple):
    """What `fit_mixture` found.

    Attributes:
        mixture: NumPyro's `MixtureSameFamily`, of `components`; those of weight 0 lost all points.
        components: one distribution with the components for its batch.
        log_likelihood: [num_steps + 1] weighted mean over points of the log density relative to the uniform
            distribution, before each step and at the end; for `kind="hard"` with each point in its likeliest component.
            NaN behind the last step made.
        num_steps: of how many steps the mixture is the result.
        converged: whether the last step changed the log likelihood by no more than the tolerance.
        counts: [num_components] weight of the points of each component.
        capped: [num_components] whether the concentration stands at its largest, as that of a component with a single
            point does, where the likelihood has no bound.
    """

    mixture: MixtureSameFamily
    components: AbstractDirectional
    log_likelihood: Float[Array, " steps"]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]
    counts: Float[Array, " components"]
    capped: Bool[Array, " components"]


class Components(NamedTuple):
    """Parameters of a mixture: weights [k], directions [k, p], concentrations [k]."""

    weights: Float[Array, " k"]
    directions: Float[Array, "k p"]
    concentrations: Float[Array, " k"]


class Assigned(NamedTuple):
    """An E step: shares [n, k] of points in components, cosines [n, k], and the mean log density."""

    shares: Float[Array, "n k"]
    cosines: Float[Array, "n k"]
    log_likelihood: Float[Array, ""]


def fit_mixture(
    key: PRNGKey,
    x: Float[Array, "n p"],
    num_components: int,
    *,
    kind: str = "soft",
    family: type[AbstractDirectional] = VonMisesFisher,
    weights: Float[ArrayLike, " n"] | None = None,
    num_steps: int = 200,
    tolerance: float | Float[ArrayLike, ""] = 1e-6,
    bias_corrected: bool = False,
    max_concentration: float | Float[ArrayLike, ""] | None = None,
) -> MixtureFit:
    """Fits a mixture of directional distributions by expectation maximisation.

    With `kind="soft"` and no bias correction, the log likelihood of a von Mises-Fisher mixture never falls. The result
    is a local optimum: keep the best of several keys.

    Args:
        key: PRNG key, for the start.
        x: [n, p] unit vectors.
        num_components: k, from 1 to n.
        kind: "soft" shares each point among components; "hard" gives it to the likeliest, as k-means does, which is
            quicker to converge and overstates concentrations where components overlap.
        family: `VonMisesFisher` or `PowerSpherical`.
        weights: [n] at least 0, not all 0; None counts each point once.
        num_steps: the most steps made.
        tolerance: convergence is a change of the mean log likelihood by no more than this, times 1 + its size.
        bias_corrected: for `VonMisesFisher`, whether each concentration is corrected for the number of its points, as
            in `VonMisesFisher.fit`: better on new data where components have fewer points than dimensions.
        max_concentration: the largest concentration of a component; None takes 0.1 over the rounding unit of the dtype,
            8e5 in float32, beyond which log densities are noise.

    Returns:
        The mixture, with the trace of its likelihood and what to distrust.

    Raises:
        TypeError: dtypes differ, or `family` is no such class.
        ValueError: no such `kind`; more components than points; bad points or weights, as in `VonMisesFisher.fit`.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` is {kind!r}; needed one of {KINDS}")
    if family not in (VonMisesFisher, PowerSpherical):
        raise TypeError(f"`family` is {family!r}; needed `VonMisesFisher` or `PowerSpherical`")
    if bias_corrected and family is not VonMisesFisher:
        raise ValueError("`bias_corrected` is True; the correction is for `family=VonMisesFisher` alone: leave it out")
    given = Directions.checked(x, weights)
    if given.x.ndim != 2:
        raise ValueError(f"`x` has shape {given.x.shape}; needed [n, p]: map over batches with `jax.vmap`")
    count = whole_number("num_components", num_components, 1)
    if count > given.x.shape[0]:
        raise ValueError(f"`num_components` is {count}, with {given.x.shape[0]} points; needed at most as many")
    steps = whole_number("num_steps", num_steps, 1)
    dtype = given.x.dtype
    if is_concrete(tolerance) and not float(np.asarray(tolerance)) >= 0:
        raise ValueError(f"`tolerance` is {tolerance}; needed at least 0")
    cap = 0.1 / float(jnp.finfo(dtype).eps) if max_concentration is None else max_concentration
    if is_concrete(cap) and not float(np.asarray(cap)) > 0:
        raise ValueError(f"`max_concentration` is {cap}; needed a number above 0")
    limits = jnp.asarray(tolerance, dtype), jnp.asarray(cap, dtype)
    found, trace, made, converged, counts = _run(
        (family, kind == "hard", bool(bias_corrected), steps), key, given.x, given.weights, count, *limits
    )
    components = family(found.directions, found.concentrations)
    mixture = MixtureSameFamily(Categorical(probs=found.weights), components)
    return MixtureFit(mixture, components, trace, made, converged, counts, found.concentrations >= limits[1])


@partial(jax.jit, static_argnums=(0, 4))
def _run(
    options: tuple[type, bool, bool, int],
    key: PRNGKey,
    x: Array,
    weights: Array,
    count: int,
    tolerance: Array,
    cap: Array,
) -> Any:
    family, hard, bias_corrected, num_steps = options
    weights = weights / jnp.sum(weights)
    assign = partial(_assign, family, hard, x, weights)
    improve = partial(_improve, family, bias_corrected, x, weights, cap)

    def go_on(carry):
        step, _, _, _, converged = carry
        return (step < num_steps) & ~converged

    def turn(carry):
        step, components, assigned, trace, _ = carry
        changed = improve(components, assigned)
        after = assign(changed)
        change = jnp.abs(after.log_likelihood - assigned.log_likelihood)
        converged = change <= tolerance * (1 + jnp.abs(after.log_likelihood))
        return step + 1, changed, after, trace.at[step + 1].set(after.log_likelihood), converged

    start = _start(key, x, weights, count, cap)
    assigned = assign(start)
    trace = jnp.full((num_steps + 1,), jnp.nan, x.dtype).at[0].set(assigned.log_likelihood)
    first = (jnp.zeros((), jnp.int32), start, assigned, trace, jnp.zeros((), bool))
    step, components, assigned, trace, converged = jax.lax.while_loop(go_on, turn, first)
    counts = x.shape[0] * jnp.sum(weights[:, None] * assigned.shares, axis=0)
    return components, trace, step, converged, counts


def _products(x: Array, directions: Array) -> Array:
    """The cosines [n, k]."""
    return jnp.matmul(x, directions.T, precision="highest")


def _start(key: PRNGKey, x: Array, weights: Array, count: int, cap: Array) -> Components:
    """Seeds of greedy k-means++, spherical k-means from them, and a concentration for each of its clusters."""
    num_trials = 2 + int(math.log(count))
    levels = jax.random.uniform(fast_key(key), (count, num_trials), x.dtype)

    def seed(index, carry):
        seeds, distances = carry
        masses = weights * distances
        sums = jnp.cumsum(masses)
        positions = jnp.sum(sums[:, None] <= sums[-1] * levels[index][None], axis=0)
        # A rounded position must not fall on a mass of 0 at the end.
        trials = x[jnp.minimum(positions, x.shape[0] - 1 - jnp.argmax((masses > 0)[::-1]))]
        nearer = jnp.minimum(distances[:, None], jnp.maximum(1 - _products(x, trials), 0))
        best = jnp.argmin(jnp.matmul(weights, nearer, precision="highest"))
        return seeds.at[index].set(trials[best]), nearer[:, best]

    seeds = jnp.zeros((count, x.shape[1]), x.dtype)
    seeds, _ = jax.lax.fori_loop(0, count, seed, (seeds, jnp.ones(x.shape[:1], x.dtype)))

    def go_on(carry):
        step, _, _, changed = carry
        return (step < MAX_START_STEPS) & changed

    def move(carry):
        step, directions, nearest, _ = carry
        sums, now = gather(directions)
        return step + 1, unit_or(sums, directions), now, jnp.any(now != nearest)

    def gather(directions):
        nearest = jnp.argmax(_products(x, directions), axis=1)
        shares = weights[:, None] * jax.nn.one_hot(nearest, count, dtype=x.dtype)
        return jnp.matmul(shares.T, x, precision="highest"), nearest

    first = (jnp.zeros((), jnp.int32), seeds, jnp.full(x.shape[:1], -1, jnp.argmax(seeds).dtype), jnp.ones((), bool))
    _, directions, _, _ = jax.lax.while_loop(go_on, move, first)
    sums, nearest = gather(directions)
    lengths = jnp.sum(sums * directions, axis=1)
    masses = jnp.matmul(weights, jax.nn.one_hot(nearest, count, dtype=x.dtype), precision="highest")
    # As if each component had one more point, of the mean length of all: none starts with a single point's.
    shared, extra = jnp.sum(lengths), 1 / x.shape[0]
    length = jnp.clip((lengths + shared * extra) / (masses + extra), 0, 1)
    weights_of = (masses + extra) / (1 + count * extra)
    return Components(weights_of, directions, jnp.minimum(solve(x.shape[1], length, 1 - length), cap))


def _assign(family: type, hard: bool, x: Array, weights: Array, components: Components) -> Assigned:
    """The E step."""
    cosines = _products(x, components.directions)
    rules = power_spherical if family is PowerSpherical else von_mises_fisher
    kappa = jnp.broadcast_to(components.concentrations[None], cosines.shape)
    density = rules.relative_log_prob(x.shape[1], kappa, cosines, 1 - cosines)
    logits = jnp.log(components.weights)[None] + density
    if hard:
        shares = jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1], dtype=x.dtype)
        values = jnp.max(logits, axis=1)
    else:
        values = jax.nn.logsumexp(logits, axis=1)
        shares = jnp.exp(logits - values[:, None])
    return Assigned(shares, cosines, jnp.sum(weights * values))


def _improve(
    family: type, bias_corrected: bool, x: Array, weights: Array, cap: Array, old: Components, assigned: Assigned
) -> Components:
    """The M step."""
    masses = weights[:, None] * assigned.shares
    totals = jnp.sum(masses, axis=0)
    some = totals > 0
    shares = masses / jnp.where(some, totals, 1)[None]
    step = _power_step if family is PowerSpherical else partial(_von_mises_fisher_step, bias_corrected)
    directions, concentrations = step(x, shares, assigned.cosines, old.directions)
    kept = jnp.where(some, jnp.minimum(concentrations, cap), old.concentrations)
    return Components(totals / jnp.sum(totals), directions, kept)


def _von_mises_fisher_step(bias_corrected, x, shares, cosines, directions):
    """The maximum in directions and concentrations."""
    del cosines
    sums = jnp.matmul(shares.T, x, precision="highest")
    length = jnp.minimum(jnp.sqrt(jnp.sum(sums * sums, axis=1)), 1)
    complement = 1 - length
    if bias_corrected:
        square = jnp.sum(shares * shares, axis=0)
        length, complement = unbiased(length, complement, 1 / jnp.where(square > 0, square, 1))
    return unit_or(sums, directions), solve(x.shape[1], length, complement)


def _power_step(x, shares, cosines, directions):
    """The maximum in the concentrations, then a Newton step for the directions."""
    halves = 0.5 * (1 + cosines)
    logs = jnp.log(jnp.where(halves > 0, halves, 1))
    mean_log = jnp.sum(weighted(shares, jnp.where(halves > 0, logs, -jnp.inf)), axis=0)
    pulls, across = newton_parts(x.shape[1], shares.T, cosines.T)
    moved = jnp.matmul(pulls, x, precision="highest") + across[:, None] * directions
    return unit_or(moved, directions), power_spherical.solve(x.shape[1], mean_log)
