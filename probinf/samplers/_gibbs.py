r"""`gibbs`: each element of discrete sites in turn, from its exact conditional law.

With the support $\{l, \dots, u\}$ of element $i$, $z_i' \sim p(k) \propto \pi(z_i = k, z_{-i})$ (Geman, Geman 1984).
The metropolised form never draws the present value $j$ anew: it goes to $k \ne j$ with probability
$p(k) / \max\{1 - p(j), 1 - p(k)\}$ and stays otherwise (Liu 1996), which for two values is a Metropolis flip.
"""

import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from probinf.core._choices import categorical
from probinf.core._effects import choose, scan
from probinf.core._fast_key import fast_key, plain_key
from probinf.core._kernel import Point, evaluate, point_log_density
from probinf.core._resample import unwrap_key
from probinf.core._status import Status, flag, is_fatal
from probinf.core._support import IntegerInterval
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._mhg import MHGState


class GibbsInfo(NamedTuple):
    """One sweep over all elements.

    Attributes:
        acceptance_rate: [] mean over the elements of the probability that a draw is kept: 1, and for the metropolised
            form the probability of a change; 0 for elements at which the chain was frozen.
        moved: [] fraction of the elements that changed.
        log_density: [] of the new state, up to the constant of the target.
        divergent: [] bool: the density was NaN for a value, which then counts as impossible.
        status: [] uint32, the bits of this step.
    """

    acceptance_rate: Array
    moved: Array
    log_density: Array
    divergent: Array
    status: Array


class Permutation(eqx.Module):
    """The choice of an order of `num` items, all orders alike."""

    num: int = eqx.field(static=True)

    def sample(self, key: PRNGKey) -> Int[Array, " num"]:
        """One order."""
        return jax.random.permutation(key, jnp.arange(self.num, dtype=jnp.int32))

    def law(self) -> tuple[Int[Array, "m num"], Float[Array, " m"]]:
        """All orders."""
        orders = np.array(list(itertools.permutations(range(self.num))), np.int32)
        return jnp.asarray(orders), jnp.full(len(orders), 1 / len(orders))


class _Sweep(NamedTuple):
    """What a sweep carries: the values of all elements, what the target says there, bits, and sums for the info."""

    values: Array
    log_prior: Array
    log_likelihood: Array
    bits: Array
    acceptance: Array


class _Update(eqx.Module):
    """The draw of one element given all others.

    Attributes:
        target: its density.
        position: tells the sites and their shapes.
        status: [] uint32, of the state before the sweep.
        lower, counts: [elements], the smallest value and the number of values.
        num_values: the largest of `counts`.
        metropolised: as for `gibbs`.
    """

    target: Target
    position: dict[str, Array]
    status: Array
    lower: Array
    counts: Array
    num_values: int = eqx.field(static=True)
    metropolised: bool = eqx.field(static=True)

    def __call__(self, key: PRNGKey, sweep: _Sweep, element: Int[Array, ""]) -> _Sweep:
        low, count, value = self.lower[element], self.counts[element], sweep.values[element]
        here = jnp.arange(sweep.values.shape[0], dtype=element.dtype) == element

        def at(value: Array) -> tuple[Array, Array, Array]:
            position = _restored(jnp.where(here, value, sweep.values), self.position)
            point = evaluate(self.target, position, gradient=False)
            return point.log_prior, point.log_likelihood, point_log_density(self.target, point)

        # The other values, counted from the present one, whose density is known.
        steps = jnp.arange(1, self.num_values, dtype=low.dtype)
        log_priors, log_likelihoods, log_densities = jax.vmap(at)(low + (value - low + steps) % count)
        allowed = steps < count
        before = point_log_density(self.target, Point(None, sweep.log_prior, sweep.log_likelihood, None, None))
        bits = flag(Status.DIVERGENT, jnp.any(jnp.isnan(log_densities) & allowed))
        bits |= flag(Status.NAN_LOG_WEIGHT, jnp.isnan(before))
        bits |= flag(Status.POSINF_LOG_WEIGHT, jnp.any((log_densities == jnp.inf) & allowed))
        frozen = is_fatal(self.status | sweep.bits)
        bits = sweep.bits | jnp.where(frozen, jnp.zeros_like(bits), bits)
        frozen |= is_fatal(bits)

        possible = jnp.where(allowed, log_densities, -jnp.inf)
        law = _law(jnp.concatenate([before[None], possible]), frozen, metropolised=self.metropolised)
        chosen = choose(key, categorical, law[None])[0]
        drawn = low + (value - low + chosen.astype(low.dtype)) % count
        return _Sweep(
            jnp.where(here, drawn, sweep.values),
            jnp.concatenate([sweep.log_prior[None], log_priors])[chosen],
            jnp.concatenate([sweep.log_likelihood[None], log_likelihoods])[chosen],
            bits,
            sweep.acceptance + jnp.where(frozen, 0, 1 - law[0] if self.metropolised else 1).astype(law.dtype),
        )


class Gibbs(eqx.Module):
    """The kernel made by `gibbs`.

    Attributes:
        shuffle: whether each sweep has a random order.
        metropolised: whether the present value is avoided.
    """

    shuffle: bool = eqx.field(static=True, default=True)
    metropolised: bool = eqx.field(static=True, default=False)

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`; flags `NONFINITE_INIT` where the density is not finite or a value out of range.

        Raises:
            TypeError: a site is not of integers, or `position` is no dict.
            ValueError: the target does not tell the support of a site, or one of another shape.
        """
        del key
        check_supports("gibbs", target, position)
        position = jax.tree.map(jnp.asarray, position)
        point = evaluate(target, position, gradient=False)
        log_density = point_log_density(target, point)
        bad = ~jnp.isfinite(log_density) | ~is_inside(target, position)
        status = flag(Status.NONFINITE_INIT, bad) | flag(Status.POSINF_LOG_WEIGHT, log_density == jnp.inf)
        return MHGState(point, status)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, GibbsInfo]:
        """One sweep. Leaves the target invariant; reversible with `shuffle`."""
        update = _update(target, state, metropolised=self.metropolised)
        num = update.lower.shape[0]
        key_order, key_elements = jax.random.split(fast_key(key))
        order = choose(plain_key(key_order), Permutation(num)) if self.shuffle else jnp.arange(num, dtype=jnp.int32)
        words, restore = unwrap_key(jax.random.split(key_elements, num))

        values = _joined([state.position[name] for name in sorted(state.position)])
        point = state.point
        zero = jnp.zeros_like(point_log_density(target, point))
        start = _Sweep(values, point.log_prior, point.log_likelihood, jnp.zeros_like(state.status), zero)
        sweep, _ = scan(
            lambda sweep, item: (update(restore(item[0]), sweep, item[1]), None), start, (words, order), num
        )
        end = Point(_restored(sweep.values, state.position), sweep.log_prior, sweep.log_likelihood, None, None)
        info = GibbsInfo(
            acceptance_rate=sweep.acceptance / max(num, 1),
            moved=jnp.sum((sweep.values != values).astype(zero.dtype)) / max(num, 1),
            log_density=point_log_density(target, end),
            divergent=(sweep.bits & jnp.uint32(int(Status.DIVERGENT))) != 0,
            status=sweep.bits,
        )
        return MHGState(end, state.status | sweep.bits), info


def gibbs(*, shuffle: bool = True, metropolised: bool = False) -> Gibbs:
    """Gibbs sampling of discrete sites of finite support: a sweep draws each element from its exact conditional.

    Leaves the target invariant. The positions are dicts of integers, whose ranges the target tells (`supports`; those
    of `Target.from_numpyro` do); use `on_sites` for a model that has other sites too. A sweep over n elements of K
    values evaluates the density n (K - 1) times, K that of the site with most values: sites that differ much are better
    in kernels of their own, and where the conditionals are known in closed form `conditional_gibbs` is far cheaper. A
    value whose density is NaN counts as impossible and is flagged `DIVERGENT`; one of density +inf is flagged
    `POSINF_LOG_WEIGHT` and freezes the chain where it is.

    Args:
        shuffle: whether each sweep visits the elements in a new random order, which makes it reversible. Without, the
            order is that of the names and the arrays: invariant still, but not reversible.
        metropolised: Liu's form, which avoids the present value at the same cost; of a single random element it has
            the smaller asymptotic variances (Peskun), of sweeps usually.

    Returns:
        A `Kernel`.
    """
    return Gibbs(shuffle, metropolised)


def check_supports(kernel: str, target: Target, position: Position) -> None:
    """Raises unless the position is a dict of integers whose supports the target tells."""
    if not isinstance(position, dict) or not position:
        raise TypeError(f"`{kernel}` needs positions that are dicts of sites, but this one is {position!r}")
    for name, leaf in position.items():
        if not eqx.is_array_like(leaf) or jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            found = jnp.result_type(leaf) if eqx.is_array_like(leaf) else type(leaf).__name__
            raise TypeError(
                f"`{kernel}` needs integers, but position[{name!r}] is {found}: run it on the discrete sites with "
                f"`on_sites({kernel}(...), [...])`, and another kernel on this one"
            )
        support = target.supports.get(name)
        if support is None:
            raise ValueError(
                f"`{kernel}` needs the support of site {name!r}, and the target has only those of "
                f"{sorted(target.supports)}: give `Target(..., supports={{{name!r}: IntegerInterval(lower, upper)}})`"
            )
        if jnp.shape(leaf) != support.shape:
            raise ValueError(f"site {name!r} has shape {jnp.shape(leaf)}, but its support has {support.shape}")


def _update(target: Target, state: MHGState, *, metropolised: bool) -> _Update:
    supports = [target.supports[name] for name in sorted(state.position)]
    lower = _joined([support.lower for support in supports])
    counts = _joined([support.upper for support in supports]) - lower + 1
    largest = max(support.num_values for support in supports)
    return _Update(target, state.position, state.status, lower, counts, largest, metropolised)


def _law(log_densities: Float[Array, " k"], frozen: Bool[Array, ""], *, metropolised: bool) -> Float[Array, " k"]:
    """The probabilities of the values, that of the present one first; NaN counts as zero."""
    known = jnp.where(jnp.isnan(log_densities), -jnp.inf, log_densities)
    largest = jnp.max(known)
    weights = jnp.exp(known - jnp.where(jnp.isfinite(largest), largest, 0))
    stays = (jnp.arange(known.shape[0]) == 0).astype(known.dtype)
    stuck = frozen | (largest == -jnp.inf)
    weights = jnp.where(stuck, stays, weights)
    law = weights / jnp.sum(weights)
    if not metropolised:
        return law
    # At least a half: of two probabilities not both exceed it.
    others = jnp.where(stays == 1, 0, law / jnp.maximum(1 - law[0], 1 - law))
    rest = jnp.maximum(1 - jnp.sum(others), 0)
    return jnp.where(stays == 1, rest, others)


def is_inside(target: Target, position: dict[str, Array]) -> Bool[Array, ""]:
    """Whether all values are in their ranges."""

    def inside(values: Array, support: IntegerInterval) -> Bool[Array, ""]:
        numbers = values.astype(support.lower.dtype)
        return jnp.all((numbers >= support.lower) & (numbers <= support.upper))

    return jnp.all(jnp.stack([inside(values, target.supports[name]) for name, values in position.items()]))


def _joined(arrays: list[Array]) -> Int[Array, " n"]:
    return jnp.concatenate([jnp.ravel(array).astype(jnp.int32) for array in arrays])


def _restored(values: Int[Array, " n"], like: dict[str, Array]) -> dict[str, Array]:
    """The position with these values, in the order of `_joined`."""
    names, start, position = sorted(like), 0, {}
    for name in names:
        leaf = like[name]
        position[name] = values[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype)
        start += leaf.size
    return position
