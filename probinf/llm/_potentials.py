r"""What weighs the steps of a language model: the constructors of all potentials, and `find_potential`.

| constructor | log G_t | target | evidence |
|---|---|---|---|
| `process_reward` | odds, prob, ratio, final | see `_reward` | see there |
| `judge` | log p_B(x_t) - log p(x_t) | p_B | 1 exactly |
| `self_certainty` | log odds or log of the mean token probability | a heuristic | no probability |
| `potential`, `verifier` | what a function says | p prod_t G_t | E_p prod_t G_t |
| `no_potential` | 0 | p | 1 |

A token mask is no potential but part of the proposal; its weight is the engine's affair (see `TokenMask`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from probinf.llm._judge import judge
from probinf.llm._lm import LM
from probinf.llm._lm_scorers import lm_scorer
from probinf.llm._potential_types import Potential, Prompt, Scored, StepView
from probinf.llm._reward import KINDS, RewardPotential, reward_potential
from probinf.llm._scorers import Scorer, device_scorer
from probinf.llm._self_certainty import self_certainty
from probinf.llm._verifier import text_scorer

NAMES = (*KINDS, "judge", "self_certainty", "none")


class NoPotential(Potential):
    """See `no_potential`."""

    scores: Potential | None

    @property
    def traceable(self) -> bool:
        """Whether what scores is."""
        return self.scores is None or self.scores.traceable

    def for_model(self, lm: Any) -> "NoPotential":
        """Prepares what scores."""
        return NoPotential(None if self.scores is None else self.scores.for_model(lm))

    def context(self) -> int | None:
        """That of what scores."""
        return None if self.scores is None else self.scores.context()

    def bind(self, prompt: Prompt) -> "NoPotential":
        """Binds what scores."""
        return NoPotential(None if self.scores is None else self.scores.bind(prompt))

    def start(self, num_rows: int, capacity: int) -> PyTree:
        """The state of what scores."""
        return None if self.scores is None else self.scores.start(num_rows, capacity)

    def update(self, state: PyTree, step: StepView) -> tuple[PyTree, Scored]:
        """Scores, and weighs nothing but what failed."""
        if self.scores is None:
            empty = jnp.full_like(step.log_prob, jnp.nan)
            return state, Scored(jnp.zeros_like(step.log_prob), empty, jnp.zeros_like(step.count))
        state, (log_potential, score, num_tokens) = self.scores.update(state, step)
        # A score that failed is no reason to keep the text.
        weight = jnp.where(jnp.isnan(log_potential), jnp.nan, jnp.zeros_like(log_potential))
        return state, Scored(weight, score, num_tokens)

    def causes(self) -> Mapping[str, int]:
        """Those of what scores."""
        return {} if self.scores is None else self.scores.causes()


def no_potential(scores: Potential | None = None) -> NoPotential:
    """Weighs nothing: the target is the base law p, with evidence 1. For best-of-N, votes and plain sampling.

    Args:
        scores: a potential whose scores are recorded and whose weights are not used (NaN stays NaN); or None.

    Raises:
        TypeError: `scores` is not a `Potential`.
    """
    if scores is not None and not isinstance(scores, Potential):
        raise TypeError(f"`scores` must be a `Potential` (such as `process_reward(scorer)`) or None, got {scores!r}")
    return NoPotential(scores)


def process_reward(scorer: Any, kind: str = "odds", *, temperature: Any = 1.0, clip: Any = 1e-7) -> RewardPotential:
    r"""A scorer's rewards $r_t$ of the prefixes as weights; the kinds have different targets.

    | kind | log G_t | target |
    |---|---|---|
    | "odds" | log odds of r_t / tau | p prod_t (r_t / (1 - r_t))^(1/tau) |
    | "prob" | log r_t / tau | p prod_t r_t^(1/tau) |
    | "ratio" | (log r_t - log r_{t-1}) / tau, r_0 = 1 | p r_T^(1/tau), resampled on the way |
    | "final" | log r_T / tau at the end, else 0 | p r_T^(1/tau), scored once |

    T is a text's own last step: it ended there, or the run did. A reward of 0 gives weight zero ("odds": the least odds
    that `clip` lets through). The recorded score is r_t ("final": of whole texts only).

    Args:
        scorer: a `Scorer`; an `LM` (see `lm_scorer`); or a function of prompt and text on the host (`text_scorer`).
        kind: which target.
        temperature: tau > 0.
        clip: of "odds": rewards count as at least `clip` and at most 1 - `clip`, so that odds are finite. In (0, 0.5).

    Raises:
        ValueError: an option is out of range.
        TypeError: `scorer` is none of these.
    """
    return reward_potential(find_scorer(scorer), kind, temperature, clip)


def final_reward(scorer: Any, *, temperature: Any = 1.0) -> RewardPotential:
    """The reward of whole texts, once: target p r_T^(1/tau), evidence E_p r_T at tau = 1.

    Args:
        scorer: as for `process_reward`. A function on the host is called for texts that end, and for no prefix.
        temperature: tau > 0.

    Raises:
        ValueError: `temperature` is out of range.
        TypeError: `scorer` is none of these.
    """
    return reward_potential(find_scorer(scorer), "final", temperature, 1e-7)


def potential(function: Callable[[StepView], Float[Array, " n"]]) -> RewardPotential:
    """A function on the device as potential: target p prod_t G_t. Its recorded score is log G_t.

    Args:
        function: `StepView -> log G_t [N]`, traceable; rows that are not active do not matter. For one that needs a
            memory, subclass `Potential`.

    Raises:
        ValueError: when called, the result is not of shape [N].
        TypeError: `function` is not callable.
    """
    return reward_potential(device_scorer(function, returns="log_weight"), "prob", 1.0, 1e-7)


def verifier(function: Callable[..., Any], *, kind: str = "prob", **options: Any) -> RewardPotential:
    """A function on the host as potential; as a check that returns True or False: target p 1[every prefix passes].

    Args:
        function: `function(prompt, text) -> number`, see `text_scorer` for what becomes of its faults.
        kind: as in `process_reward`. A function with `returns="log_weight"` stands for log r_t: "prob" adds it at each
            step, "ratio" its increase, "final" its last value.
        **options: of `text_scorer`: `returns`, `timeout`, `num_workers`, `batched`.

    Raises:
        ValueError: an option is out of range.
        TypeError: `function` is not callable, or an option is unknown.
    """
    return reward_potential(text_scorer(function, **options), kind, 1.0, 1e-7)


def find_scorer(scorer: Any) -> Scorer:
    """A `Scorer` itself, that of an `LM`, or that of a function of prompt and text.

    Args:
        scorer: one of them.

    Raises:
        TypeError: it is none of them.
    """
    if isinstance(scorer, Scorer):
        return scorer
    if isinstance(scorer, LM):
        return lm_scorer(scorer)
    if isinstance(scorer, Potential):
        raise TypeError(f"`scorer` is a potential, `{type(scorer).__name__}`: pass it as `potential`")
    if callable(scorer):
        return text_scorer(scorer)
    raise TypeError(f"`scorer` must be an `LM`, a function of (prompt, text) or a `Scorer`, got {scorer!r}")


def find_potential(potential: Any, scorer: Any, lm: LM) -> Potential:
    """The potential that a user's arguments mean, prepared for a model.

    Args:
        potential: a `Potential`; "odds", "prob", "ratio", "final" or "judge" of `scorer`; "self_certainty"; "none"
            (`scorer` then only scores); or None for "odds" if there is a scorer, else "none".
        scorer: an `LM`, a function of (prompt, text), a `Scorer`, or None.
        lm: the model that proposes.

    Returns:
        The potential, not bound to a prompt yet.

    Raises:
        ValueError: the two do not go together, the name is unknown, or the scorer cannot read the model's tokens.
        TypeError: an argument is of a wrong type.
    """
    if isinstance(potential, Potential):
        if scorer is not None:
            raise ValueError('`potential` brings its own scorer: leave out `scorer`, or name a kind such as "odds"')
        return potential.for_model(lm)
    if potential is None:
        potential = "none" if scorer is None else "odds"
    if not isinstance(potential, str):
        mend = " (for a function: `llm.potential(f)` on the device, `llm.verifier(f)` on texts)" * callable(potential)
        raise TypeError(f"`potential` must be a `Potential` or a name, got {potential!r}{mend}")
    if potential not in NAMES:
        raise ValueError(f"`potential` is {potential!r}; needed a `Potential` or one of {', '.join(map(repr, NAMES))}")
    return _named(potential, scorer).for_model(lm)


def _named(name: str, scorer: Any) -> Potential:
    if name == "self_certainty":
        if scorer is not None:
            raise ValueError('`potential="self_certainty"` asks no scorer: leave out `scorer`')
        return self_certainty()
    if name == "none":
        return no_potential(None if scorer is None else process_reward(scorer, "prob"))
    if scorer is None:
        raise ValueError(f"`potential` is {name!r}, which needs a `scorer`: an `LM`, or a function of (prompt, text)")
    if name == "judge":
        return judge(scorer)
    return process_reward(scorer, name)
