r"""`LinearGaussian`: the state-space model whose filter is exact.

$x_0 \sim N(m_0, P_0)$, $x_t = F_t x_{t-1} + b_t + N(0, Q_t)$ for $t \ge 1$, and
$y_t = H_t x_t + c_t + N(0, R_t)$ for $t \ge 0$. Särkkä and Svensson (2023), "Bayesian Filtering and Smoothing",
chapter 6.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probinf.core import is_concrete
from probinf.models._state_space import StateSpaceModel
from probinf.models._types import Numbers


class LinearGaussian(eqx.Module):
    r"""A linear Gaussian state-space model with d states and p observations a step.

    Every array but the initial ones may have a leading time axis of length L, at least the number of
    observations: entry t is the one that leads to $x_t$ or $y_t$ (so entry 0 of `transition_*` is not used).
    Scalars stand for 1-vectors and 1 x 1 matrices. Covariances may be singular (known states, noise-free
    components); only the covariance of an observation given the past must not be.

    Attributes:
        initial_mean: m_0, [d].
        initial_cov: P_0, [d, d].
        transition_matrix: F, [d, d] or [L, d, d].
        transition_cov: Q, likewise.
        observation_matrix: H, [p, d] or [L, p, d].
        observation_cov: R, [p, p] or [L, p, p].
        transition_offset: b, [d] or [L, d]; zero if not given.
        observation_offset: c, [p] or [L, p]; zero if not given.

    Raises:
        ValueError: shapes do not fit together; or, where values are known (outside `jit`), an entry is not
            finite, or a covariance is not symmetric or has a negative eigenvalue.
    """

    initial_mean: Float[Array, " d"]
    initial_cov: Float[Array, "d d"]
    transition_matrix: Float[Array, "*time d d"]
    transition_cov: Float[Array, "*time d d"]
    observation_matrix: Float[Array, "*time p d"]
    observation_cov: Float[Array, "*time p p"]
    transition_offset: Float[Array, "*time d"]
    observation_offset: Float[Array, "*time p"]

    def __init__(
        self,
        initial_mean: Numbers,
        initial_cov: Numbers,
        transition_matrix: Numbers,
        transition_cov: Numbers,
        observation_matrix: Numbers,
        observation_cov: Numbers,
        transition_offset: Numbers = 0.0,
        observation_offset: Numbers = 0.0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        arrays = {name: jnp.asarray(value) for name, value in given.items()}
        dtype = jnp.result_type(float, *(leaf.dtype for leaf in arrays.values() if _is_strong(leaf)))
        arrays = {name: leaf.astype(dtype) for name, leaf in arrays.items()}
        arrays = {name: leaf.reshape((1,) * _RANK[name]) if leaf.ndim == 0 else leaf for name, leaf in arrays.items()}
        num_states = arrays["initial_mean"].shape[-1]
        num_observed = arrays["observation_cov"].shape[-1]
        for name, size in (("transition_offset", num_states), ("observation_offset", num_observed)):
            if jnp.ndim(given[name]) == 0:
                arrays[name] = jnp.broadcast_to(arrays[name], (size,))
        _check_shapes(arrays, num_states, num_observed)
        _check_values(arrays)
        for name, leaf in arrays.items():
            setattr(self, name, leaf)

    @property
    def num_states(self) -> int:
        """The dimension d of the state."""
        return self.initial_mean.shape[0]

    @property
    def num_observed(self) -> int:
        """The dimension p of an observation."""
        return self.observation_cov.shape[-1]

    @property
    def horizon(self) -> int | None:
        """The number of time steps L that a time-varying model is given for; None if it never changes."""
        lengths = {leaf.shape[0] for name, leaf in vars(self).items() if leaf.ndim > _RANK[name]}
        return lengths.pop() if lengths else None

    def at(self, name: str, t: Array | int) -> Array:
        """The array `name` at time t; the last one for t beyond the horizon."""
        leaf = getattr(self, name)
        if leaf.ndim == _RANK[name]:
            return leaf
        return jax.lax.dynamic_index_in_dim(leaf, jnp.asarray(t), keepdims=False)

    def state_space(self) -> StateSpaceModel:
        """The same model for particle methods: states of shape [d], observations of shape [p].

        Where a covariance is singular, states can be drawn but `log_transition` is not finite: there is no density.
        """
        return StateSpaceModel(
            _Initial(self.initial_mean, _root(self.initial_cov)),
            _Affine(self, _root(self.transition_cov), "transition"),
            _Affine(self, _root(self.observation_cov), "observation"),
        )


_RANK = {
    "initial_mean": 1,
    "initial_cov": 2,
    "transition_matrix": 2,
    "transition_cov": 2,
    "observation_matrix": 2,
    "observation_cov": 2,
    "transition_offset": 1,
    "observation_offset": 1,
}


class _Initial(eqx.Module):
    mean: Float[Array, " d"]
    root: Float[Array, "d d"]

    def __call__(self) -> dist.Distribution:
        return _gaussian(self.mean, self.root)


class _Affine(eqx.Module):
    model: LinearGaussian
    root: Float[Array, "*time k k"]
    part: str = eqx.field(static=True)

    def __call__(self, t: Array, x: Float[Array, " d"]) -> dist.Distribution:
        matrix, offset = self.model.at(f"{self.part}_matrix", t), self.model.at(f"{self.part}_offset", t)
        root = self.root
        if root.ndim == 3:
            root = jax.lax.dynamic_index_in_dim(root, jnp.asarray(t), keepdims=False)
        return _gaussian(_apply(matrix, x) + offset, root)


def _apply(matrix: Float[Array, "k d"], x: Float[Array, " d"]) -> Float[Array, " k"]:
    # A product with a 1 x 1 matrix stays elementwise over the population, where XLA can fuse it.
    return matrix[0] * x if matrix.shape == (1, 1) else matrix @ x


def _gaussian(mean: Float[Array, " k"], root: Float[Array, "k k"]) -> dist.Distribution:
    if mean.shape[0] == 1:
        return dist.Normal(mean, root[0], validate_args=False).to_event(1)
    return dist.MultivariateNormal(mean, scale_tril=root, validate_args=False)


def _root(cov: Float[Array, "*time k k"]) -> Float[Array, "*time k k"]:
    """The lower triangular root; of a singular covariance only outside `jit`, where it can be told."""
    root = jnp.linalg.cholesky(cov)
    if not is_concrete(root) or bool(jnp.all(jnp.isfinite(root))):
        return root
    values, vectors = np.linalg.eigh(np.asarray(cov))
    any_root = vectors * np.sqrt(np.maximum(values, 0))[..., None, :]
    triangular = np.swapaxes(np.linalg.qr(np.swapaxes(any_root, -1, -2))[1], -1, -2)
    signs = np.where(np.diagonal(triangular, axis1=-2, axis2=-1) < 0, -1, 1)
    return jnp.asarray(triangular * signs[..., None, :], cov.dtype)


def _is_strong(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) and not leaf.weak_type


def _check_shapes(arrays: dict[str, Array], d: int, p: int) -> None:
    trailing = {
        "initial_mean": (d,),
        "initial_cov": (d, d),
        "transition_matrix": (d, d),
        "transition_cov": (d, d),
        "observation_matrix": (p, d),
        "observation_cov": (p, p),
        "transition_offset": (d,),
        "observation_offset": (p,),
    }
    lengths = {}
    for name, shape in trailing.items():
        leaf = arrays[name]
        extra = leaf.ndim - len(shape)
        may_vary = not name.startswith("initial")
        if leaf.shape[extra:] != shape or extra not in ((0, 1) if may_vary else (0,)):
            raise ValueError(
                f"`{name}` has shape {leaf.shape}, but with {d} states (from `initial_mean`) and {p} observed "
                f"components (from `observation_cov`) it must be {shape}{' or (L, ...)' if may_vary else ''}"
            )
        if extra:
            lengths[name] = leaf.shape[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(f"time-varying arrays differ in length, {lengths}: give all of them one entry a time step")


def _check_values(arrays: dict[str, Any]) -> None:
    for name, leaf in arrays.items():
        if not is_concrete(leaf):
            continue
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise ValueError(f"`{name}` holds NaN or inf: all parameters must be finite")
        if not name.endswith("_cov"):
            continue
        cov = np.asarray(leaf, np.float64)
        slack = 100 * np.finfo(leaf.dtype).eps * np.abs(cov).max(initial=0)
        if np.abs(cov - np.swapaxes(cov, -1, -2)).max(initial=0) > slack:
            raise ValueError(f"`{name}` is not symmetric: pass (cov + cov.T) / 2")
        smallest = np.linalg.eigvalsh(cov).min(initial=0)
        if smallest < -slack:
            raise ValueError(f"`{name}` has the eigenvalue {smallest:.3g}: a covariance has none below zero")
