r"""Scorers that are language models: a value head's logit of $r_t$, or $r_t = p_B(x_t \mid c, x_{1:t-1})$.

A model with a value head was trained to judge texts; the logit at a step's last token is the log odds of its reward.
One without can still say how probable it finds a step (the judge of SpecReason, Pan et al. 2025, and of the chains).
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from probinf.core import whole_number
from probinf.llm._lm import LM
from probinf.llm._odds import log_odds_of_log
from probinf.llm._potential_types import Prompt, StepView
from probinf.llm._scorers import Reading, Scorer
from probinf.llm._step_reader import CHUNK, StepReader, check_tokens, in_blocks, last_of, num_fed, step_reader


class ValueHead(Scorer):
    """See `lm_scorer`. The prompt's cache is None before `bind`."""

    lm: LM
    chunk: int = eqx.field(static=True)
    prompt: PyTree[Any] = None

    def for_model(self, lm: Any) -> "ValueHead":
        """Checks the tokenizers."""
        check_tokens(self.lm, lm, "scorer")
        return self

    def context(self) -> int:
        """Longest prompt and text together."""
        return self.lm.max_length

    def bind(self, prompt: Prompt) -> "ValueHead":
        """Reads the prompt."""
        return ValueHead(self.lm, self.chunk, self.lm.model.prefill(prompt.tokens, prompt.length)[0])

    def start(self, num_rows: int, capacity: int) -> PyTree:
        """Empty caches."""
        return self.lm.empty_cache(num_rows, capacity)

    def update(self, state: PyTree, step: StepView, wanted: Bool[Array, " n"]) -> tuple[PyTree, Reading]:
        """Reads the step's tokens; the value is that of the last one."""
        del wanted  # the cache has to see every token

        def block(
            tokens: Int[Array, "n s"], count: Int[Array, " n"], carry: tuple[PyTree, Array]
        ) -> tuple[PyTree, Array]:
            cache, value = carry
            cache, output = self.lm.model.advance(self.prompt, cache, tokens, count)
            if output.values is None or output.values.shape != tokens.shape:
                shape = None if output.values is None else output.values.shape
                raise ValueError(
                    f"the scorer's values have shape {shape} for tokens {tokens.shape}: needed one a token"
                )
            return cache, jnp.where(count > 0, last_of(output.values, count).astype(value.dtype), value)

        value = jnp.zeros_like(step.log_prob)
        state, value = in_blocks(block, step.tokens, num_fed(step), (state, value), self.chunk, step.axis_name)
        return state, Reading(value, num_fed(step))


class StepProbability(Scorer):
    """See `lm_scorer`."""

    reader: StepReader

    def for_model(self, lm: Any) -> "StepProbability":
        """Checks the tokenizers."""
        check_tokens(self.reader.lm, lm, "scorer")
        return self

    def context(self) -> int:
        """Longest prompt and text together."""
        return self.reader.lm.max_length

    def bind(self, prompt: Prompt) -> "StepProbability":
        """Reads the prompt."""
        return StepProbability(self.reader.bind(prompt))

    def start(self, num_rows: int, capacity: int) -> PyTree:
        """Empty caches."""
        return self.reader.start(num_rows, capacity)

    def update(self, state: PyTree, step: StepView, wanted: Bool[Array, " n"]) -> tuple[PyTree, Reading]:
        """Reads the step's tokens."""
        del wanted  # the cache has to see every token
        state, log_prob = self.reader.read(state, step)
        return state, Reading(log_odds_of_log(log_prob.astype(step.log_prob.dtype)), num_fed(step))


def lm_scorer(lm: LM, *, reward: str | None = None, temperature: Any = 1.0, chunk: int = CHUNK) -> Scorer:
    r"""A scorer from a language model, run in the same program and fed each new token once.

    Args:
        lm: a model with the tokenizer of the one that proposes. It has a value head if its model's attribute `value`
            is there and not None.
        reward: "value", its value head's logit at the step's last token; or "probability", $r_t = p_B(x_t | ...)$ of
            the step's tokens; None for "value" if it has a value head.
        temperature: of $p_B$; > 0. A value head has none.
        chunk: tokens of a row that go through the model in one pass, >= 1; smaller needs less memory. Derivatives
            need one that holds a whole step.

    Returns:
        A `Scorer` that gives rewards.

    Raises:
        ValueError: an option is out of range, or the model has no value head.
        TypeError: `lm` is not an `LM`.
    """
    reader = step_reader(lm, temperature, chunk)
    has_head = getattr(lm.model, "value", None) is not None
    reward = reward if reward is not None else "value" if has_head else "probability"
    if reward == "probability":
        return StepProbability(reader)
    if reward != "value":
        raise ValueError(f'`reward` is {reward!r}; needed "value", "probability" or None')
    if not has_head:
        raise ValueError(f'the model {lm.name!r} has no value head: take `reward="probability"`, or another model')
    return ValueHead(lm, whole_number("chunk", chunk, 1))
