r"""`judge`: steers a model to another one, $\log G_t = \log p_B(x_t | c, x_{1:t-1}) - \log p(x_t | c, x_{1:t-1})$.

The product over steps is $p_B(x) / p(x)$, so that the target is $p_B$ and the evidence is $E_p[p_B / p] = 1$ exactly,
wherever p is positive on the texts of $p_B$: speculative sampling seen as importance sampling. A base law that filters
tokens (top-k, top-p, min-p) is not positive there: the evidence is then the probability of its texts under $p_B$. Long
texts make these weights uneven; resampling on the way keeps particles alive.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf.llm._lm import LM
from probinf.llm._potential_types import Potential, Prompt, Scored, StepView
from probinf.llm._step_reader import CHUNK, ReaderState, StepReader, check_tokens, num_fed, step_reader


class JudgeState(NamedTuple):
    """The reader's state, and log p_B of the text so far."""

    reader: ReaderState
    log_prob: Float[Array, " n"]


class Judge(Potential):
    """See `judge`."""

    reader: StepReader

    def for_model(self, lm: Any) -> "Judge":
        """Checks the tokenizers."""
        check_tokens(self.reader.lm, lm, "judge")
        return self

    def context(self) -> int:
        """That of the judge."""
        return self.reader.lm.max_length

    def bind(self, prompt: Prompt) -> "Judge":
        """Reads the prompt."""
        return Judge(self.reader.bind(prompt))

    def start(self, num_rows: int, capacity: int) -> JudgeState:
        """Empty caches, and log p_B = 0."""
        state = self.reader.start(num_rows, capacity)
        return JudgeState(state, jnp.zeros(num_rows, state.log_probs.dtype))

    def update(self, state: JudgeState, step: StepView) -> tuple[JudgeState, Scored]:
        """Reads the step; the score is log p_B of the text so far."""
        reader, log_prob = self.reader.read(state.reader, step)
        total = state.log_prob + log_prob
        dtype = step.log_prob.dtype
        log_potential = jnp.where(step.active, log_prob.astype(dtype) - step.log_prob, 0)
        score = jnp.where(step.active, total.astype(dtype), jnp.nan)
        return JudgeState(reader, total), Scored(log_potential, score, num_fed(step))


def judge(lm: LM, *, temperature: Any = 1.0, chunk: int = CHUNK) -> Judge:
    r"""A potential that steers a model to another one: target $p_B$, evidence exactly 1.

    Its score is $\log p_B$ of the text so far, in nats.

    Args:
        lm: the other model, with the tokenizer of the one that proposes.
        temperature: of $p_B$; > 0. The base law's is the run's: give both the same to steer to a tempered judge.
        chunk: tokens of a row that go through the judge in one pass, >= 1; smaller needs less memory. Derivatives
            need one that holds a whole step.

    Raises:
        ValueError: an option is out of range; or, in a run, the tokenizers differ.
        TypeError: `lm` is not an `LM`.
    """
    return Judge(step_reader(lm, temperature, chunk))
