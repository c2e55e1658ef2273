r"""Training of the chains models: a weak proposer, a strong judge and a reward model, in minutes, from one seed.

The language model learns mod-10 chains (`llm._chains`) from fresh problems. The weak proposer is the same run at the
moment when about one solution in eight comes out right; the judge is its end. The reward model starts from the judge,
grown by layers, and learns from solutions that checkpoints of the run wrote at several temperatures, whose every step
is labelled by the exact verifier. The package ships what the full scale with seed 0 made; the same machine makes the
same bits again, another one models as good (the path of training is chaotic).
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probinf import llm
from probinf.core import InferenceError, Run, run_steps
from probinf.experiments import _train_chains_page as page
from probinf.experiments._environment import versions
from probinf.experiments._page import Part, plain
from probinf.experiments._train_chains_claims import judge_all
from probinf.experiments._train_chains_fit import (
    LanguageStep,
    Schedule,
    StopAtNaN,
    snapshot,
    start_fit,
    start_snapshots,
)
from probinf.experiments._train_chains_measure import measure_language, measure_reward
from probinf.experiments._train_chains_reward import RewardStep, grow
from probinf.experiments._train_chains_samples import Samples, draw_samples, join
from probinf.experiments._train_chains_tokenizer import chains_tokenizer
from probinf.experiments._workspace import Workspace, write_json
from probinf.llm import _chains as chains
from probinf.models.lm import (
    LanguageModel,
    LanguageModelConfig,
    init_language_model,
    load_language_model,
    save_language_model,
)

WEAK, STRONG, REWARD = "chains", "chains-strong", "chains-reward"
HELPERS = ("helper-early", "helper-late")  # checkpoints that only write samples for the reward model
TARGETS = (0.03, 0.1, 0.5)  # pass@1 at which the early, the weak and the late checkpoint are kept
CLAUSES = ((WEAK, 1.0, 2), (WEAK, 0.7, 1), ("helper-early", 1.0, 1), ("helper-late", 1.0, 1), ("helper-late", 1.5, 1))
# With embeddings as small as usual (0.02) the first layer's output drowns what the token is, and training loses its way
# for hundreds of steps.
EMBEDDING_SCALE = 10.0
SHAPE = LanguageModelConfig(
    vocab_size=len(chains.VOCABULARY),
    dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=176,
    max_length=128,
    # Texts of 51 tokens: with the usual base most pairs of a head of 16 would hardly turn, and training takes longer.
    rope_theta=100.0,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the training.

    Attributes:
        seed: of every random number.
        language_steps: steps of the language model, whose schedule always ends at `schedule_steps`.
        reward_steps: steps of the reward model, whose schedule always ends at `reward_schedule_steps`.
        schedule_steps, reward_schedule_steps: steps after which the rates have fallen to a twentieth of their peak.
        language_rate, reward_rate: peaks of the learning rates.
        batch_size: problems a step.
        reward_layers: layers of the reward model.
        labels_begin, labels_end: steps between which its labels turn from those of single steps on made-up solutions
            to those of prefixes of samples.
        num_samples: solutions drawn for the reward model, a multiple of 6; see `CLAUSES`.
        num_problems: fresh problems on which models are measured.
        complete: whether training goes to its end: only then are the new models measured and stored, and does the
            reward model learn from the new language models instead of the shipped ones.
    """

    seed: int = 0
    language_steps: int = 150
    reward_steps: int = 120
    schedule_steps: int = 600
    reward_schedule_steps: int = 700
    language_rate: float = 5e-3
    reward_rate: float = 3e-3
    batch_size: int = 64
    reward_layers: int = 4
    labels_begin: int = 250
    labels_end: int = 310
    num_samples: int = 600
    num_problems: int = 2_000
    complete: bool = False


SCALES: Mapping[str, Config] = {
    "quick": Config(),
    "full": Config(language_steps=600, reward_steps=700, num_samples=12_000, num_problems=8_000, complete=True),
}


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """Trains the language model, then the reward model, then measures what is shipped and what was made."""
    parts = {
        "language": workspace.part("language", train_language, config),
        "reward": workspace.part("reward", train_reward, config),
        "shipped": workspace.part("shipped", measure_shipped, config),
    }
    if config.complete:
        log = {name: part.metrics for name, part in parts.items() if name != "shipped"}
        parts["trained"] = workspace.part("trained", measure_trained, log, config)
    return parts


def claims(metrics: Mapping[str, Any]) -> Any:
    """Judges the measured numbers."""
    return judge_all(metrics)


def train_language(config: Config, workspace: Workspace) -> Part:
    """The language model from random weights; at full scale the checkpoints are stored."""
    init_key, run_key = jax.random.split(_key(config, 0))
    model = init_language_model(init_key, SHAPE)
    model = eqx.tree_at(lambda model: model.embed, model, EMBEDDING_SCALE * model.embed)
    workspace.say(f"language model: {num_weights(model):,} weights, {config.language_steps} steps")
    step = LanguageStep(_schedule(config.language_rate, config.schedule_steps), jnp.asarray(TARGETS), config.batch_size)
    start = (start_fit(model), start_snapshots(model, len(TARGETS)))
    done = _trained(run_key, step, start, config.language_steps, "language model", workspace)
    fit, kept = done.state
    if config.complete:
        _check_found(kept.found, config)
        models = dict(zip((HELPERS[0], WEAK, HELPERS[1]), (snapshot(kept, i) for i in range(3)), strict=True))
        for name, one in (models | {STRONG: fit.model}).items():
            save_language_model(model_folder(workspace, name), one, chains_tokenizer())
    metrics = {
        "num_weights": num_weights(model),
        "found": kept.found,
        "found_at": kept.steps,
        "targets": TARGETS,
        **done.records._asdict(),
    }
    return Part(plain(metrics), page.language_section(workspace, metrics, config))


def train_reward(config: Config, workspace: Workspace) -> Part:
    """The reward model from the judge's weights, on solutions of the proposers."""
    sample_key, grow_key, run_key = jax.random.split(_key(config, 1), 3)
    samples = _samples(sample_key, config, workspace)
    strong = load_language_model(model_folder(workspace, STRONG) if config.complete else shipped_folder(STRONG))
    model = grow(grow_key, strong, config.reward_layers)
    workspace.say(f"reward model: {num_weights(model):,} weights, {config.reward_steps} steps")
    step = RewardStep(
        _schedule(config.reward_rate, config.reward_schedule_steps),
        samples,
        jnp.asarray(config.labels_begin),
        jnp.asarray(config.labels_end),
        config.batch_size,
    )
    done = _trained(run_key, step, start_fit(model), config.reward_steps, "reward model", workspace)
    if config.complete:
        save_language_model(model_folder(workspace, REWARD), done.state.model, chains_tokenizer())
    share = np.asarray(samples.labels).mean(axis=0)
    metrics = {
        "num_weights": num_weights(model),
        "share_right": share,
        "prior_loss": float(np.mean(_entropy(share))),
        "labels_end": config.labels_end,
        **done.records._asdict(),
    }
    return Part(plain(metrics), page.reward_section(workspace, metrics, config))


def measure_shipped(config: Config, workspace: Workspace) -> Part:
    """The checkpoints that come with the package, on fresh problems."""
    workspace.say("measuring the shipped checkpoints")
    found = measure_models({name: shipped_folder(name) for name in (WEAK, STRONG, REWARD)}, config, 2)
    section = page.measured_section(workspace, "The checkpoints that are shipped", "shipped", found)
    return Part(plain(found), section)


def measure_trained(log: Mapping[str, Any], config: Config, workspace: Workspace) -> Part:
    """The checkpoints of this run, on fresh problems; writes their training log beside them."""
    workspace.say("measuring the checkpoints of this run")
    names = (WEAK, STRONG, REWARD)
    found = measure_models({name: model_folder(workspace, name) for name in names}, config, 3)
    for name in names:
        part = "reward" if name == REWARD else "language"
        story = {
            "command": f"probinf run train-chains --scale full --seed {config.seed}",
            "config": dataclasses.asdict(config),
            "versions": versions(),
            "training": _thinned(log[part]),
            "measured": found[name],
        }
        write_json(model_folder(workspace, name) / "training.json", plain(story))
    section = page.measured_section(workspace, "The checkpoints of this run", "trained", found)
    return Part(plain(found), page.with_installation(section, workspace.checkpoint("models"), names))


def measure_models(folders: Mapping[str, Path], config: Config, stream: int) -> dict[str, Any]:
    """Measures the three models on problems of their own; solutions to judge are drawn from the weak one."""
    problem_key, sample_key = jax.random.split(_key(config, stream))
    models = {name: load_language_model(folder) for name, folder in folders.items()}
    samples = draw_samples(sample_key, models[WEAK], jnp.asarray(1.0), config.num_problems)
    drawn = np.asarray(samples.labels)[:, -1].astype(float)
    return {
        WEAK: measure_language(jax.random.clone(problem_key), models[WEAK], config.num_problems)
        | {"drawn": drawn.mean(), "drawn_error": drawn.std(ddof=1) / np.sqrt(drawn.size)},
        STRONG: measure_language(problem_key, models[STRONG], config.num_problems),
        REWARD: measure_reward(models[REWARD], samples),
    }


def shipped_folder(name: str) -> Path:
    """Where a checkpoint that comes with the package lies."""
    return Path(str(llm.__file__)).parent / "checkpoints" / name


def model_folder(workspace: Workspace, name: str) -> Path:
    """Where a run keeps a model that it made."""
    return workspace.checkpoint("models") / name


def num_weights(model: LanguageModel) -> int:
    """How many numbers a model is made of."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def _samples(key: jax.Array, config: Config, workspace: Workspace) -> Samples:
    if config.num_samples % 6:
        raise ValueError(f"`num_samples` is {config.num_samples}; needed a multiple of 6, for the shares in `CLAUSES`")
    names = {name for name, _, _ in CLAUSES}
    if config.complete:
        models = {name: load_language_model(model_folder(workspace, name)) for name in names}
    else:
        models = dict.fromkeys(names, load_language_model(shipped_folder(WEAK)))  # the helpers are not shipped
    workspace.say(f"reward model: drawing {config.num_samples:,} solutions")
    keys = jax.random.split(key, len(CLAUSES))
    return join(
        [
            draw_samples(one, models[name], jnp.asarray(temperature), share * config.num_samples // 6)
            for one, (name, temperature, share) in zip(keys, CLAUSES, strict=True)
        ]
    )


def _trained(key: jax.Array, step: Any, start: Any, num_steps: int, name: str, workspace: Workspace) -> Run:
    """The finished training run; an interrupted one is in its checkpoint and ends the experiment.

    Raises:
        KeyboardInterrupt: it was interrupted.
        InferenceError: the loss was not finite.
    """
    done = run_steps(
        key,
        step,
        start,
        num_steps,
        name=name,
        controls=(StopAtNaN(),),
        checkpoint=workspace.checkpoint(name.replace(" ", "-")),
        progress=workspace.progress,
        describe=lambda state, records: f"loss {float(records.loss[-1]):.4f}" if records is not None else "",
    )
    if done.interrupted:
        raise KeyboardInterrupt
    bad = np.flatnonzero(~np.isfinite(done.records.loss))
    if bad.size:
        raise InferenceError(
            f"TRAIN_NAN: the loss of the {name} was not finite at step {bad[0]}. Its weights of that step are in "
            f"{workspace.checkpoint(name.replace(' ', '-'))}; lower the learning rate",
            result=done,
        )
    return done


def _check_found(found: jax.Array, config: Config) -> None:
    if not bool(jnp.all(found)):
        missing = [target for target, there in zip(TARGETS, np.asarray(found), strict=True) if not there]
        raise InferenceError(
            f"the language model did not reach pass@1 of {missing[0]:g} within {config.language_steps} steps, so there "
            "is no checkpoint to keep: train it longer, or with another seed"
        )


def _schedule(peak: float, num_steps: int) -> Schedule:
    return Schedule(peak, peak / 20, 50, num_steps)


def _key(config: Config, stream: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), stream)


def _entropy(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 1e-12, 1 - 1e-12)
    return -share * np.log(share) - (1 - share) * np.log1p(-share)


def _thinned(log: Mapping[str, Any], every: int = 10) -> dict[str, Any]:
    """The log of a training run with every tenth step only, to six digits."""
    plain_log = json.loads(json.dumps(log))
    return {
        name: [float(f"{value:.6g}") for value in values[::every]]
        if isinstance(values, list) and len(values) > 5 * every
        else values
        for name, values in plain_log.items()
    } | {"every": every}
