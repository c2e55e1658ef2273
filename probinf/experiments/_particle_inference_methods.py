"""The filters and searches that the experiment on particle inference compares, each writing N solutions' tokens."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from probinf import llm
from probinf.experiments._particle_inference_raters import RATINGS, Rating

Options = Callable[[int, Any, Rating], dict[str, Any]]


class Method(NamedTuple):
    """A method as the experiment calls it.

    Attributes:
        run: `(key, lm, prompts, num_particles=, ..., step=, max_steps=) -> GenerationsBatch`.
        options: `(N, rater, rating) -> options`, so that it writes about N solutions' worth of tokens.
        aggregate: how the scores of its steps become one; None for that of the rating.
        raters: whose rates it can use, of `RATINGS`.
        asks_model: whether the rater is to be the language model itself and no scorer.
    """

    run: Callable[..., Any]
    options: Options
    aggregate: str | None = None
    raters: tuple[str, ...] = tuple(RATINGS)
    asks_model: bool = False


def _weighted(potential: str, **options: Any) -> Options:
    return lambda count, rater, rating: {"num_particles": count, "scorer": rater, "potential": potential, **options}


def _searched(count: int, rater: Any, rating: Rating) -> dict[str, Any]:
    return {"num_particles": count, "scorer": rater, "width": min(4, count), "aggregate": rating.aggregate}


def _twisted(count: int, rater: Any, rating: Rating) -> dict[str, Any]:
    del rating
    return {"num_particles": count, "twist": rater}


def _waste_free(count: int, rater: Any, rating: Rating) -> dict[str, Any]:
    return {**_weighted("odds")(count, rater, rating), "chain_length": min(4, count)}


def _iterated(passes: int, **options: Any) -> Options:
    """A first filter and further passes share the tokens of N solutions."""

    def found(count: int, rater: Any, rating: Rating) -> dict[str, Any]:
        del rating
        return {"num_particles": max(2, count // passes), "scorer": rater, "potential": "odds", **options}

    return found


METHODS: Mapping[str, Method] = {
    # Resampled at every step, as published: with an ESS of 5 of 8 three rows would still go on in vain.
    "odds": Method(llm.particle_filter, _weighted("odds", ess_threshold=1.0)),
    "rarely": Method(llm.particle_filter, _weighted("odds", ess_threshold=0.5)),
    "prob": Method(llm.particle_filter, _weighted("prob", ess_threshold=1.0)),
    "ratio": Method(llm.particle_filter, _weighted("ratio", ess_threshold=1.0)),
    "judge": Method(llm.particle_filter, _weighted("judge", ess_threshold=0.5), "last", ("judge",), True),
    "beam": Method(llm.beam, _searched),
    "dvts": Method(llm.dvts, _searched),
    "tempered": Method(llm.tempered_filter, _weighted("odds")),
    "entropic": Method(llm.entropic_filter, _weighted("odds")),
    "particle-gibbs": Method(llm.particle_gibbs, _iterated(2, num_iterations=1)),
    "parallel-tempering": Method(
        llm.parallel_tempering, _iterated(6, num_iterations=2, inverse_temperatures=(1.0, 0.5))
    ),
    # Its target is p r_T; the rate of what is written so far is the guess of the last one.
    "twisted": Method(llm.twisted_smc, _twisted, "last", ("reward", "noisy-reward")),
    "waste-free": Method(llm.waste_free, _waste_free),
}
