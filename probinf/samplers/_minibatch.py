r"""`minibatch_target`: a target whose likelihood is a sum over rows of data, and its gradient estimated from a few.

With $\ell_i$ the log likelihood of row i of N and a batch B of n rows,

$$\hat g(x) = \nabla \log p(x) + \frac Nn \sum_{i \in B} \nabla\ell_i(x), \quad\text{or}\quad
\nabla \log p(x) + \sum_i \nabla\ell_i(c) + \frac Nn \sum_{i \in B} (\nabla\ell_i(x) - \nabla\ell_i(c))$$

with control variates at a centre c (Baker, Fearnhead, Fox, Nemeth 2019). Row j of the batch is drawn uniformly from the
j-th of n equal stretches of the data, so every row is as likely, the variance is at most that of n draws with
replacement, whatever the order of the rows, and a batch of N rows is all of them.
"""

import itertools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from probinf.core import Target, choose
from probinf.core._arguments import whole_number
from probinf.core._fast_key import fast_key
from probinf.core._target import raised
from probinf.core._types import Position, PRNGKey


@runtime_checkable
class MinibatchLikelihood(Protocol):
    """A log likelihood whose gradient can be estimated.

    Law: the mean of `gradient_estimate(key, x)` over keys is the gradient of the call at x.
    """

    def __call__(self, position: Position) -> Float[Array, ""]:
        """The log likelihood of all data."""
        ...

    def gradient_estimate(self, key: PRNGKey, position: Position) -> Position:
        """A pytree like `position`."""
        ...


class StratifiedRows(eqx.Module):
    """One row of each of `batch_size` equal stretches of `num_rows` rows: a `Choice` of int32 [batch_size].

    Law: entries are independent, and entry j is `(j num_rows + v) // batch_size` with v uniform on 0 .. num_rows - 1.
    """

    num_rows: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def sample(self, key: PRNGKey) -> Int[Array, " batch"]:
        """One batch; no key is looked at where it is all rows."""
        if self.batch_size == self.num_rows:
            return jnp.arange(self.num_rows, dtype=jnp.int32)
        start, rest = (jnp.asarray(a, jnp.int32) for a in self._starts())
        v = jax.random.randint(fast_key(key), (self.batch_size,), 0, self.num_rows, jnp.int32)
        return start + (rest + v) // self.batch_size

    def law(self) -> tuple[Int[Array, "outcomes batch"], Float[Array, " outcomes"]]:
        """All batches."""
        start, rest = self._starts()
        v = np.arange(self.num_rows)
        counted = [
            np.unique(a + (b + v) // self.batch_size, return_counts=True) for a, b in zip(start, rest, strict=True)
        ]
        batches = list(itertools.product(*(rows for rows, _ in counted)))
        chances = [np.prod(c) for c in itertools.product(*(counts / self.num_rows for _, counts in counted))]
        return jnp.asarray(np.array(batches), jnp.int32), jnp.asarray(np.array(chances), jnp.result_type(float))

    def _starts(self) -> tuple[np.ndarray, np.ndarray]:
        """Quotient and remainder of `j num_rows` by `batch_size`, apart, so that nothing overflows 32 bits."""
        products = np.arange(self.batch_size, dtype=np.int64) * self.num_rows
        return products // self.batch_size, products % self.batch_size


class RowLikelihood(eqx.Module):
    """The likelihood made by `minibatch_target`.

    Attributes:
        log_likelihood: (position, row) -> scalar.
        data: pytree of arrays, rows on the leading axis.
        batch_size: rows a gradient.
        centre: position of the control variates, or None.
        centre_gradient: the gradient of all data there, or None.
    """

    log_likelihood: Callable[[Any, Any], Array]
    data: PyTree
    batch_size: int = eqx.field(static=True)
    centre: PyTree = None
    centre_gradient: PyTree = None

    @property
    def num_rows(self) -> int:
        """N."""
        return jax.tree.leaves(self.data)[0].shape[0]

    def __call__(self, position: Position) -> Float[Array, ""]:
        """The sum over all rows."""
        return self._total(position, self.data)

    def gradient_estimate(self, key: PRNGKey, position: Position) -> Position:
        """The gradient from one batch, of which the mean is that of all rows."""
        if self.batch_size == self.num_rows:
            return jax.grad(self._total)(position, self.data)
        rows = choose(key, StratifiedRows(self.num_rows, self.batch_size))
        batch = jax.tree.map(lambda a: a[rows], self.data)

        def scaled(position: Position) -> Array:
            total = self._total(position, batch)
            return total * jnp.asarray(self.num_rows / self.batch_size, total.dtype)

        gradient = jax.grad(scaled)(position)
        if self.centre is None:
            return gradient
        parts = (gradient, jax.grad(scaled)(self.centre), self.centre_gradient)
        return jax.tree.map(lambda here, there, whole: whole + (here - there), *parts)

    def _total(self, position: Position, data: PyTree) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(self.log_likelihood, (None, 0))(position, data))


def minibatch_target(
    log_likelihood: Callable[[Any, Any], Array],
    data: PyTree,
    batch_size: int,
    *,
    log_prior: Callable[[Any], Array] | None = None,
    sample_prior: Callable[[Any], Any] | None = None,
    constrain: Callable[[Any], Any] | None = None,
    centre: Any = None,
) -> Target:
    """A `Target` whose gradient `sgld` and its like estimate from `batch_size` rows.

    To every other kernel it is the target of all data.

    Args:
        log_likelihood: (position, row) -> scalar, the log density of one row.
        data: pytree of arrays with a leading axis of N rows, such as `(features, labels)`. New data of the same shape
            does not recompile.
        batch_size: rows a gradient, 1 .. N; N takes all of them, without any randomness.
        log_prior: as of `Target`.
        sample_prior: as of `Target`.
        constrain: as of `Target`.
        centre: a position near the mode, for control variates: the gradient's noise then shrinks with the distance
            from it, at twice the cost of a batch. None for none.

    Returns:
        The target.

    Raises:
        ValueError: the leaves of `data` are not of one length, or `batch_size` is not between 1 and it.
        TypeError: `log_likelihood` is no function, or `batch_size` no integer.
    """
    if not callable(log_likelihood):
        raise TypeError(f"`log_likelihood` is {log_likelihood!r}; needed a function of a position and a row of `data`")
    data = jax.tree.map(jnp.asarray, data)
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths:
        shapes = [leaf.shape for leaf in jax.tree.leaves(data)]
        raise ValueError(f"`data` has leaves of shapes {shapes}; needed arrays with one leading axis of rows")
    num_rows = lengths.pop()[0]
    batch_size = whole_number("batch_size", batch_size, 1)
    if batch_size > num_rows:
        raise ValueError(f"`batch_size` is {batch_size}, but `data` has {num_rows} rows: take at most all of them")
    likelihood = RowLikelihood(log_likelihood, data, batch_size)
    if centre is not None:
        centre = jax.tree.map(jnp.asarray, centre)
        likelihood = RowLikelihood(log_likelihood, data, batch_size, centre, jax.grad(likelihood)(centre))
    given = {"log_prior": log_prior, "sample_prior": sample_prior, "constrain": constrain}
    return Target(likelihood, **{name: value for name, value in given.items() if value is not None})


def gradient_estimate(key: PRNGKey, target: Target, position: Position) -> Position:
    """An unbiased estimate of the gradient of the target's log density, at its inverse temperature.

    Args:
        key: PRNG key, consumed.
        target: of `minibatch_target`, or any other: then it is the gradient itself.
        position: pytree of floating-point arrays.

    Returns:
        A pytree like `position`.
    """
    likelihood = target.log_likelihood
    if isinstance(likelihood, MinibatchLikelihood):
        estimate = likelihood.gradient_estimate(key, position)
    else:
        estimate = jax.grad(likelihood)(position)
    beta = target.inverse_temperature
    return jax.tree.map(
        lambda prior, rows: prior + raised(beta.astype(rows.dtype), rows),
        jax.grad(target.log_prior)(position),
        estimate,
    )
