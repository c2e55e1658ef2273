"""What results call the scorers and potentials of a run, and which language models they are made of."""

from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from probinf.llm._judge import Judge
from probinf.llm._lm import LM
from probinf.llm._potential_types import Potential
from probinf.llm._potentials import NoPotential
from probinf.llm._reward import RewardPotential
from probinf.llm._scorers import DeviceScorer, Scorer
from probinf.llm._self_certainty import SelfCertainty
from probinf.llm._verifier import TextScorer


class Label(NamedTuple):
    """Names for the settings of a result.

    Attributes:
        potential: what weighs, as the user would name it.
        scorer: whom it asks; None where it asks nobody.
    """

    potential: str
    scorer: str | None


def models_in(part: PyTree) -> list[LM]:
    """The language models that a potential or a scorer is made of: each is fed the prompt of a run once.

    Args:
        part: bound to a prompt or not. One that reads texts holds an `LM` for its tokenizer alone, which does not
            count.
    """
    leaves = jax.tree.leaves(part, is_leaf=lambda leaf: isinstance(leaf, LM))
    return [leaf for leaf in leaves if isinstance(leaf, LM) and leaf.model is not None]


def prompt_tokens(potential: Potential, num_tokens: int) -> int:
    """How many tokens of a prompt all models of a potential are fed together.

    Args:
        potential: of a run.
        num_tokens: length of the prompt.
    """
    return num_tokens * len(models_in(potential))


def name_of(part: Any) -> str | None:
    """What to call a model, a function, a scorer, a potential or a mask; None for None."""
    if part is None or isinstance(part, str):
        return part
    if isinstance(part, LM):
        return part.name or type(part.model).__name__
    if isinstance(part, TextScorer | DeviceScorer):
        return name_of(part.function)
    models = models_in(part) if isinstance(part, Scorer | Potential) else []
    if models:
        return " and ".join(str(name_of(model)) for model in models)
    return getattr(part, "__name__", type(part).__name__)


def label_of(potential: Potential) -> Label:
    """The names of a potential and of what it asks.

    Args:
        potential: of a run; those that weigh nothing are named by what scores.
    """
    if isinstance(potential, RewardPotential):
        temperature = float(potential.temperature)
        at = "" if temperature == 1 else f" at temperature {temperature:g}"
        return Label(potential.kind + at, name_of(potential.scorer))
    if isinstance(potential, Judge):
        return Label("judge", name_of(potential))
    if isinstance(potential, SelfCertainty):
        return Label("self_certainty", None)
    if isinstance(potential, NoPotential):
        if potential.scores is None:
            return Label("none", None)
        scores = label_of(potential.scores)
        # Rewards of the prefixes are what is recorded where nothing else is asked for.
        return Label("none" if scores.potential == "prob" else f"none, scored by {scores.potential}", scores.scorer)
    models = models_in(potential)
    return Label(type(potential).__name__, name_of(potential) if models else None)
