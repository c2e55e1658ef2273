"""Solutions that models write, with the truth about every step: what the reward model learns from."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from probinf.core import PRNGKey
from probinf.llm import _chains as chains
from probinf.models.lm import LanguageModel


class Samples(NamedTuple):
    """Solutions and their truth.

    Attributes:
        problem: token ids [n, 27].
        solution: token ids [n, 24], as they were drawn.
        labels: [n, 12], whether the solution is right up to and with each step.
    """

    problem: Int[Array, "n p"]
    solution: Int[Array, "n s"]
    labels: Bool[Array, "n t"]


@eqx.filter_jit
def draw_samples(key: PRNGKey, model: LanguageModel, temperature: Float[Array, ""], count: int) -> Samples:
    """Draws a solution for each of `count` fresh problems, token by token with the cache, at a temperature."""
    problem_key, noise_key = jax.random.split(key)
    problem = chains.problem_tokens(problem_key, count)
    # Numbers from a table: keys are not split inside a loop under vmap.
    noise = jax.random.gumbel(noise_key, (count, chains.SOLUTION_LENGTH, len(chains.VOCABULARY)))
    solution = jax.vmap(lambda prompt, gumbel: _write(model, prompt, gumbel, temperature))(problem, noise)
    return Samples(problem, solution, prefixes_correct(problem, solution))


def _write(model: LanguageModel, prompt: Array, noise: Array, temperature: Array) -> Int[Array, " s"]:
    """One solution; the largest of logits with Gumbel noise is a draw from their softmax."""
    shared, output = model.prefill(prompt, prompt.shape[0])

    def step(carry: tuple, gumbel: Array) -> tuple[tuple, Array]:
        cache, logits = carry
        token = jnp.argmax(logits / temperature + gumbel).astype(jnp.int32)
        cache, output = model.advance(shared, cache, token[None, None], jnp.ones(1, jnp.int32))
        return (cache, output.logits[0, 0]), token

    empty = model.empty_cache(1, noise.shape[0])
    return jax.lax.scan(step, (empty, output.logits), noise)[1]


def prefixes_correct(problem: Int[Array, "*b p"], solution: Int[Array, "*b s"]) -> Bool[Array, "*b t"]:
    """Whether a solution is right up to and with each step: its results, and what ends the steps."""
    written = solution[..., ::2]
    ended = solution[..., 1::2] == chains.solution_tokens(written)[..., 1::2]
    wrong = ~(chains.steps_correct(problem, written) & ended)
    return jnp.cumsum(wrong.astype(jnp.int32), axis=-1) == 0


def join(samples: list[Samples]) -> Samples:
    """Several sets of samples as one."""
    return Samples(*(jnp.concatenate(parts) for parts in zip(*samples, strict=True)))
