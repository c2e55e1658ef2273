r"""What the records of `parallel_tempering` tell: the evidence, and how often machines went from end to end and back.

Evidence by stepping stones (Xie, Lewis, Fan, Kuo, Chen 2011), with $\ell$ the log likelihood,

$$\frac{Z(\beta_0)}{Z(\beta_{R-1})} = \prod_r E_{\beta_{r+1}} [e^{(\beta_r - \beta_{r+1}) \ell}] ,$$

and bounds by thermodynamic integration, $\log Z(1) / Z(0) = \int_0^1 E_\beta[\ell] d\beta$ (Gelman, Meng 1998):
$E_\beta[\ell]$ rises with $\beta$, so that left and right sums enclose the integral.
"""

import math
from typing import Any, NamedTuple

import numpy as np

NUM_BATCHES = 20


class TemperingEvidence(NamedTuple):
    """The evidence by stepping stones, and what to hold against it.

    Attributes:
        log_evidence: log Z(1) - log Z(last inverse temperature): the log evidence where the last one is 0 and the
            prior is normalised.
        standard_error: of it, by the jackknife over at least 20 stretches of the chains. It knows of
            autocorrelation within a stretch, and nothing of places that no machine has found.
        lower: thermodynamic integration with every interval at its hot end; its mean is below the truth.
        upper: the same at the cold end; its mean is above the truth.
    """

    log_evidence: float
    standard_error: float
    lower: float
    upper: float


def tempering_evidence(log_likelihood: Any, inverse_temperatures: Any) -> TemperingEvidence:
    r"""The evidence from the log likelihoods that `parallel_tempering` has recorded.

    Each of the R - 1 ratios is a plain mean at its hotter temperature. The log of a mean is biased by about minus half
    the square of the standard error; there is no bias of discretisation, however few the temperatures, but where
    neighbours hardly exchange the means are ruled by rare draws and the standard error is too small. Then estimate
    and bounds, which are wide there, disagree with other runs: use more replicas.

    Args:
        log_likelihood: [draws, R] or [chains, draws, R], coldest first: `draws.info["log_likelihood"]`. NaN
            counts as a likelihood of zero. At least 20 draws a chain, one after the other and without warm-up.
        inverse_temperatures: [R], descending: `kernel.inverse_temperatures`, the same for all draws.

    Returns:
        A `TemperingEvidence` of Python floats.

    Raises:
        ValueError: shapes do not fit, or there are fewer than 20 draws.
    """
    logs, betas = np.asarray(log_likelihood, np.float64), np.asarray(inverse_temperatures, np.float64)
    logs = logs[None] if logs.ndim == 2 else logs
    if betas.ndim != 1 or logs.ndim != 3 or logs.shape[2] != betas.size or betas.size < 2:
        raise ValueError(
            f"`log_likelihood` has shape {np.shape(log_likelihood)} and `inverse_temperatures` {betas.shape}: pass "
            "[draws, R] or [chains, draws, R], and [R]"
        )
    num_chains, num_draws = logs.shape[:2]
    if num_draws < NUM_BATCHES:
        raise ValueError(f"`log_likelihood` has {num_draws} draws a chain; needed at least {NUM_BATCHES}")
    logs = np.where(np.isnan(logs), -np.inf, logs)
    steps = betas[:-1] - betas[1:]
    powers = steps * logs[:, :, 1:]
    largest = powers.max(axis=(0, 1))
    largest = np.where(np.isfinite(largest), largest, 0)
    stretches = math.ceil(NUM_BATCHES / num_chains)
    length = num_draws // stretches
    ratios = np.exp(powers - largest)
    # Stretches of one length, from the end: what does not fit is the beginning, which is nearest to warm-up.
    batches = ratios[:, num_draws - length * stretches :].reshape(-1, length, betas.size - 1).mean(axis=1)
    count = batches.shape[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(np.sum(np.log(batches.mean(axis=0)) + largest))
        # Sums of all others, added up from both ends: a difference would cancel where one outweighs the rest.
        ahead = np.cumsum(np.concatenate([np.zeros_like(batches[:1]), batches[:-1]]), axis=0)
        behind = np.cumsum(np.concatenate([np.zeros_like(batches[:1]), batches[:0:-1]]), axis=0)[::-1]
        others = np.sum(np.log((ahead + behind) / (count - 1)), axis=1)
        error = math.sqrt((count - 1) / count * np.sum((others - others.mean()) ** 2))
        means = logs.mean(axis=(0, 1))
        lower, upper = float(np.sum(steps * means[1:])), float(np.sum(steps * means[:-1]))
    return TemperingEvidence(estimate, error, lower, upper)


def round_trips(machines: Any) -> np.ndarray:
    """How often a machine went from the coldest temperature to the hottest and back, all machines together.

    Args:
        machines: [..., draws, R], `draws.info["machines"]`, without thinning: a visit between draws is not seen.

    Returns:
        [...] integers: round trips of each chain. Divided by the number of draws they are the round trip rate, which
        compares ladders and kernels: all that the cold replica learns of far regions comes with them.

    Raises:
        ValueError: `machines` has fewer than two axes.
    """
    machines = np.asarray(machines)
    if machines.ndim < 2:
        raise ValueError(f"`machines` has shape {machines.shape}; needed [..., draws, R]")
    place = np.argsort(machines, axis=-1)  # [..., draws, machine], the temperature of each machine
    end = (place == 0).astype(int) - (place == machines.shape[-1] - 1)
    draws = np.arange(machines.shape[-2])[:, None]
    last = np.maximum.accumulate(np.where(end != 0, draws, -1), axis=-2)
    # The end that a machine has seen last; 0 before it has seen any.
    seen = np.where(last >= 0, np.take_along_axis(end, np.maximum(last, 0), axis=-2), 0)
    returned = np.sum((seen[..., 1:, :] == 1) & (seen[..., :-1, :] == -1), axis=-2)
    # A machine that was hot before it was ever cold has come down once without having gone up.
    first = np.take_along_axis(seen, np.argmax(seen != 0, axis=-2, keepdims=True), axis=-2)[..., 0, :]
    return np.asarray(np.sum(np.where(first == -1, np.maximum(returned - 1, 0), returned), axis=-1))
