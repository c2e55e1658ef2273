r"""`noisy_scorer`: a scorer that errs, $\operatorname{logit} r_t + \sigma z(c, x_{1:t})$, with z standard normal.

The noise is a function of prompt and text: the same text always gets the same rate, as from a trained model, and texts
that differ in one token get noises that are independent for all one can see. Rates that err by chance would be no
rates: asked twice they would answer twice. It tells how methods fare with a rater of any quality between an oracle
($\sigma = 0$) and a coin.

z comes from the sum over all tokens of threefry words of (seed; place, token), which follows a text token by token
(Zobrist 1970, "A new hashing method with application for game playing"; Salmon et al. 2011 for threefry).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from probinf.core import is_concrete, whole_number
from probinf.core._particle_keys import threefry
from probinf.llm._potential_types import Prompt, StepView
from probinf.llm._potentials import find_scorer
from probinf.llm._scorers import Reading, Scorer
from probinf.llm._step_reader import num_fed

_PROMPT, _TEXT = 0x50524F4D, 0x54455854  # second words of the keys: a token means something else in either place


class NoisyState(NamedTuple):
    """The scorer's state, and two words that stand for prompt and text so far."""

    scorer: PyTree
    words: UInt32[Array, "n 2"]


class Noisy(Scorer):
    """See `noisy_scorer`. The prompt's words are None before `bind`."""

    scorer: Scorer
    noise: Float[Array, ""]
    limit: Float[Array, ""]
    seed: UInt32[Array, ""]
    prompt: UInt32[Array, " 2"] | None = None

    @property
    def traceable(self) -> bool:
        """Whether the scorer is."""
        return self.scorer.traceable

    def for_model(self, lm: Any) -> "Noisy":
        """Prepares the scorer."""
        return dataclasses.replace(self, scorer=self.scorer.for_model(lm))

    def context(self) -> int | None:
        """That of the scorer."""
        return self.scorer.context()

    def bind(self, prompt: Prompt) -> "Noisy":
        """Binds the scorer, and makes words of the prompt."""
        places = jnp.arange(prompt.tokens.shape[0], dtype=jnp.int32)
        words = _words(self.seed, _PROMPT, places[None], prompt.tokens[None], prompt.length[None])[0]
        return dataclasses.replace(self, scorer=self.scorer.bind(prompt), prompt=words)

    def start(self, num_rows: int, capacity: int) -> NoisyState:
        """The scorer's state, and the prompt's words."""
        if self.prompt is None:
            raise TypeError("`start` before `bind`: bind the scorer to a prompt first")
        return NoisyState(self.scorer.start(num_rows, capacity), jnp.broadcast_to(self.prompt, (num_rows, 2)))

    def update(self, state: NoisyState, step: StepView, wanted: Bool[Array, " n"]) -> tuple[NoisyState, Reading]:
        """Reads the step, and errs."""
        scorer, reading = self.scorer.update(state.scorer, step, wanted)
        window = jnp.arange(step.tokens.shape[1], dtype=step.length.dtype)
        places = (step.length - step.count)[:, None] + window[None]
        words = state.words + _words(self.seed, _TEXT, places, step.tokens, num_fed(step))
        limit, noise = self.limit.astype(reading.value.dtype), self.noise.astype(reading.value.dtype)
        value = jnp.clip(reading.value, -limit, limit) + noise * _normal(words).astype(reading.value.dtype)
        return NoisyState(scorer, words), Reading(value, reading.num_tokens)

    def causes(self) -> Mapping[str, int]:
        """Those of the scorer."""
        return self.scorer.causes()


def noisy_scorer(scorer: Any, *, noise: Any, limit: Any = float("inf"), seed: int = 0) -> Noisy:
    r"""A scorer whose log odds are off by normal noise, the same whenever it sees the same prompt and text.

    Another noise, limit or seed recompiles nothing.

    Args:
        scorer: a `Scorer`; an `LM` (see `lm_scorer`); or a function of prompt and text on the host (`text_scorer`).
        noise: sigma >= 0, standard deviation of the noise on the log odds; or a traced scalar.
        limit: the log odds are first cut to [-limit, limit], > 0, so that noise can matter to a rater that is sure.
        seed: another one is another rater, in 0 .. 2^32 - 1.

    Raises:
        ValueError: a number is out of range, or the scorer gives log weights, which have no odds.
        TypeError: `scorer` is none of these.
    """
    found = find_scorer(scorer)
    if found.gives != "reward":
        raise ValueError("`scorer` gives log weights, which have no odds: take one that gives rewards")
    if is_concrete(noise) and not 0 <= float(noise) < float("inf"):
        raise ValueError(f"`noise` is {noise!r}; needed a finite number, 0 or more")
    if is_concrete(limit) and not float(limit) > 0:
        raise ValueError(f"`limit` is {limit!r}; needed a number above 0")
    seed = whole_number("seed", seed)
    if seed >= 2**32:
        raise ValueError(f"`seed` is {seed}; needed a whole number below 2**32")
    return Noisy(found, jnp.asarray(noise, float), jnp.asarray(limit, float), jnp.asarray(seed, jnp.uint32))


def _words(
    seed: UInt32[Array, ""], kind: int, places: Int[Array, "#n s"], tokens: Int[Array, "n s"], count: Int[Array, " n"]
) -> UInt32[Array, "n 2"]:
    """The sum of the words of the first `count` tokens of each row; addition has no order, but places have."""
    shape = tokens.shape
    counter = (jnp.broadcast_to(places, shape).astype(jnp.uint32), tokens.astype(jnp.uint32))
    key = (jnp.broadcast_to(seed, shape), jnp.full(shape, kind, jnp.uint32))
    words = jnp.stack(threefry(key, counter), axis=-1)
    real = jnp.arange(shape[1], dtype=count.dtype)[None] < count[:, None]
    return jnp.sum(jnp.where(real[..., None], words, 0), axis=1, dtype=jnp.uint32)


def _normal(words: UInt32[Array, "n 2"]) -> Float[Array, " n"]:
    """A standard normal number of each pair of words."""
    zero = jnp.zeros_like(words[:, 0])
    bits, _ = threefry((words[:, 0], words[:, 1]), (zero, zero))
    # Symmetric about 1/2, and never 0 or 1: the most extreme of 2^23 numbers are 5.3 standard deviations away.
    uniform = ((bits >> jnp.uint32(9)).astype(float) + 0.5) * 2.0**-23
    return jax.scipy.special.ndtri(uniform)
