r"""`tuned_inverse_temperatures`: temperatures at which all exchanges are rejected equally often.

The rejection rate of an exchange between close inverse temperatures is the increase of the communication barrier
$\Lambda(\beta)$, so that $\hat\Lambda(\beta_r)$ is the sum of the rates measured between 0 and $\beta_r$. Temperatures
with equal rates make the most round trips; they are $\hat\Lambda^{-1}(k \Lambda / (R - 1))$, with a monotone cubic
between the measured points. Syed, Bouchard-Cote, Deligiannidis, Doucet (2022), section 5.1 and algorithm 2;
interpolation: Fritsch, Butland (1984).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf.core import is_concrete
from probinf.core._arguments import whole_number

# Below it a rate counts as this much: where nothing is ever rejected temperatures still keep apart.
SMALLEST_RATE = 1e-3


def tuned_inverse_temperatures(
    inverse_temperatures: Any, rejection_rates: Any, num_replicas: int | None = None
) -> Float[Array, " n"]:
    """Inverse temperatures whose exchanges are rejected equally often, from rates measured at others.

    Once is not enough where some rates are near 1, which says little of the barrier there: measure and tune in turn,
    over twice as many steps each time.

    Args:
        inverse_temperatures: [R], descending; first and last are kept.
        rejection_rates: [R - 1] in [0, 1], coldest pair first: one minus means of `TemperingInfo.swap_rates`. NaN
            counts as 1.
        num_replicas: how many to return, at least 2; None for R. About twice the sum of the rates is best.

    Returns:
        [num_replicas], descending. Works under `jit`.

    Raises:
        ValueError: shapes do not fit, or concrete rates lie outside [0, 1].
    """
    betas, rates = (jnp.asarray(a, _floating(a)) for a in (inverse_temperatures, rejection_rates))
    if betas.ndim != 1 or betas.shape[0] < 2 or rates.shape != (betas.shape[0] - 1,):
        raise ValueError(
            f"`inverse_temperatures` has shape {betas.shape} and `rejection_rates` {rates.shape}: pass [R] and "
            "[R - 1], one rate for each pair of neighbours"
        )
    if is_concrete(rates) and not np.all(np.isnan(rates) | ((np.asarray(rates) >= 0) & (np.asarray(rates) <= 1))):
        raise ValueError(
            f"`rejection_rates` must lie in [0, 1], but are {np.asarray(rates)}: pass one minus swap rates"
        )
    count = betas.shape[0] if num_replicas is None else whole_number("num_replicas", num_replicas, 2)
    rates = jnp.maximum(jnp.where(jnp.isnan(rates), 1, rates.astype(betas.dtype)), SMALLEST_RATE)
    barrier = jnp.append(jnp.zeros(1, betas.dtype), jnp.cumsum(rates))
    inner = _monotone_cubic(barrier, betas, jnp.linspace(0, 1, count, dtype=betas.dtype)[1:-1] * barrier[-1])
    return jnp.concatenate([betas[:1], inner, betas[-1:]])


def _monotone_cubic(x: Float[Array, " n"], y: Float[Array, " n"], at: Float[Array, " m"]) -> Float[Array, " m"]:
    """The piecewise cubic through points of rising x and falling y that falls everywhere."""
    width = jnp.diff(x)
    secant = jnp.diff(y) / width
    # The weighted harmonic mean of Fritsch and Butland keeps slopes below three times either secant.
    left, right = width[:-1] + 2 * width[1:], 2 * width[:-1] + width[1:]
    inner = (left + right) / (left / secant[1:] + right / secant[:-1])
    slope = jnp.concatenate([secant[:1], inner, secant[-1:]])
    i = jnp.clip(jnp.searchsorted(x, at, side="right") - 1, 0, x.shape[0] - 2)
    t = (at - x[i]) / width[i]
    start, end = y[i] + t * t * (3 - 2 * t) * (y[i + 1] - y[i]), t * (1 - t) * width[i]
    return start + end * ((1 - t) * slope[i] - t * slope[i + 1])


def _floating(values: Any) -> Any:
    """The dtype to read numbers in: their own where they are floating arrays of JAX."""
    floating = isinstance(values, Array) and jnp.issubdtype(values.dtype, jnp.floating)
    return values.dtype if floating else jnp.result_type(float)
