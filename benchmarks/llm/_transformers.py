"""Loops on `transformers` in PyTorch, with the same models, weights and resampling; three ways of using the caches.

"cached": all particles in one batch; proposer and judge keep their caches, are fed each token once, and the caches are
copied with the particles. "batched": all particles in one batch, but at every step the proposer reads each text anew
(within a step it has its cache), and so does the judge, as loops do that send texts to a server. "one by one": the same
with one particle a call, as the reference implementation of Puri et al. does.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.llm._problems import CONTINUED, STEP, Problem, log_mean_exp, systematic

PACKAGES = ("transformers", "torch")


def _load(folder: Any) -> Any:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def _log_probs(model: Any, ids: torch.Tensor, cache: Any = None, num: int = 1) -> tuple[torch.Tensor, Any]:
    """Log probabilities of the tokens after each of the last `num` ones, and the cache."""
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=num)
    return torch.log_softmax(out.logits.float(), dim=-1), out.past_key_values


def _drawn(log_probs: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return torch.multinomial(log_probs.exp(), 1, generator=random)


def _taken(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.gather(log_probs, -1, tokens[..., None])[..., 0]


class _Loops:
    def __init__(self, problem: Problem, num_particles: int) -> None:
        self.problem, self.count = problem, num_particles
        self.proposer, self.judge = _load(problem.proposer), _load(problem.judge)
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(problem.proposer / "tokenizer.json"))
        self.prompt = torch.tensor([self.tokenizer.encode(problem.prompt)])

    def log_prob(self) -> float:
        """Of a fixed text."""
        ids = torch.tensor([self.tokenizer.encode(self.problem.prompt + CONTINUED)])
        start = self.prompt.shape[1]
        log_p, _ = _log_probs(self.proposer, ids, None, ids.shape[1])
        return float(_taken(log_p[:, start - 1 : -1], ids[:, start:]).sum())

    def cached(self, random: torch.Generator, uniforms: np.ndarray) -> tuple[float, torch.Tensor]:
        """One batch, caches kept and copied."""
        ids = self.prompt.repeat(self.count, 1)
        log_p, cache = _log_probs(self.proposer, ids, DynamicCache())
        judge_log_p, judge_cache = _log_probs(self.judge, ids, DynamicCache())
        log_p, judge_log_p = log_p[:, -1], judge_log_p[:, -1]
        log_weights, log_evidence = np.zeros(self.count), 0.0
        for uniform in uniforms:
            if log_weights.any():
                log_evidence += log_mean_exp(log_weights)
                order = torch.from_numpy(systematic(uniform, log_weights))
                ids, log_p, judge_log_p = ids[order], log_p[order], judge_log_p[order]
                cache.reorder_cache(order)
                judge_cache.reorder_cache(order)
            step, total = [], torch.zeros(self.count)
            for _ in range(STEP):
                token = _drawn(log_p, random)
                total = total + _taken(log_p, token[:, 0])
                step.append(token)
                log_p, cache = _log_probs(self.proposer, token, cache)
                log_p = log_p[:, -1]
            tokens = torch.cat(step, dim=1)
            ids = torch.cat([ids, tokens], dim=1)
            scored, judge_cache = _log_probs(self.judge, tokens, judge_cache, STEP)
            before = torch.cat([judge_log_p[:, None], scored[:, :-1]], dim=1)
            judge_log_p = scored[:, -1]
            log_weights = (_taken(before, tokens).sum(1) - total).double().numpy()
        return log_evidence + log_mean_exp(log_weights), ids

    def batched(self, random: torch.Generator, uniforms: np.ndarray, size: int = 0) -> tuple[float, torch.Tensor]:
        """Texts read anew at every step, `size` particles a call; 0 for all of them."""
        size = size or self.count
        ids = self.prompt.repeat(self.count, 1)
        log_weights, log_evidence = np.zeros(self.count), 0.0
        for uniform in uniforms:
            if log_weights.any():
                log_evidence += log_mean_exp(log_weights)
                ids = ids[torch.from_numpy(systematic(uniform, log_weights))]
            parts = [self._step(part, random) for part in ids.split(size)]
            ids = torch.cat([part for part, _ in parts])
            total = torch.cat([part for _, part in parts])
            scored = torch.cat([_log_probs(self.judge, part[:, :-1], None, STEP)[0] for part in ids.split(size)])
            log_weights = (_taken(scored, ids[:, -STEP:]).sum(1) - total).double().numpy()
        return log_evidence + log_mean_exp(log_weights), ids

    def _step(self, ids: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A step of some particles, whose texts are read anew."""
        cache, feed, total = DynamicCache(), ids, torch.zeros(len(ids))
        for _ in range(STEP):
            log_p, cache = _log_probs(self.proposer, feed, cache)
            feed = _drawn(log_p[:, -1], random)
            total = total + _taken(log_p[:, -1], feed[:, 0])
            ids = torch.cat([ids, feed], dim=1)
        return ids, total


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable:
    """A function from seed to log evidence and details; `variant` is "cached", "batched" or "one by one"."""
    loops = _Loops(problem, num_particles)
    run_of = {
        "cached": loops.cached,
        "batched": loops.batched,
        "one by one": lambda random, uniforms: loops.batched(random, uniforms, 1),
    }[variant]

    with torch.inference_mode():
        fixed = loops.log_prob()

    @torch.inference_mode()
    def run(seed: int):
        random = torch.Generator().manual_seed(seed)
        uniforms = np.random.default_rng(seed).uniform(size=problem.num_steps)
        log_evidence, ids = run_of(random, uniforms)
        loops.tokenizer.batch_decode(ids)  # the texts, which ours makes too
        return log_evidence, lambda: {"tokens": ids.numel() - num_particles * loops.prompt.numel(), "log_prob": fixed}

    return run
