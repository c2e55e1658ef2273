r"""Who rates the steps of a chain: a judge, a trained reward model, and both with errors of a stated size.

The shipped judge and reward model are right nearly always, which makes any choice among solutions easy. Rates with
noise are $\operatorname{logit} r_t$, cut to $\pm 6$, plus $\sigma z$ with z standard normal and a function of problem
and text (`llm.noisy_scorer`): the same solution gets the same rate from whoever asks.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from probinf import llm

LIMIT = 6.0  # of log odds before noise: a rate of .9975


class Models(NamedTuple):
    """The shipped models: a weak proposer, a strong one that judges, and a trained reward model."""

    proposer: llm.LM
    judge: llm.LM
    reward: llm.LM


class Rating(NamedTuple):
    """Who rates steps, and how the rates of a solution's steps become one.

    Attributes:
        model: a field of `Models`.
        aggregate: of `Generations.select`.
        short, title: for people.
        noise: sigma, on log odds.
        limit: what log odds are cut to first.
    """

    model: str
    aggregate: str
    short: str
    title: str
    noise: float = 0.0
    limit: float = math.inf


JUDGED, REWARDED = (
    "the probability that a stronger model gives it",
    "a model trained to tell right beginnings from wrong",
)
_OFF = "{title}, its log odds cut to ±{limit:g} and off by normal noise of standard deviation {noise:g}"


def _noisy(model: str, aggregate: str, who: str, title: str, noise: float) -> Rating:
    title = _OFF.format(title=title, limit=LIMIT, noise=noise)
    return Rating(model, aggregate, f"{who} with noise {noise:g}", title, noise, LIMIT)


RATINGS: Mapping[str, Rating] = {
    # A judge rates each step by itself, a reward model the solution up to and with it.
    "judge": Rating("judge", "prod", "a judge", JUDGED),
    "noisy-judge": _noisy("judge", "prod", "a judge", JUDGED, 1.5),
    "noisier-judge": _noisy("judge", "prod", "a judge", JUDGED, 4.0),
    "reward": Rating("reward", "last", "a trained reward model", REWARDED),
    "noisy-reward": _noisy("reward", "last", "a trained reward model", REWARDED, 1.5),
}


def load_models() -> Models:
    """The checkpoints that come with the package."""
    return Models(llm.load("chains"), llm.load("chains-strong"), llm.load("chains-reward"))


def rater(models: Models, rating: Rating) -> llm.Scorer:
    """The scorer of a rating; one program serves all noises, none among them."""
    return llm.noisy_scorer(getattr(models, rating.model), noise=rating.noise, limit=rating.limit)
