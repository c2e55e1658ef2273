r"""The microcanonical flow, which moves a point at constant speed in a direction u that turns towards higher density.

$$\dot x = L u, \qquad \dot u = \frac{(I - uu^\top)\, g}{d - 1}, \qquad g = L^\top \nabla\log\pi(x), \quad |u| = 1$$

leaves $\pi(x)$ times the uniform law of u invariant (Robnik, De Luca, Silverstein, Seljak 2023). It is split into
A: $x \mathrel{+}= \epsilon L u$, and B, the turn at a fixed x, which is solved exactly: with $a = g/|g|$,
$c = a^\top u$, $\delta = \epsilon|g|/(d-1)$,

$$u \leftarrow \frac{u + a(\sinh\delta + c(\cosh\delta - 1))}{\cosh\delta + c\sinh\delta}, \qquad
\Delta K = (d - 1)\log(\cosh\delta + c\sinh\delta),$$

written in $e^{-\delta}$ so that nothing overflows. On the sphere, the log-determinant of B is $-\Delta K$; that of A is
zero. So a trajectory from x to x' has the energy error $\Delta E = \sum\Delta K - \log\pi(x') + \log\pi(x)$.
Leapfrog is $B_{1/2} A_1 B_{1/2}$; the minimal-norm scheme (McLachlan 1995)
$B_\lambda A_{1/2} B_{1-2\lambda} A_{1/2} B_\lambda$ takes two gradients and larger steps. Both have order two.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from probinf.core._kernel import Point, evaluate
from probinf.core._target import Target
from probinf.samplers._factor import Factor, times
from probinf.samplers._hmc import flattened, force, unflattened

# Moves a step, and the share of a step by which u turns before the first of them; palindromic sequences follow.
_SCHEMES = {"leapfrog": (1, 0.5), "minimal norm": (2, 0.1931833275037836)}
INTEGRATORS = tuple(_SCHEMES)


class Flow(NamedTuple):
    """Where a trajectory is.

    Attributes:
        point: the evaluated position.
        u: [d] unit vector, the direction in the coordinates of the factor.
        pull: [d] the gradient there, in the same coordinates.
        kinetic: [] sum of the changes of kinetic energy so far; minus the log-determinant of the map.
    """

    point: Point
    u: Array
    pull: Array
    kinetic: Array


def check_sphere(what: str, dimension: int) -> None:
    """Raises `ValueError` at trace time for positions of one number, whose direction could not turn."""
    if dimension < 2:
        raise ValueError(
            f"{what} needs positions of at least 2 numbers, but these have {dimension}: use `hmc` or `nuts`, which do "
            "with one"
        )


def check_integrator(integrator: str) -> None:
    """Raises `ValueError` for a name that is none of `INTEGRATORS`."""
    if integrator not in INTEGRATORS:
        raise ValueError(f"`integrator` is {integrator!r}; needed one of {', '.join(map(repr, INTEGRATORS))}")


def norm(vector: Float[Array, " d"]) -> Float[Array, ""]:
    """The length of a vector, whose squares may overflow or vanish; its derivative at zero is zero."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vector)))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    scaled = vector / scale
    square = jnp.sum(scaled * scaled)
    # NaN must stay NaN, so it is zero and nothing else that is kept from the square root.
    return scale * jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def unit(vector: Float[Array, " d"], otherwise: Float[Array, " d"]) -> Float[Array, " d"]:
    """The vector over its length, or `otherwise` where that is zero."""
    length = norm(vector)
    zero = length == 0
    return jnp.where(zero, otherwise, vector / jnp.where(zero, 1, length))


def turn(
    u: Float[Array, " d"], pull: Float[Array, " d"], epsilon: Float[Array, ""]
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    r"""B: the direction after a time `epsilon` in a constant field, and $\Delta K$. A field of zero changes nothing."""
    a = unit(pull, jnp.zeros_like(pull))
    delta = epsilon * norm(pull) / (u.size - 1)
    z = jnp.exp(-delta)
    # 1 + c and 1 - c, the first without cancellation: where u points away from a it decides everything.
    toward = 0.5 * jnp.sum((u + a) ** 2)
    away = jnp.maximum(2 - toward, jnp.finfo(u.dtype).tiny)
    # A zero field leaves a zero vector a, to which the above does not apply, but then z is 1 and nothing turns.
    new = unit(2 * z * u + (1 - z) * (toward + away * z) * a, u)
    near = delta < 0.5
    # Of two equal forms, one is exact where the turn is short and the other where it is long.
    short = jnp.log1p(0.5 * away * jnp.expm1(-2 * jnp.where(near, delta, 0)))
    long = jnp.logaddexp(jnp.log(toward), jnp.log(away) - 2 * delta) - math.log(2)
    return new, (u.size - 1) * (delta + jnp.where(near, short, jnp.where(near, 0, long)))


def trajectory(
    target: Target,
    factor: Factor | None,
    epsilon: Float[Array, ""],
    num_steps: int | Int[Array, ""],
    integrator: str,
    start: Flow,
) -> Flow:
    """`num_steps` steps of size `epsilon` from `start`; the gradient is taken once a move, and compiled once."""
    moves, first = _SCHEMES[integrator]
    unravel = ravel_pytree(start.point.position)[1]
    count = num_steps * moves

    def move(i: Array, flow: Flow) -> Flow:
        x = flow.point.position + (epsilon / moves) * times(factor, flow.u)
        point = flattened(evaluate(target, unravel(x), gradient=True))
        pull = force(target, factor, point)
        # Turns at one point add up: the last of a step and the first of the next are one.
        between = jnp.where((i + 1) % moves == 0, 2 * first * epsilon, (1 - 2 * first) * epsilon)
        u, change = turn(flow.u, pull, jnp.where(i + 1 == count, first * epsilon, between))
        return Flow(point, u, pull, flow.kinetic + change)

    u, change = turn(start.u, start.pull, first * epsilon)
    begun = Flow(flattened(start.point), u, start.pull, start.kinetic + change)
    end = jax.lax.fori_loop(0 if isinstance(count, int) else jnp.zeros_like(count), count, move, begun)
    return Flow(unflattened(end.point, unravel), end.u, end.pull, end.kinetic)


def partly_refreshed(
    u: Float[Array, " d"], noise: Float[Array, " d"], epsilon: Float[Array, ""], length: Float[Array, ""]
) -> Float[Array, " d"]:
    r"""O: $u \leftarrow (u + \nu n) / |u + \nu n|$, $\nu^2 = (e^{2\epsilon/\ell} - 1)/d$, with $n \sim N(0, I)$.

    Keeps the uniform law. An infinite length $\ell$ changes nothing, and one of zero forgets all of u.
    """
    # Both terms times e^{-epsilon / length}, which is finite for every length.
    time = epsilon / length
    kept = jnp.exp(-time)
    added = jnp.sqrt(-jnp.expm1(-2 * time) / u.size)
    return unit(kept * u + added * noise, u)


def unit_normal(noise: Float[Array, " d"]) -> Float[Array, " d"]:
    """Uniform on the sphere for standard normal noise."""
    return unit(noise, jnp.full_like(noise, 1 / math.sqrt(noise.size)))
