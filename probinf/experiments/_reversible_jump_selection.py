r"""Which predictors a regression has: the posterior over all subsets, exact because every one of them is enumerated.

$y \mid S \sim N(\alpha + X_S \beta, \sigma^2 I)$ with $p(\alpha, \sigma^2) \propto \sigma^{-2}$ and Zellner's
$\beta \sim N(0, g \sigma^2 (X_S^T X_S)^{-1})$, $g = n$, has $p(y \mid S) \propto (1 + g)^{(n - 1 - |S|) / 2}
(1 + g (1 - R_S^2))^{-(n - 1) / 2}$ (Liang, Paulo, Molina, Clyde, Berger 2008).
"""

import itertools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from probinf import samplers
from probinf.core import Target
from probinf.experiments._data import load
from probinf.samplers import Subsets, TransDimensional


class Selection(eqx.Module):
    """Log marginal likelihood of a set of predictors, over that of none.

    Attributes:
        correlations: [p + 1, p + 1] of the predictors and, last, the response.
        num_data: [] how many data.
    """

    correlations: Float[Array, "q q"]
    num_data: Float[Array, ""]

    def __call__(self, position: TransDimensional) -> Float[Array, ""]:
        inside = jnp.append(position.model, True)
        # Eliminating the predictors one after the other leaves what they do not explain in the last corner.
        matrix = jnp.where(inside[:, None] & inside[None, :], self.correlations, jnp.eye(inside.size))

        def eliminate(i: Array, matrix: Array) -> Array:
            below = jnp.where(jnp.arange(inside.size) > i, matrix[:, i], 0)
            return matrix - below[:, None] * (matrix[i] / matrix[i, i])[None, :]

        unexplained = jax.lax.fori_loop(0, inside.size - 1, eliminate, matrix)[-1, -1]
        n, g = self.num_data, self.num_data
        size = jnp.sum(position.model).astype(n.dtype)
        return 0.5 * ((n - 1 - size) * jnp.log1p(g) - (n - 1) * jnp.log1p(g * unexplained))


def log_prior_of_set(position: TransDimensional) -> Float[Array, ""]:
    """All sizes are alike, and all sets of a size (Scott and Berger 2010)."""
    p, size = float(position.model.size), jnp.sum(position.model).astype(jnp.result_type(float))
    return gammaln(size + 1) + gammaln(p - size + 1) - gammaln(p + 1) - jnp.log(p + 1)


class Regression(NamedTuple):
    """Predictors [n, p] and response [n]; their names."""

    names: tuple[str, ...]
    design: np.ndarray
    response: np.ndarray


def diabetes() -> Regression:
    """442 patients, ten predictors."""
    data = load("diabetes")
    return Regression(data.columns[:-1], data.values[:, :-1], data.values[:, -1])


def selection_target(data: Regression) -> Target:
    """The posterior over subsets, coefficients and noise integrated out; draws are the sets."""
    columns = np.column_stack([data.design, data.response])
    dtype = jnp.zeros(()).dtype
    correlations = jnp.asarray(np.corrcoef(columns, rowvar=False), dtype)
    likelihood = Selection(correlations, jnp.asarray(len(data.response), dtype))
    return Target(likelihood, log_prior_of_set, constrain=model_of)


def model_of(position: TransDimensional) -> Array:
    """The model without its parameters."""
    return position.model


def selection_kernel(num_predictors: int) -> Any:
    """A predictor comes or goes."""
    return samplers.birth_death(None, Subsets(num_predictors))


def enumerate_sets(data: Regression) -> tuple[np.ndarray, np.ndarray]:
    """All subsets, [2^p, p], and their exact posterior probabilities; by least squares in double precision."""
    count, p = data.design.shape
    centred = data.design - data.design.mean(axis=0)
    response = data.response - data.response.mean()
    sets = np.array(list(itertools.product([False, True], repeat=p)))
    logs = np.empty(len(sets))
    for i, inside in enumerate(sets):
        fit = np.linalg.lstsq(centred[:, inside], response, rcond=None)[0]
        unexplained = np.sum((response - centred[:, inside] @ fit) ** 2) / np.sum(response**2)
        size = int(inside.sum())
        logs[i] = 0.5 * ((count - 1 - size) * np.log1p(count) - (count - 1) * np.log1p(count * unexplained))
        logs[i] -= math.log(math.comb(p, size) * (p + 1))
    return sets, scipy.special.softmax(logs)
