"""Ours: `llm.particle_filter` as a user calls it, checks and texts and all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.llm._problems import CONTINUED, STEP, Problem
from probinf import llm

PACKAGES = ("jax", "jaxlib", "equinox")


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable:
    """A function from seed to log evidence and details, compiled at its first call; `variant` is "particle_filter"."""
    del variant
    proposer, judge = llm.load(problem.proposer), llm.load(problem.judge)
    proposer = llm.LM(proposer.model, proposer.tokenizer)  # no stops: all write the same number of tokens
    fixed = _log_prob(proposer, problem.prompt)

    def run(seed: int):
        out = llm.particle_filter(
            jax.random.key(seed),
            proposer,
            problem.prompt,
            scorer=judge,
            potential="judge",
            num_particles=num_particles,
            step=llm.block(STEP),
            max_steps=problem.num_steps,
            ess_threshold=1.0,
        )
        return float(out.log_evidence), lambda: {"tokens": int(out.tokens_used), "log_prob": fixed}

    return run


def _log_prob(lm: llm.LM, prompt: str) -> float:
    start, ids = len(lm.encode(prompt)), jnp.asarray(lm.encode(prompt + CONTINUED))
    log_probs = jax.nn.log_softmax(lm.model(ids).logits, axis=-1)[start - 1 : -1]
    return float(jnp.sum(jnp.take_along_axis(log_probs, ids[start:, None], axis=-1)))
