r"""`RewardPotential`: a scorer's rewards as weights: odds, probability, ratio, or once at the end.

Puri et al. (2025), "A probabilistic inference approach to inference-time scaling of LLMs using particle-based Monte
Carlo methods". With reward $r_t = r(c, x_{1:t}) \in [0, 1]$, $r_0 = 1$ and temperature $\tau$:

| kind | log G_t | target | evidence at tau = 1 |
|---|---|---|---|
| "odds" | (log r_t - log(1 - r_t)) / tau | p prod_t (r_t / (1 - r_t))^(1/tau) | no probability |
| "prob" | log r_t / tau | p prod_t r_t^(1/tau) | P(all o_t = 1), o_t Bernoulli(r_t) |
| "ratio" | (log r_t - log r_{t-1}) / tau | p r_T^(1/tau) | E_p r_T |
| "final" | log r_T / tau at the end, else 0 | p r_T^(1/tau) | E_p r_T |

They are *different targets*, not better or worse samplers of one: "odds" is what the authors' code does, "prob" their
model as it is written. "ratio" and "final" have one target and reach it in different ways: "ratio" lets resampling act
on the way there, and dies for good where a prefix has reward 0; "final" never looks at a prefix.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from probinf.llm._odds import as_clip, clip_log_odds
from probinf.llm._potential_types import Potential, Prompt, Scored, StepView
from probinf.llm._scorers import Scorer
from probinf.llm._step_reader import positive

KINDS = ("odds", "prob", "ratio", "final")


class RewardState(NamedTuple):
    """The scorer's state, and log r of the text so far (of "ratio")."""

    scorer: PyTree
    log_reward: Float[Array, " n"]


class RewardPotential(Potential):
    """See `process_reward`."""

    scorer: Scorer
    kind: str = eqx.field(static=True)
    temperature: Float[Array, ""]
    clip: Float[Array, ""]

    @property
    def traceable(self) -> bool:
        """Whether the scorer is."""
        return self.scorer.traceable

    def for_model(self, lm: Any) -> "RewardPotential":
        """Prepares the scorer."""
        return dataclasses.replace(self, scorer=self.scorer.for_model(lm))

    def context(self) -> int | None:
        """That of the scorer."""
        return self.scorer.context()

    def bind(self, prompt: Prompt) -> "RewardPotential":
        """Binds the scorer."""
        return dataclasses.replace(self, scorer=self.scorer.bind(prompt))

    def start(self, num_rows: int, capacity: int) -> RewardState:
        """The scorer's state, and r_0 = 1."""
        return RewardState(self.scorer.start(num_rows, capacity), jnp.zeros(num_rows))

    def update(self, state: RewardState, step: StepView) -> tuple[RewardState, Scored]:
        """Scores the step, and makes weights of it."""
        # A row without a token found none that is allowed: its weight is zero, whatever is said of it.
        wanted = (step.ends if self.kind == "final" else step.active) & (step.count > 0)
        inner, reading = self.scorer.update(state.scorer, step, wanted)
        if reading.value.shape != step.count.shape:
            raise ValueError(
                f"`{type(self.scorer).__name__}` returned values of shape {reading.value.shape} for tokens "
                f"{step.tokens.shape}; needed {step.count.shape}, one a row"
            )
        value = reading.value.astype(step.log_prob.dtype)
        rewards = self.scorer.gives == "reward"
        # Not wanted rows may hold anything, infinities too, which derivatives would make NaN of.
        value = jnp.where(wanted, value, 0)
        log_reward = jax.nn.log_sigmoid(value) if rewards else value
        before = state.log_reward.astype(value.dtype)
        if self.kind == "ratio":
            log_reward = jnp.where(before == -jnp.inf, before, log_reward)  # what was impossible stays so
        log_potential = jnp.where(wanted, self._log_potential(value, log_reward, before), 0)
        kept = jnp.where(wanted, log_reward, before).astype(state.log_reward.dtype)
        score = jnp.where(wanted, jnp.exp(log_reward) if rewards else value, jnp.nan)
        return RewardState(inner, kept), Scored(log_potential, score, reading.num_tokens)

    def causes(self) -> Mapping[str, int]:
        """Those of the scorer."""
        return self.scorer.causes()

    def _log_potential(self, value: Array, log_reward: Array, before: Array) -> Array:
        if self.kind == "odds":
            log_potential = clip_log_odds(value, self.clip)
        elif self.kind == "ratio":
            # 0 / 0 is 0 here, and not NaN.
            log_potential = log_reward - jnp.where(before == -jnp.inf, 0, before)
        else:
            log_potential = log_reward
        return log_potential / self.temperature.astype(value.dtype)


def reward_potential(scorer: Scorer, kind: str, temperature: Any, clip: Any) -> RewardPotential:
    """A `RewardPotential`, its options checked.

    Args:
        scorer: gives r_t, or log weights that stand for log r_t (not with "odds").
        kind: one of `KINDS`.
        temperature: > 0.
        clip: in (0, 0.5).

    Raises:
        ValueError: an option is out of range, or does not go with what the scorer gives.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` is {kind!r}; needed one of {', '.join(map(repr, KINDS))}")
    if kind == "odds" and scorer.gives != "reward":
        raise ValueError(
            '`kind` is "odds", but the scorer gives log weights, which have no odds: take "prob" or "ratio"'
        )
    return RewardPotential(scorer, kind, positive("temperature", temperature), as_clip(clip))
