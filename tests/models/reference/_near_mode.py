"""Starting points around the mode of a target.

The prior of the regressions is flat and their data are in raw units, so that a point of `initial_position` can have a
log density of -1e8. Warm-up tunes one step size for all chains, and can leave one that starts so far out behind.
"""

from typing import Any

import jax
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

from probinf.core import Target


def near_mode(key: Any, target: Target, start: Any, num_chains: int) -> Any:
    """Draws of the Laplace approximation at the mode that is found from `start`, one position."""
    flat, unravel = ravel_pytree(start)

    def loss(x: Any) -> Any:
        return -target.log_density(unravel(x))

    gradient, hessian = jax.jit(jax.value_and_grad(loss)), jax.jit(jax.hessian(loss))
    found = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(v, np.float64) for v in gradient(x)),
        np.asarray(flat, np.float64),
        jac=True,
        hess=lambda x: np.asarray(hessian(x), np.float64),
        method="trust-exact",
        options={"maxiter": 500},
    )
    # The curvature of a mode in a corner can be close to zero or negative: spreads over one unit are cut.
    curvature, axes = np.linalg.eigh(np.asarray(hessian(found.x)))
    spread = axes / np.sqrt(np.maximum(curvature, 1))
    white = jax.random.normal(key, (num_chains, flat.size), flat.dtype)
    return jax.vmap(unravel)(found.x + white @ spread.T)
