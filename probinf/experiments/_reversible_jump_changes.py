r"""Change points of a rate: segments of counts whose rates are sampled, and the exact law of their number.

Counts are Poisson with a rate that jumps at k unknown boundaries between years. Rates have a gamma law; integrated
out, a segment of length L and sum s has probability proportional to $b^a \Gamma(a + s) / (\Gamma(a) (b + L)^{a + s})$,
and sums over all segmentations are a recursion over their last segment (Fearnhead 2006). Splits and merges of
segments that keep the weighted geometric mean of the rates: Green (1995), section 4.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.scipy.special import gammaln
from jaxtyping import Array, Float, Int

from probinf import samplers
from probinf.core import Target
from probinf.experiments._data import load
from probinf.samplers import Components, Move, TransDimensional

MAX_CHANGES, EXPECTED_CHANGES = 8, 3.0  # k has a Poisson law up to the former
RATE_SHAPE, RATE_RATE = 1.0, 0.5  # of the gamma law of disasters a year
REACH = 6  # years by which a boundary moves at most
RATE_STEP, LOG_RATIO_SCALE = 1.2, 1.0
YEARS_SHOWN = (1860, 1890, 1920, 1940)


class Changes(eqx.Module):
    """Poisson counts of segments: `parameters` has their `length` in years and their `rate`, in order.

    Attributes:
        sums: [n + 1] counts so far, from 0.
    """

    sums: Int[Array, " m"]

    def __call__(self, position: TransDimensional) -> Float[Array, ""]:
        """Up to the factorials of the counts, of which no model depends."""
        active, length, rate = segments(position)
        ends = jnp.cumsum(length)
        counts = (self.sums[ends] - self.sums[ends - length]).astype(rate.dtype)
        return jnp.sum(jnp.where(active, counts * jnp.log(rate) - rate * length.astype(rate.dtype), 0))


def segments(position: TransDimensional) -> tuple[Array, Array, Array]:
    """`(active, length, rate)`, with lengths zero and rates one where there is no segment or no rate."""
    length, rate = position.parameters["length"], position.parameters["rate"]
    active = jnp.arange(length.size, dtype=position.model.dtype) < position.model
    return active, jnp.where(active, length, 0), jnp.where(active & (rate > 0), rate, 1)


class ChangesPrior(eqx.Module):
    """Poisson number of changes up to a bound, boundaries a uniform subset, gamma rates.

    Attributes:
        num_years: [] float, n.
        capacity: the largest number of segments.
    """

    num_years: Float[Array, ""]
    capacity: int = eqx.field(static=True)

    def __call__(self, position: TransDimensional) -> Float[Array, ""]:
        active, length, rate = segments(position)
        changes = (position.model - 1).astype(rate.dtype)
        log_subsets = gammaln(self.num_years) - gammaln(changes + 1) - gammaln(self.num_years - changes)
        log_number = changes * math.log(EXPECTED_CHANGES) - gammaln(changes + 1)
        log_gamma = RATE_SHAPE * math.log(RATE_RATE) - math.lgamma(RATE_SHAPE)
        log_rates = (RATE_SHAPE - 1) * jnp.log(rate) - RATE_RATE * rate + log_gamma
        possible = jnp.all(jnp.where(active, (length > 0) & (position.parameters["rate"] > 0), True))
        return jnp.where(possible, log_number - log_subsets + jnp.sum(jnp.where(active, log_rates, 0)), -jnp.inf)


class Seen(eqx.Module):
    """What is kept of a segmentation: the number of changes, and the rates in some years.

    Attributes:
        years: [m] indices of years.
    """

    years: Int[Array, " m"]

    def __call__(self, position: TransDimensional) -> dict[str, Array]:
        active, length, rate = segments(position)
        # The segment of a year is the number of segments that end at it or before.
        which = jnp.sum(active[None, :] & (jnp.cumsum(length)[None, :] <= self.years[:, None]), axis=1)
        return {"changes": position.model - 1, "rate": rate[which]}


def coal() -> np.ndarray:
    """Disasters a year, 1851 to 1962."""
    return load("coal").values[:, 1]


def changes_target(counts: np.ndarray, years: tuple[int, ...], max_changes: int = MAX_CHANGES) -> Target:
    """The posterior of segments and their rates; draws are the number of changes and the rates of some years."""
    sums = jnp.asarray(np.concatenate([[0], np.cumsum(counts)]), jnp.int32)
    prior = ChangesPrior(jnp.asarray(len(counts), jnp.zeros(()).dtype), max_changes + 1)
    return Target(Changes(sums), prior, constrain=Seen(jnp.asarray(years, jnp.int32)))


def one_segment(counts: np.ndarray, num_chains: int, max_changes: int = MAX_CHANGES) -> TransDimensional:
    """Starting points without a change."""
    first = np.arange(max_changes + 1) == 0
    parameters = {
        "length": jnp.asarray(np.tile(first * len(counts), (num_chains, 1)), jnp.int32),
        "rate": jnp.asarray(np.tile(first * counts.mean(), (num_chains, 1)), jnp.zeros(()).dtype),
    }
    return TransDimensional(jnp.ones(num_chains, jnp.int32), parameters)


class Halves(eqx.Module):
    """How a segment splits: the length of its first part, uniform, and the log ratio of the rates, normal."""

    length: Int[Array, ""]

    def sample(self, key: jax.Array) -> dict[str, Array]:
        """A part of at least one year, if there are two."""
        key_first, key_ratio = jax.random.split(key)
        first = jax.random.randint(key_first, (), 1, jnp.maximum(self.length, 2), jnp.int32)
        return {"first": first, "log_ratio": LOG_RATIO_SCALE * jax.random.normal(key_ratio)}

    def log_prob(self, noise: dict[str, Array]) -> Float[Array, ""]:
        """Normalised."""
        z = noise["log_ratio"] / LOG_RATIO_SCALE
        log_normal = -0.5 * z * z - math.log(LOG_RATIO_SCALE) - 0.5 * math.log(2 * math.pi)
        return log_normal - jnp.log(jnp.maximum(self.length - 1, 1).astype(z.dtype))


def halves(position: TransDimensional, slot: Array) -> Halves:
    """Those of the segment in a slot."""
    return Halves(position.parameters["length"][slot])


def split(segment: dict[str, Array], noise: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Two rates whose weighted geometric mean is the old one; the determinant is rate_1 rate_2 / rate."""
    share = _share(noise["first"], segment["length"], segment["rate"].dtype)
    first = {"length": noise["first"], "rate": segment["rate"] * jnp.exp((1 - share) * noise["log_ratio"])}
    rate = segment["rate"] * jnp.exp(-share * noise["log_ratio"])
    return first, {"length": segment["length"] - noise["first"], "rate": rate}


def merge(first: dict[str, Array], second: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inverse of `split`."""
    length = first["length"] + second["length"]
    share = _share(first["length"], length, first["rate"].dtype)
    logs = [jnp.log(jnp.where(part["rate"] > 0, part["rate"], 1)) for part in (first, second)]
    rate = jnp.exp(share * logs[0] + (1 - share) * logs[1])
    return {"length": length, "rate": rate}, {"first": first["length"], "log_ratio": logs[0] - logs[1]}


def _share(part: Array, whole: Array, dtype: Any) -> Array:
    return part.astype(dtype) / jnp.maximum(whole, 1).astype(dtype)


def neighbours(position: TransDimensional) -> Array:
    """Only a segment and the next one merge."""
    return jnp.eye(position.parameters["length"].size, k=1)


class Shift(eqx.Module):
    """The moves of a boundary between two segments by at most `REACH` years; a choice is which one."""

    def probabilities(self, position: TransDimensional) -> Float[Array, " borders"]:
        """All boundaries alike."""
        rate = position.parameters["rate"]
        there = jnp.arange(1, rate.size, dtype=position.model.dtype) < position.model
        return there.astype(rate.dtype) / jnp.maximum(position.model - 1, 1).astype(rate.dtype)

    def sample_noise(self, key: jax.Array, position: TransDimensional, choice: Int[Array, ""]) -> Int[Array, ""]:
        """Years, up or down."""
        return jax.random.randint(key, (), -REACH, REACH + 1, jnp.int32)

    def log_prob_noise(self, position: TransDimensional, move: Move) -> Float[Array, ""]:
        """Uniform, the same for all."""
        return jnp.full((), -math.log(2 * REACH + 1))

    def active_noise(self, position: TransDimensional, choice: Int[Array, ""]) -> Array:
        """It has no continuous coordinates, and always counts."""
        return jnp.asarray(True)

    def apply(self, position: TransDimensional, move: Move) -> tuple[TransDimensional, Move, Array]:
        """What one segment loses the next one gets."""
        index = jnp.arange(position.parameters["length"].size, dtype=move.choice.dtype)
        sign = (index == move.choice).astype(jnp.int32) - (index == move.choice + 1).astype(jnp.int32)
        parameters = position.parameters | {"length": position.parameters["length"] + sign * move.noise}
        return TransDimensional(position.model, parameters), Move(move.choice, -move.noise), jnp.zeros(())


class RateSteps(eqx.Module):
    """The one move of all rates at once: log-normal steps, the smaller the more disasters a segment has.

    Attributes:
        sums: [n + 1] counts so far, from 0.
    """

    sums: Int[Array, " m"]

    def probabilities(self, position: TransDimensional) -> Float[Array, " 1"]:
        """One."""
        return jnp.ones(1, position.parameters["rate"].dtype)

    def sample_noise(self, key: jax.Array, position: TransDimensional, choice: Int[Array, ""]) -> Float[Array, " c"]:
        """Standard normal numbers."""
        rate = position.parameters["rate"]
        return jax.random.normal(key, rate.shape, rate.dtype)

    def log_prob_noise(self, position: TransDimensional, move: Move) -> Float[Array, ""]:
        """Without the constant, which a move does not change."""
        return -0.5 * jnp.sum(move.noise**2)

    def active_noise(self, position: TransDimensional, choice: Int[Array, ""]) -> Array:
        """One number for every segment."""
        return segments(position)[0]

    def apply(self, position: TransDimensional, move: Move) -> tuple[TransDimensional, Move, Array]:
        """The scale depends on lengths alone, which do not change; the determinant is the product of the factors."""
        active, length, _ = segments(position)
        ends = jnp.cumsum(length)
        counts = (self.sums[ends] - self.sums[ends - length]).astype(move.noise.dtype)
        steps = jnp.where(active, RATE_STEP / jnp.sqrt(counts + RATE_SHAPE) * move.noise, 0)
        parameters = position.parameters | {"rate": position.parameters["rate"] * jnp.exp(steps)}
        return TransDimensional(position.model, parameters), Move(move.choice, -move.noise), jnp.sum(steps)


def changes_kernel(counts: np.ndarray, max_changes: int = MAX_CHANGES, *, check: bool = False) -> Any:
    """Segments split and merge, boundaries shift, rates take a random step."""
    space = Components(max_changes + 1, 1)
    sums = jnp.asarray(np.concatenate([[0], np.cumsum(counts)]), jnp.int32)
    return samplers.cycle(
        samplers.split_merge(split, merge, halves, space, merge_weights=neighbours, check=check),
        samplers.trans_dimensional(Shift(), space, check=check),
        samplers.trans_dimensional(RateSteps(sums), space, check=check),
    )


class ExactChanges(NamedTuple):
    """The exact posterior.

    Attributes:
        number: [k + 1] probabilities of the numbers of changes.
        rate: [n] posterior mean of the rate in every year.
    """

    number: np.ndarray
    rate: np.ndarray


def exact_changes(counts: np.ndarray, max_changes: int = MAX_CHANGES) -> ExactChanges:
    """By recursions from both ends, in double precision."""
    n = len(counts)
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    start, stop = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    shape, rate = RATE_SHAPE + sums[stop] - sums[start], RATE_RATE + stop - start
    proper = stop > start
    log_one = np.full((n + 1, n + 1), -np.inf)
    constant = RATE_SHAPE * math.log(RATE_RATE) - math.lgamma(RATE_SHAPE)
    log_one[proper] = (constant + scipy.special.gammaln(shape[proper])) - shape[proper] * np.log(rate[proper])
    # [j, t]: the sum over all ways to cut the first (or the last) years, up to boundary t, into j segments.
    left, right = (np.full((max_changes + 2, n + 1), -np.inf) for _ in range(2))
    left[0, 0] = right[0, n] = 0
    for j in range(1, max_changes + 2):
        left[j] = scipy.special.logsumexp(left[j - 1][:, None] + log_one, axis=0)
        right[j] = scipy.special.logsumexp(log_one + right[j - 1][None, :], axis=1)
    k = np.arange(max_changes + 1)
    log_prior = k * math.log(EXPECTED_CHANGES) - scipy.special.gammaln(k + 1)
    log_prior -= np.log(scipy.special.comb(n - 1, k))
    log_number = log_prior + left[1:, n]
    total = scipy.special.logsumexp(log_number)
    # The probability of each segment: what lies before, itself, what comes after, for any number of changes.
    weight = np.full((n + 1, n + 1), -np.inf)
    for before in range(max_changes + 1):
        for after in range(max_changes + 1 - before):
            ways = log_prior[before + after] + left[before][:, None] + right[after][None, :]
            weight = np.logaddexp(weight, ways + log_one)
    mean = np.where(proper, np.exp(weight - total) * shape / np.where(proper, rate, 1), 0)
    years = np.arange(n)
    holds = (start[:, :, None] <= years) & (stop[:, :, None] > years)
    return ExactChanges(np.exp(log_number - total), np.sum(mean[:, :, None] * holds, axis=(0, 1)))
