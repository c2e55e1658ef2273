r"""`Raised`: a potential to a power, $G_t^\beta$, which keeps the sum of the unraised $\log G_t$ of each row.

Tempered filters draw by it, and parallel tempering exchanges texts by it. Corrections of a mask are the engine's and no
potential: every law here is $p(x) 1[legal] \prod_t G_t^\beta$.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from probinf.core._target import raised
from probinf.llm._potential_types import Potential, Prompt, Scored, StepView


class RaisedState(NamedTuple):
    r"""The state of the potential, and $\sum_s \log G_s$ so far, [N]."""

    inner: PyTree
    log_total: Float[Array, " n"]


class Raised(Potential):
    """`potential` to the power `inverse_temperature`. At 0 it weighs nothing, not even what is impossible.

    Attributes:
        potential: what is raised.
        inverse_temperature: the power, >= 0.
    """

    potential: Potential
    inverse_temperature: Float[Array, ""]

    @property
    def traceable(self) -> bool:
        """Whether the potential may run under `jit`."""
        return self.potential.traceable

    def for_model(self, lm: Any) -> "Raised":
        """The same for texts of one model."""
        return Raised(self.potential.for_model(lm), self.inverse_temperature)

    def context(self) -> int | None:
        """The most tokens that the potential can read."""
        return self.potential.context()

    def bind(self, prompt: Prompt) -> "Raised":
        """The same for a prompt."""
        return Raised(self.potential.bind(prompt), self.inverse_temperature)

    def start(self, num_rows: int, capacity: int) -> RaisedState:
        """The potential's state, and sums of zero."""
        return RaisedState(self.potential.start(num_rows, capacity), jnp.zeros(num_rows))

    def update(self, state: RaisedState, step: StepView) -> tuple[RaisedState, Scored]:
        """Weighs one step by the power, and adds to the sums."""
        inner, scored = self.potential.update(state.inner, step)
        log_potential = scored.log_potential
        # Sums hold a NaN as weight zero, as the population does; the engine sees it and flags it.
        known = jnp.where(jnp.isnan(log_potential), -jnp.inf, log_potential)
        total = state.log_total + known.astype(state.log_total.dtype)
        failed = jnp.isnan(log_potential)
        power = raised(self.inverse_temperature.astype(log_potential.dtype), log_potential)
        log_power = jnp.where(failed, jnp.nan, power)
        return RaisedState(inner, total), Scored(log_power, scored.score, scored.num_tokens)

    def causes(self) -> Mapping[str, int]:
        """What failed on the host."""
        return self.potential.causes()


def log_total(state: PyTree) -> Float[Array, " n"]:
    """The sum of the log potentials of each row, from the state of a `Raised` potential.

    Raises:
        TypeError: it is the state of another potential.
    """
    if not isinstance(state, RaisedState):
        raise TypeError(f"needed the state of a `Raised` potential, got {type(state).__name__}: wrap the potential")
    return state.log_total
