r"""`LowRankFactor`: diagonal scales and a few directions in which the target is longer or shorter than they say.

$$L = D (I + U (S - I) U^\top), \qquad LL^\top = D (I + U (S^2 - I) U^\top) D,$$

with D diagonal, U of orthonormal columns and S diagonal. A product costs O(d k), for k columns, where that with a full
matrix costs O(d^2), and it is learned from a few dozen points.

`low_rank_estimate` finds it from draws x and the gradients g of the log density there. A Gaussian with covariance C has
cov(g) = C^-1, so $C = cov(g)^{-1} \# cov(x)$, where # is the geometric mean of matrices; that C minimises the Fisher
divergence to the draws. In each coordinate it is the ratio of standard deviations, which is D^2. In the coordinates
D^-1 x the mean is taken in the space of the leading singular vectors of both draws and gradients, and eigenvalues near
1 are left out, as noise. Seyboldt, Carlson, Carpenter (2026), "Preconditioning Hamiltonian Monte Carlo by minimizing
Fisher divergence".
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

CUTOFF = 2.0  # eigenvalues within this factor of 1 are taken for noise
RIDGE = 1e-5  # added to both covariances


class LowRankFactor(eqx.Module):
    """L.

    Attributes:
        scales: [d] D.
        directions: [d, k] U; a column whose stretch is 1 is of no account.
        stretches: [k] S.
    """

    scales: Array
    directions: Array
    stretches: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(d, d), of the matrix that it stands for."""
        return (self.scales.shape[0], self.scales.shape[0])

    @property
    def dtype(self) -> jnp.dtype:
        """Of its numbers."""
        return self.scales.dtype

    def astype(self, dtype: Any) -> "LowRankFactor":
        """The same in another dtype."""
        return jax.tree.map(lambda leaf: leaf.astype(dtype), self)

    def times(self, vector: Float[Array, " d"]) -> Float[Array, " d"]:
        """L v."""
        return self.scales * self._stretched(vector, self.stretches)

    def transposed_times(self, vector: Float[Array, " d"]) -> Float[Array, " d"]:
        """L' v."""
        return self._stretched(self.scales * vector, self.stretches)

    def solve(self, vector: Float[Array, " d"]) -> Float[Array, " d"]:
        """L^-1 v."""
        return self._stretched(vector / self.scales, 1 / self.stretches)

    def matrix(self) -> Float[Array, "d d"]:
        """LL'."""
        rows = jax.vmap(self.times)(jnp.eye(self.shape[0], dtype=self.dtype)).T
        return rows @ rows.T

    def _stretched(self, vector: Float[Array, " d"], stretches: Float[Array, " k"]) -> Float[Array, " d"]:
        # Sums of products, for the reasons that stand in `times` of `_factor`.
        along = jnp.sum(self.directions * vector[:, None], axis=0)
        return vector + jnp.sum(self.directions.T * (along * (stretches - 1))[:, None], axis=0)


def as_low_rank(diagonal: Float[Array, " d"], rank: int) -> LowRankFactor:
    """A diagonal factor with room for `rank` columns."""
    dtype = diagonal.dtype
    return LowRankFactor(diagonal, jnp.zeros((diagonal.shape[0], rank), dtype), jnp.ones(rank, dtype))


def low_rank_estimate(
    scales: Float[Array, " d"],
    positions: Float[Array, "n d"],
    gradients: Float[Array, "n d"],
    use: Bool[Array, " n"],
    rank: int,
) -> LowRankFactor:
    """The factor that suits draws and gradients.

    Args:
        scales: D.
        positions: draws.
        gradients: of the log density there.
        use: which rows count.
        rank: k, the most directions.
    """
    x, g = _centred(positions, use) / scales[None, :], _centred(gradients, use) * scales[None, :]
    basis, _ = jnp.linalg.qr(jnp.concatenate([_leading(x, rank), _leading(g, rank)], axis=1))
    mean, vectors = _geometric_mean(_covariance(g @ basis), _covariance(x @ basis))
    notable = jnp.abs(jnp.log(mean)) > jnp.log(jnp.asarray(CUTOFF, mean.dtype))
    chosen = jnp.argsort(-jnp.abs(jnp.log(mean)))[:rank]
    stretches = jnp.where(notable, jnp.sqrt(mean), 1)[chosen]
    return LowRankFactor(scales, basis @ vectors[:, chosen], stretches)


def _centred(rows: Float[Array, "n d"], use: Bool[Array, " n"]) -> Float[Array, "n d"]:
    """Less their mean, over the square root of their number less one; zeros where they do not count."""
    number = jnp.sum(use.astype(rows.dtype))
    mean = jnp.sum(jnp.where(use[:, None], rows, 0), axis=0) / jnp.maximum(number, 1)
    return jnp.where(use[:, None], rows - mean[None, :], 0) / jnp.sqrt(jnp.maximum(number - 1, 1))


def _leading(rows: Float[Array, "n d"], rank: int) -> Float[Array, "d k"]:
    """The leading right singular vectors, by the eigenvectors of the smaller [n, n] products."""
    _, vectors = jnp.linalg.eigh(rows @ rows.T)
    found = rows.T @ vectors[:, ::-1][:, :rank]
    norms = jnp.sqrt(jnp.sum(found * found, axis=0))
    return found / jnp.maximum(norms, jnp.finfo(rows.dtype).tiny)[None, :]


def _covariance(rows: Float[Array, "n k"]) -> Float[Array, "k k"]:
    return rows.T @ rows + RIDGE * jnp.eye(rows.shape[1], dtype=rows.dtype)


def _geometric_mean(
    precision: Float[Array, "k k"], covariance: Float[Array, "k k"]
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """Eigenvalues and eigenvectors of the S with S `precision` S = `covariance`."""
    root, inverse = _root_and_inverse(precision)
    middle, _ = _root_and_inverse(root @ covariance @ root)
    values, vectors = jnp.linalg.eigh(inverse @ middle @ inverse)
    return jnp.maximum(values, jnp.finfo(values.dtype).tiny), vectors


def _root_and_inverse(matrix: Float[Array, "k k"]) -> tuple[Float[Array, "k k"], Float[Array, "k k"]]:
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    roots = jnp.sqrt(jnp.maximum(values, RIDGE))
    return (vectors * roots[None, :]) @ vectors.T, (vectors / roots[None, :]) @ vectors.T
