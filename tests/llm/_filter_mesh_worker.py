"""Runs on 2 simulated devices; prints as JSON what of `llm.particle_filter` differs on 1 and 2 of them."""

import json

import jax
import numpy as np
from jax.sharding import Mesh

from probinf import llm
from probinf.models.lm import LanguageModelConfig, init_language_model

CONFIG = LanguageModelConfig(
    vocab_size=24, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, hidden_dim=64, max_length=128
)


def model(seed):
    weights = init_language_model(jax.random.key(seed), CONFIG)
    return llm.LM(jax.tree.map(lambda leaf: leaf * 3, weights), None, (0,), f"random {seed}")


def run(count, prompt, num_particles=16):
    mesh = None if count is None else Mesh(np.array(jax.devices()[:count]), ("rows",))
    return llm.particle_filter(
        jax.random.key(5),
        model(0),
        prompt,
        scorer=model(1),
        potential="judge",
        num_particles=num_particles,
        step=llm.delimiter([3, 4, 5], max_tokens=6),
        max_steps=5,
        mesh=mesh,
        throw=False,
    )


def members(result):
    return [result] if isinstance(result, llm.Generations) else list(result)


def differences(a, b):
    """The largest difference of what is not the same, to the bit; -1 for texts and counts."""
    found = {}
    for left, right in zip(members(a), members(b), strict=True):
        for name in ("texts", "ancestors", "resampled", "log_evidence", "log_weights", "log_prob", "ess", "scores"):
            x, y = np.asarray(getattr(left, name)), np.asarray(getattr(right, name))
            if x.dtype.kind == "f" and x.shape == y.shape:
                if x.tobytes() != y.tobytes():
                    found[name] = max(found.get(name, 0.0), float(np.nanmax(np.abs(x - y))))
            elif x.shape != y.shape or not np.array_equal(x, y):
                found[name] = -1
    return found


def main():
    found = {}
    for name, prompt in {"judge": [1, 2, 3], "problems": [[1, 2, 3], [4, 5]]}.items():
        alone = run(None, prompt)
        found[name] = {str(count): differences(alone, run(count, prompt)) for count in (1, 2)[name == "problems" :]}
        found[name]["resampled"] = int(sum(member.resampled.sum() for member in members(alone)))
    try:
        run(2, [1], num_particles=9)
    except ValueError as error:
        found["refusal"] = f"ValueError: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
