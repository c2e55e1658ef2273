r"""`twisted_smc`: a particle filter that resamples by a guess of what the rest of the text will be worth.

With a twist $\psi_t(x_{1:t}) \approx E[\prod_{s > t} G_s \mid x_{1:t}]$ ancestors are drawn in proportion to
$W_t \psi_t$ and copies keep the weight $1/\psi_t$, so that final weights are those of $p \prod_t G_t$ whatever $\psi$
is. For a final potential $\phi$ and resampling at every step what is drawn by is $\psi_t / \psi_{t-1}$, and
$\phi / \psi_{T-1}$ at the end: the twisted SMC of Zhao, Brekelmans, Makhzani, Grosse 2024, "Probabilistic inference in
language models via twisted sequential Monte Carlo", with the base law as proposal (Pitt, Shephard 1999 call it
auxiliary). With the conditional expectation itself as twist, what goes on after step t has the law of the target's own
first t steps.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from probinf.core import PRNGKey, ess_below, resample
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._labels import Label, label_of, name_of
from probinf.llm._lm import LM
from probinf.llm._options import RunOptions, one_or_several, part, resampling_of, task_of
from probinf.llm._potential_types import Potential, Prompt, Scored, StepView
from probinf.llm._potentials import find_potential, find_scorer
from probinf.llm._rows import Rows
from probinf.llm._scorers import Scorer
from probinf.llm._task import run_task
from probinf.samplers import AbstractScheme


class TwistState(NamedTuple):
    """States of the potential and of the twist's scorer."""

    potential: PyTree
    scorer: PyTree


class Twisted(Potential):
    """A potential whose score is log psi of a scorer; without a potential, the twist at a text's end is one.

    Attributes:
        scorer: gives psi: rewards, or log weights.
        potential: what weighs, or None.
    """

    scorer: Scorer
    potential: Potential | None

    @property
    def traceable(self) -> bool:
        """Whether both may run under `jit`."""
        return self.scorer.traceable and (self.potential is None or self.potential.traceable)

    def for_model(self, lm: Any) -> "Twisted":
        """Prepares both."""
        potential = None if self.potential is None else self.potential.for_model(lm)
        return Twisted(self.scorer.for_model(lm), potential)

    def context(self) -> int | None:
        """The most tokens that both can read."""
        theirs = [self.scorer.context(), None if self.potential is None else self.potential.context()]
        known = [most for most in theirs if most is not None]
        return min(known) if known else None

    def bind(self, prompt: Prompt) -> "Twisted":
        """Binds both."""
        potential = None if self.potential is None else self.potential.bind(prompt)
        return Twisted(self.scorer.bind(prompt), potential)

    def start(self, num_rows: int, capacity: int) -> TwistState:
        """The states of both."""
        potential = None if self.potential is None else self.potential.start(num_rows, capacity)
        return TwistState(potential, self.scorer.start(num_rows, capacity))

    def update(self, state: TwistState, step: StepView) -> tuple[TwistState, Scored]:
        """Weighs one step, and scores it by the twist."""
        scorer, reading = self.scorer.update(state.scorer, step, step.active)
        value = reading.value.astype(step.log_prob.dtype)
        log_psi = jax.nn.log_sigmoid(value) if self.scorer.gives == "reward" else value
        log_psi = jnp.where(step.active, log_psi, jnp.nan)
        if self.potential is None:
            log_potential = jnp.where(step.ends, log_psi, 0)
            return TwistState(None, scorer), Scored(log_potential, log_psi, reading.num_tokens)
        potential, scored = self.potential.update(state.potential, step)
        fed = scored.num_tokens + reading.num_tokens
        return TwistState(potential, scorer), Scored(scored.log_potential, log_psi, fed)

    def causes(self) -> Mapping[str, int]:
        """What failed on the host, in either."""
        theirs = {} if self.potential is None else self.potential.causes()
        return {**self.scorer.causes(), **theirs}


def last_log_psi(step: Int[Array, ""], rows: Rows) -> Float[Array, " n"]:
    """Log psi of texts of `step - 1` steps; 0 for those that have ended, whose worth is in their weight."""
    found = jax.lax.dynamic_index_in_dim(rows.scores, jnp.maximum(step - 2, 0), axis=1, keepdims=False)
    return jnp.where(rows.finished, jnp.zeros_like(found), found)


@one_or_several
def twisted_smc(
    key: PRNGKey,
    lm: LM,
    prompt: Any,
    *,
    num_particles: int,
    twist: Any,
    resampling: str | AbstractScheme = "systematic",
    ess_threshold: Any = 0.5,
    **options: Unpack[RunOptions],
) -> Generations | GenerationsBatch:
    r"""A particle filter that draws ancestors by their weights times a twist $\psi_t$, and takes it out of the weights.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 1.
        twist: $\psi_t$: an `LM` whose value head gives the reward to be expected; a function of (prompt, text); or a
            `Scorer`, such as `device_scorer(f, returns="log_weight")` with $f$ a function of a `StepView`. A $\psi$ of
            zero counts as the smallest of the others.
        resampling: "multinomial", "systematic", "stratified", "residual", "ssp" or a scheme.
        ess_threshold: resamples where the ESS of the weights drawn by is below this fraction of N.
        **options: as for `particle_filter`. Without `scorer` and `potential` the target is $p \, \psi_T$: the twist of
            whole texts is what they are weighed by.

    Returns:
        `Generations`, or a `GenerationsBatch` for a list of prompts. Its `scores` are $\log \psi$.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    text, run = part(options)
    found = None
    if text.get("potential") is not None or text.get("scorer") is not None:
        found = find_potential(text.pop("potential", None), text.pop("scorer", None), lm)
    guess = find_scorer(twist)
    task = task_of(lm, prompt, {**text, "potential": Twisted(guess, found), "scorer": None})
    drawing = resampling_of(resampling, ess_threshold)
    label = Label("twist", None) if found is None else label_of(found)
    return run_task(
        key,
        task,
        resample(drawing.scheme, when=ess_below(drawing.threshold), look_ahead=last_log_psi),
        num_particles=num_particles,
        method="twisted_smc",
        scheme=drawing.name,
        settings={**label._asdict(), "twist": name_of(guess), **drawing.settings},
        **run,
    )
