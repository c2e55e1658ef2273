"""A particle run with no language model: random tokens and weights, resampled, as an engine would hand it over."""

import numpy as np

from probinf.llm import Generations, make_generations

VOCABULARY = "0123456789;"
END = 10  # the id of `;`, which ends a step


def decode(ids):
    return "".join(VOCABULARY[i] for i in ids)


def extract(text):
    """The last digit, None if there is none."""
    digits = [letter for letter in text if letter.isdigit()]
    return digits[-1] if digits else None


def run(*, seed=0, slots=8, steps=5, ess_threshold=0.5, stay=0.8, noise=1.0, scheme="multinomial", **changes):
    """A run whose steps are one digit and `;`; a text goes on with probability `stay`.

    Returns:
        `Generations`.
    """
    rng = np.random.default_rng(seed)
    tokens = np.zeros((slots, 2 * steps), np.int32)
    length = np.zeros(slots, np.int32)
    done = np.zeros(slots, bool)
    log_weights, log_prob = np.zeros(slots), np.zeros(slots)
    scores = np.full((slots, steps), np.nan)
    boundaries = np.zeros((slots, steps), np.int32)
    count = np.zeros(slots, np.int32)
    history = {name: [] for name in ("ess", "resampled", "log_weight_path", "finished_path", "ancestors")}
    log_evidence, used = 0.0, 0
    for t in range(steps):
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        moved = False
        if t:
            moved = 1 / np.sum(weights**2) < ess_threshold * slots
            parents = rng.choice(slots, slots, p=weights) if moved else np.arange(slots)
            if moved:
                log_evidence += float(np.log(np.mean(np.exp(log_weights))))
                log_weights = np.zeros(slots)
                tokens, length, done, log_prob = tokens[parents], length[parents], done[parents], log_prob[parents]
                scores, boundaries, count = scores[parents], boundaries[parents], count[parents]
            history["ancestors"].append(parents)
        active = ~done
        used += 2 * int(active.sum())
        at = np.flatnonzero(active)
        tokens[at, length[at]] = rng.integers(0, 10, at.size)
        tokens[at, length[at] + 1] = END
        length[at] += 2
        count[at] += 1
        log_prob[at] -= np.log(10)
        log_weights = log_weights + np.where(active, noise * rng.normal(size=slots), 0)
        scores[at, t] = rng.uniform(size=at.size)
        boundaries[:, t] = length
        done = done | (rng.uniform(size=slots) > stay)
        weights = np.exp(log_weights - log_weights.max())
        history["ess"].append(weights.sum() ** 2 / np.sum(weights**2))
        history["resampled"].append(moved)
        history["log_weight_path"].append(log_weights)
        history["finished_path"].append(done)
    fields = {
        "prompt": "1+1=",
        "prompt_ids": [1, 2, 3],
        "decode": decode,
        "tokens": tokens,
        "length": length,
        "finished": done,
        "log_prob": log_prob,
        "log_weights": log_weights,
        "scores": scores,
        "boundaries": boundaries,
        "num_steps": count,
        "method": "particle_filter",
        "scheme": scheme,
        "tokens_used": used,
        "scorer_tokens_used": used,
        "seconds": 0.5,
        "log_evidence": log_evidence + float(np.log(np.mean(np.exp(log_weights)))),
        "settings": {"model": "random", "temperature": 1.0, "ess_threshold": ess_threshold},
    }
    fields |= {name: np.asarray(values) for name, values in history.items()}
    fields["ancestors"] = fields["ancestors"].reshape(-1, slots).astype(int)
    return make_generations(**(fields | changes))


def texts(*, weights, scores=None, answers=None, finished=None, **changes) -> Generations:
    """One step of given texts, weights and scores; `answers` are digits, None for a text without one."""
    count = len(weights)
    answers = ["1"] * count if answers is None else answers
    tokens = np.asarray([[END if answer is None else int(answer), END] for answer in answers], np.int32)
    table = np.full((count, 1), np.nan) if scores is None else np.asarray(scores, float).reshape(count, -1)
    steps = table.shape[1]
    done = np.ones(count, bool) if finished is None else np.asarray(finished)
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(weights, float))
    fields = {
        "prompt": "?",
        "prompt_ids": [1],
        "decode": decode,
        "tokens": tokens,
        "length": np.full(count, 2),
        "finished": done,
        "log_prob": np.full(count, -2.0),
        "log_weights": logs,
        "scores": table,
        "boundaries": np.full((count, steps), 2),
        "num_steps": np.full(count, steps),
        "ancestors": np.tile(np.arange(count), (steps - 1, 1)),
        "ess": np.full(steps, float(count)),
        "resampled": np.zeros(steps, bool),
        "log_weight_path": np.tile(logs, (steps, 1)),
        "finished_path": np.vstack([np.zeros((steps - 1, count), bool), done[None]]),
        "method": "best_of_n",
        "tokens_used": 2 * count,
    }
    return make_generations(**(fields | changes))
