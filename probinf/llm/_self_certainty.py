r"""`self_certainty`: weighs a step by how sure the model was of it, $\bar p_t = \exp(\frac{1}{n} \sum \log p)$.

A heuristic of entropic particle filters (arXiv 2510.05825): no distribution over texts was meant by it. Its target is
$p \prod_t G_t$ like any other.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from probinf.llm._odds import as_clip, clip_log_odds, log_odds_of_log
from probinf.llm._potential_types import Potential, Scored, StepView
from probinf.llm._step_reader import positive


class SelfCertainty(Potential):
    """See `self_certainty`."""

    kind: str = eqx.field(static=True)
    temperature: Float[Array, ""]
    clip: Float[Array, ""]

    def update(self, state: PyTree, step: StepView) -> tuple[PyTree, Scored]:
        """Weighs the step; the score is the mean probability."""
        dtype = step.log_prob.dtype
        mean = jnp.where(step.active, step.log_prob, -1) / jnp.maximum(step.count, 1).astype(dtype)
        value = mean
        if self.kind == "odds":
            value = clip_log_odds(log_odds_of_log(mean), self.clip)
        log_potential = jnp.where(step.active, value / self.temperature.astype(dtype), 0)
        score = jnp.where(step.active, jnp.exp(mean), jnp.nan)
        return state, Scored(log_potential, score, jnp.zeros_like(step.count))


def self_certainty(kind: str = "odds", *, temperature: Any = 1.0, clip: Any = 1e-7) -> SelfCertainty:
    r"""A heuristic potential: the geometric mean $\bar p_t$ of a step's token probabilities under the base law.

    Args:
        kind: "odds" for log G = log odds of the mean, "raw" for its logarithm; either divided by the temperature.
        temperature: > 0.
        clip: of "odds": the mean counts as at least `clip` and at most 1 - `clip`. In (0, 0.5).

    Raises:
        ValueError: an option is out of range.
    """
    if kind not in ("odds", "raw"):
        raise ValueError(f'`kind` is {kind!r}; needed "odds" or "raw"')
    return SelfCertainty(kind, positive("temperature", temperature), as_clip(clip))
