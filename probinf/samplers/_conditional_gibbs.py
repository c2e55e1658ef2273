r"""`conditional_gibbs`: all elements of discrete sites at once, from conditional laws that the caller knows.

Given everything else the elements are drawn independently, $z_i' \sim q_i(\cdot \mid x)$, and the draw is accepted
with $\min\{1, \pi(z') q(z \mid z') / (\pi(z) q(z' \mid z))\}$. Where the elements are conditionally independent and
q is their law, that is 1; any other q is corrected (Metropolis within Gibbs; an instance of `mhg`).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf.core._choices import categorical
from probinf.core._effects import choose
from probinf.core._status import Status, flag
from probinf.core._support import IntegerInterval
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._gibbs import check_supports, is_inside
from probinf.samplers._mhg import MHG, MHGInfo, MHGState, relocate


class Conditionals(eqx.Module):
    """The auxiliary law: new values of all elements, independent given the state."""

    log_conditional: Callable[[Any], dict[str, Array]]

    def sample(self, key: PRNGKey, target: Target, state: MHGState) -> dict[str, Array]:
        """One draw of all sites."""
        laws, position = self._laws(target, state.position), state.position
        drawn = {}
        for name, key_site in zip(sorted(laws), jax.random.split(key, len(laws)), strict=True):
            law, support, like = laws[name], target.supports[name], position[name]
            rows = jnp.exp(law).reshape(-1, support.num_values)
            steps = choose(key_site, categorical, rows).reshape(like.shape)
            drawn[name] = (support.lower + steps.astype(support.lower.dtype)).astype(like.dtype)
        return drawn

    def log_prob(self, target: Target, state: MHGState, v: dict[str, Array]) -> Float[Array, ""]:
        """The log probability of drawing `v`."""
        total = jnp.zeros_like(state.point.log_prior)
        for name, law in self._laws(target, state.position).items():
            steps = v[name].astype(jnp.int32) - target.supports[name].lower
            total += jnp.sum(jnp.take_along_axis(law, steps[..., None], axis=-1)).astype(total.dtype)
        return total

    def _laws(self, target: Target, position: dict[str, Array]) -> dict[str, Array]:
        """Normalised log probabilities, [*shape, values] a site."""
        given = self.log_conditional(target.constrain(position))
        if not isinstance(given, dict) or sorted(given) != sorted(position):
            named = sorted(given) if isinstance(given, dict) else type(given).__name__
            raise ValueError(f"`log_conditional` gave {named}, but must give a dict with the sites {sorted(position)}")
        return {name: _law(name, jnp.asarray(given[name]), target.supports[name]) for name in position}


def _law(name: str, logits: Array, support: IntegerInterval) -> Float[Array, "..."]:
    shape = (*support.shape, support.num_values)
    if logits.shape != shape or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"`log_conditional` gave {logits.dtype} of shape {logits.shape} for site {name!r}, but must give log "
            f"probabilities of shape {shape}: that of the site, and one for each value from its lower bound on"
        )
    values = support.lower[..., None] + jnp.arange(support.num_values, dtype=support.lower.dtype).reshape(
        (1,) * len(support.shape) + (-1,)
    )
    return jax.nn.log_softmax(jnp.where(values <= support.upper[..., None], logits, -jnp.inf), axis=-1)


class Exchange(eqx.Module):
    """The involution: the drawn values become the state, the old ones the draw."""

    def __call__(
        self, target: Target, state: MHGState, v: dict[str, Array]
    ) -> tuple[MHGState, dict[str, Array], Array]:
        """The state at `v`, the old values, and log-determinant 0."""
        return relocate(target, state, v), state.position, jnp.zeros_like(state.point.log_prior)


class ConditionalGibbs(eqx.Module):
    """The kernel made by `conditional_gibbs`.

    Attributes:
        log_conditional: the log probabilities of all values of all elements.
        check: as for `mhg`.
    """

    log_conditional: Callable[[Any], dict[str, Array]]
    check: bool = eqx.field(static=True, default=False)

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`; flags `NONFINITE_INIT` outside the supports too.

        Raises:
            TypeError: a site is not of integers, or `position` is no dict.
            ValueError: the target does not tell the support of a site, or one of another shape.
        """
        check_supports("conditional_gibbs", target, position)
        state = self.as_mhg().init(key, target, position)
        outside = flag(Status.NONFINITE_INIT, ~is_inside(target, state.position))
        return MHGState(state.point, state.status | outside)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, MHGInfo]:
        """One draw of all elements."""
        return self.as_mhg().step(key, target, state)

    def as_mhg(self) -> MHG:
        """The `mhg` kernel that it is."""
        return MHG(Conditionals(self.log_conditional), Exchange(), check=self.check)


def conditional_gibbs(log_conditional: Callable[[Any], dict[str, Array]], *, check: bool = False) -> ConditionalGibbs:
    """Draws all elements of discrete sites at once from conditional laws in closed form, with a Metropolis correction.

    For sites whose elements are independent given everything else, such as the assignments of a mixture. Costs one
    evaluation of the density and two of `log_conditional`, where `gibbs` takes one of the density for each element and
    value. Leaves the target invariant, reversibly, whatever `log_conditional` says: where it is the exact law given the
    other sites everything is accepted, so an `acceptance_rate` clearly below 1 tells that it is
    not (rounding costs a little where there are very many elements).

    Args:
        log_conditional: takes what `target.constrain` shows (in `on_sites`: of all sites, not only of these) and gives
            a dict from each site that is moved to its log probabilities, `[*shape, num_values]`, unnormalised, the
            values from the lower bound of the support on. Write it as an `equinox.Module` that holds the data.
        check: as for `mhg`.

    Returns:
        A `Kernel`.

    Raises:
        TypeError: `log_conditional` is not callable.
    """
    if not callable(log_conditional):
        raise TypeError(f"`log_conditional` must be a function of the constrained values, but is {log_conditional!r}")
    return ConditionalGibbs(log_conditional, check)
