r"""Whether a nonnegative estimator of a known constant is unbiased: a bet whose capital may be looked at any time.

With ratios $X_i = \hat Z_i / Z \ge 0$ and $H_0: E X = 1$, the capital
$K_n = \frac1J\sum_j \prod_{i \le n} (1 + \lambda_j (X_i - 1))$ is a nonnegative martingale of mean 1, so
$P(\sup_n K_n \ge 1/\alpha) \le \alpha$ (Ville 1939; Howard et al. 2021; Waudby-Smith, Ramdas 2024). Bets
$\lambda > 0$ see a surplus; a deficit needs $\lambda < 0$, and so a bound on X.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probinf.core import PRNGKey
from probinf.validity._arguments import callables, rate_between, sample_size
from probinf.validity._replicate import all_traceable, replicate
from probinf.validity._report import SURE, Check

BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.4])
# Bets against a deficit, as shares of the largest that keeps the capital positive for X up to the bound.
DEFICIT_BETS = -np.array([0.05, 0.1, 0.2, 0.4, 0.8])
# No ratio above exp of this is made: it would overflow.
LARGEST_LOG_RATIO = 700


class ConfidenceSequence(NamedTuple):
    """Bounds on the log of the mean of an estimator, all of them right at once.

    Attributes:
        log_lower, log_upper: [n] after each estimate; the lower never falls, the upper never rises. The lower is -inf
            while nothing is known; the upper is +inf always, unless a bound was given.
    """

    log_lower: Float[np.ndarray, " n"]
    log_upper: Float[np.ndarray, " n"]


def evidence_unbiasedness(
    log_estimates: Any,
    log_exact: Any,
    *,
    false_alarm_rate: float = 1e-6,
    bound: float | None = None,
    subject: str = "evidence",
) -> Check:
    """Checks that independent estimates, given as logs, have the mean `exp(log_exact)`.

    Law: an unbiased estimator fails with probability at most `false_alarm_rate`, also if you look after every estimate
    and stop when you like. Without `bound` only a surplus is seen.

    Args:
        log_estimates: [n] logs of nonnegative estimates; -inf is an estimate of zero. A NaN makes the check fail.
        log_exact: the log of the exact value; finite.
        false_alarm_rate: split evenly over surplus and deficit where both are looked for.
        bound: a number that estimate / exact never exceeds, above 1; finite models have one. Lets deficits be seen.
        subject: for the report.

    Returns:
        A check whose `found` is the largest log capital that a bettor against the law ever had.

    Raises:
        ValueError: no estimates, an exact value that is not finite, a rate or bound out of range, or an estimate
            that exceeds the bound.

    Source: Howard, Ramdas, McAuliffe, Sekhon (2021); Waudby-Smith, Ramdas (2024).
    """
    rate = rate_between("false_alarm_rate", false_alarm_rate)
    ratios = _ratios(log_estimates, log_exact)
    sides = _sides(bound, ratios)
    threshold = math.log(len(sides) / rate)
    found = float(np.max([np.max(log_capital(ratios, bets)) for bets in sides])) if _known(ratios) else math.nan
    detects = ", ".join(_detectable(ratios, bets, threshold) for bets in sides)
    return Check("unbiasedness", subject, found, threshold, rate, detects)


def confidence_sequence(
    log_estimates: Any, *, false_alarm_rate: float = 1e-6, log_bound: float | None = None
) -> ConfidenceSequence:
    """Bounds on the mean of nonnegative estimates that hold after every estimate at once.

    Law: with probability at least 1 - `false_alarm_rate` the log of the mean lies within the bounds at every n. They
    are the means that `evidence_unbiasedness` would not reject, rounded outwards to a grid.

    Args:
        log_estimates: [n] logs of nonnegative estimates; -inf is an estimate of zero. NaN gives NaN from there on.
        false_alarm_rate: the probability that the mean ever leaves the bounds, at most.
        log_bound: the log of a number that no estimate exceeds; without it there is no upper bound. No bet is made
            against means more than 700 below it, which are excluded only where larger ones are.

    Returns:
        The two bounds.

    Raises:
        ValueError: no estimates, a rate out of range, or an estimate above the bound.
        TypeError: `log_bound` is no number.

    Source: Waudby-Smith, Ramdas (2024), Journal of the Royal Statistical Society B 86, section 4.
    """
    rate = rate_between("false_alarm_rate", false_alarm_rate)
    logs = _vector("log_estimates", log_estimates)
    known = np.logical_and.accumulate(~np.isnan(logs))
    finite = logs[np.isfinite(logs)]
    log_bound = None if log_bound is None else _number("log_bound", log_bound)
    if log_bound is not None and not (math.isfinite(log_bound) and np.all(logs[known] <= log_bound)):
        raise ValueError(f"`log_bound` is {log_bound}; needed a finite number that no estimate exceeds")
    centre = float(np.logaddexp.reduce(finite)) - math.log(logs.size) if finite.size else 0.0
    threshold = math.log((1 if log_bound is None else 2) / rate)
    reach = threshold + 10 + (0 if log_bound is None else abs(log_bound - centre))
    offsets = np.geomspace(1e-4, reach, 200)
    grid = centre + np.concatenate([-offsets[::-1], [0], offsets])
    lower, upper = np.full(logs.size, -np.inf), np.full(logs.size, np.inf)
    for log_mean in grid:
        # Clipped for the first, tiny means of the grid; a smaller ratio only makes a surplus harder to see.
        ratios = np.exp(np.minimum(np.where(known, logs, -np.inf) - log_mean, LARGEST_LOG_RATIO))
        low = np.maximum.accumulate(log_capital(ratios, BETS)) >= threshold
        lower = np.where(low, np.maximum(lower, log_mean), lower)
        # Further below the bound the bets are as good as zero.
        if log_bound is not None and 0 < log_bound - log_mean <= LARGEST_LOG_RATIO:
            bets = DEFICIT_BETS / math.expm1(log_bound - log_mean)
            high = np.maximum.accumulate(log_capital(ratios, bets)) >= threshold
            upper = np.where(high, np.minimum(upper, log_mean), upper)
    if log_bound is not None:
        upper = np.minimum(upper, log_bound)
    return ConfidenceSequence(np.where(known, lower, np.nan), np.where(known, upper, np.nan))


def unbiased(
    key: PRNGKey,
    estimator: Callable[[PRNGKey], Any],
    log_exact: Any,
    *,
    false_alarm_rate: float = 1e-6,
    bound: float | None = None,
    tolerance: float = 0.1,
    max_estimates: int = 100_000,
    batch_size: int = 1024,
    traceable: bool = True,
    subject: str = "evidence",
) -> Check:
    """Draws estimates until their bias is seen, or one of `tolerance` would have been, and checks their mean.

    Law: as for `evidence_unbiasedness`; stopping does not change the false alarm rate. Whether a bias of `tolerance`
    would have been seen is judged by the spread of the estimates so far.

    Args:
        key: of the whole check.
        estimator: `key -> log estimate`, a scalar.
        log_exact: the log of the exact value; finite.
        false_alarm_rate: probability that an unbiased estimator fails, at most.
        bound: a number that estimate / exact never exceeds; lets deficits be seen.
        tolerance: relative bias that is to be seen, such as 0.1.
        max_estimates: how many are drawn at most.
        batch_size: how many are drawn at once.
        traceable: whether the estimator runs under `jit` and `vmap`; else it is called in a loop.
        subject: for the report.

    Returns:
        A check; what it `detects` says whether `tolerance` was reached within `max_estimates`.

    Raises:
        ValueError: a number is out of range, or the estimator does not return a scalar.
        TypeError: `estimator` is not a function.
    """
    callables(estimator=estimator)
    rate, tolerance = rate_between("false_alarm_rate", false_alarm_rate), rate_between("tolerance", tolerance)
    max_estimates = sample_size("max_estimates", max_estimates)
    batch_size = min(sample_size("batch_size", batch_size), max_estimates)
    mapped = all_traceable(traceable, estimator)
    one, logs = eqx.Partial(_scalar, estimator), np.empty(0)
    for batch in range(-(-max_estimates // batch_size)):
        batch_key = jax.random.fold_in(key, batch)
        new = replicate(batch_key, one, batch_size, traceable=mapped, batch_size=batch_size)
        logs = np.concatenate([logs, new.astype(float)])[:max_estimates]
        if _decided(_ratios(logs, log_exact), bound, rate, tolerance):
            break
    check = evidence_unbiasedness(logs, log_exact, false_alarm_rate=rate, bound=bound, subject=subject)
    detects = f"{check.detects}; {logs.size} estimates"
    return Check(check.law, check.subject, check.found, check.bound, check.false_alarm_rate, detects)


def _decided(ratios: Float[np.ndarray, " n"], bound: float | None, rate: float, tolerance: float) -> bool:
    """Whether the law is rejected, an estimate is NaN, or a bias of `tolerance` would have been seen."""
    sides = _sides(bound, ratios)
    threshold = math.log(len(sides) / rate)
    if not _known(ratios) or any(np.max(log_capital(ratios, bets)) > threshold for bets in sides):
        return True
    return all(_seen(ratios, bets, threshold, tolerance) for bets in sides)


def log_capital(ratios: Float[np.ndarray, "*runs n"], bets: Float[np.ndarray, " j"]) -> Float[np.ndarray, "*runs n"]:
    """The log of the mean over bets of the running product of 1 + bet * (ratio - 1)."""
    with np.errstate(divide="ignore"):
        gains = [np.cumsum(np.log1p(bet * (ratios - 1)), axis=-1) for bet in bets]
    return np.logaddexp.reduce(np.stack(gains), axis=0) - math.log(len(bets))


def _scalar(estimator: Callable[[PRNGKey], Any], key: PRNGKey) -> Array:
    value = jnp.asarray(estimator(key))
    if value.shape != ():
        raise ValueError(f"`estimator` returned an array of shape {value.shape}; needed a scalar, one log estimate")
    return value


def _vector(name: str, values: Any) -> Float[np.ndarray, " n"]:
    values = np.asarray(values, float)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"`{name}` has shape {values.shape}; needed one axis of at least one estimate")
    return values


def _number(name: str, value: Any) -> float:
    """`value` as a float.

    Raises:
        TypeError: it is no real scalar; the message names it.
    """
    try:
        number = None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise TypeError(f"`{name}` is {value!r}; needed a real number, such as 0.5")
    return number


def _ratios(log_estimates: Any, log_exact: Any) -> Float[np.ndarray, " n"]:
    exact = _number("log_exact", log_exact)
    if not math.isfinite(exact):
        raise ValueError(f"`log_exact` is {exact}; needed the finite log of the exact value")
    with np.errstate(over="ignore"):
        return np.exp(_vector("log_estimates", log_estimates) - exact)


def _known(ratios: Float[np.ndarray, " n"]) -> bool:
    return not np.isnan(ratios).any()


def _sides(bound: float | None, ratios: Float[np.ndarray, " n"]) -> list[Float[np.ndarray, " j"]]:
    """The bets against a surplus, and with a bound those against a deficit."""
    if bound is None:
        return [BETS]
    bound = _number("bound", bound)
    if not (math.isfinite(bound) and bound > 1):
        raise ValueError(
            f"`bound` is {bound}; needed a finite number above 1 that no ratio of estimate to exact exceeds"
        )
    bets = DEFICIT_BETS / (bound - 1)
    largest = float(np.nanmax(ratios, initial=0))
    # What the law needs is a capital that stays positive; that leaves room for estimates rounded over the bound.
    if 1 + np.min(bets) * (largest - 1) <= 0:
        raise ValueError(
            f"`bound` is {bound}, but an estimate is {largest:.4g} times the exact value: give a true bound"
        )
    return [BETS, bets]


def _seen(ratios: Float[np.ndarray, " n"], bets: Float[np.ndarray, " j"], threshold: float, bias: float) -> bool:
    """Whether a relative bias of this size is all but surely seen (see `SURE`), judging by the spread.

    The ratios are scaled to a mean of 1 plus the bias; then the log capital of the best bet is about normal.
    """
    mean = np.mean(ratios)
    if not (np.isfinite(mean) and mean > 0):
        return False
    sign = np.sign(bets[0])
    stakes = bets[:, None] * (max(1 + sign * bias, 0) * ratios / mean - 1)
    if np.any(stakes <= -1):
        return False
    gains = np.log1p(stakes)
    sure = np.sum(gains, 1) - SURE * np.std(gains, 1) * math.sqrt(ratios.size)
    return bool(np.max(sure) - math.log(len(bets)) > threshold)


def _detectable(ratios: Float[np.ndarray, " n"], bets: Float[np.ndarray, " j"], threshold: float) -> str:
    """The smallest bias that is all but surely seen, in words; by bisection of its logarithm."""
    low, high = math.log(1e-4), math.log(10 if bets[0] > 0 else 1)
    if not _seen(ratios, bets, threshold, math.exp(high)):
        return "nothing surely: too few estimates"
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (low, middle) if _seen(ratios, bets, threshold, math.exp(middle)) else (middle, high)
    return f"a bias of {math.copysign(math.exp(high), bets[0]):+.2g}"
