r"""Maximum likelihood for the power spherical distribution.

The gradient of $\sum_i w_i \log(1 + \mu \cdot x_i)$ is $g = \sum_i w_i x_i / (1 + t_i)$, and its Hessian across
$\mu$ is on average $-h$, $h = \sum_i w_i (1 - t_i) / (1 + t_i) / (p - 1)$, so that Newton's step on the sphere goes to
the direction of $g + h \mu$. The concentration then solves $E \log(1 + t) = \sum_i w_i \log(1 + t_i)$, an equation in
one number.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf.distributions._power_spherical_normaliser import solve
from probinf.distributions._von_mises_fisher_fit import mean_direction


@partial(jax.jit, static_argnums=2)
def estimate(
    x: Float[Array, "*batch n p"], weights: Float[Array, "*batch n"], num_steps: int
) -> tuple[Float[Array, "*batch p"], Float[Array, "*batch"]]:
    """The mean direction and the concentration of highest likelihood, from the direction of the mean."""
    shares = weights / jnp.sum(weights, axis=-1, keepdims=True)
    start, _, complement = mean_direction(x, shares)

    def turn(_, direction):
        cosines = jnp.einsum("...np,...p->...n", x, direction, precision="highest")
        pulls, across = newton_parts(x.shape[-1], shares, cosines)
        moved = jnp.einsum("...n,...np->...p", pulls, x, precision="highest") + across[..., None] * direction
        return unit_or(moved, direction)

    direction = jax.lax.fori_loop(0, num_steps, turn, start)
    deficits = 0.5 * jnp.sum((x - direction[..., None, :]) ** 2, axis=-1)
    mean_log = jnp.sum(weighted(shares, jnp.log1p(jnp.maximum(-0.5 * deficits, -1))), axis=-1)
    return direction, jnp.where(complement == 0, jnp.inf, solve(x.shape[-1], mean_log))


def newton_parts(
    dimension: int, shares: Float[Array, "... n"], cosines: Float[Array, "... n"]
) -> tuple[Float[Array, "... n"], Float[Array, "..."]]:
    """The factors of the points in g, and h, of the module's docstring."""
    above = 1 + cosines
    # A point opposite to the direction pulls without bound; its factor is 0, as its density.
    reciprocal = jnp.where(above > 0, 1 / jnp.where(above > 0, above, 1), 0)
    pulls = shares * reciprocal
    return pulls, jnp.sum(pulls * (1 - cosines), axis=-1) / (dimension - 1)


def unit_or(vectors: Array, otherwise: Array) -> Array:
    """The vectors divided by their norms, `otherwise` where that is 0."""
    norm = jnp.sqrt(jnp.sum(vectors * vectors, axis=-1, keepdims=True))
    return jnp.where(norm == 0, otherwise, vectors / jnp.where(norm == 0, 1, norm))


def weighted(shares: Array, values: Array) -> Array:
    """The products, 0 where the share is 0 though the value be infinite."""
    return jnp.where(shares == 0, 0, shares * jnp.where(shares == 0, 0, values))
