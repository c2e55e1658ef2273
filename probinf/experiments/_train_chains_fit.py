r"""Training of the chains models: one compiled step each for the language model and for the reward model.

Both are steps of the run driver, so a run that is interrupted goes on where it ended with the same numbers.
Muon (Jordan et al. 2024; Liu et al. 2025 for the scale of its steps) turns the matrices of the layers, which takes
half the steps that AdamW takes here; AdamW (Loshchilov and Hutter 2019) moves the rest. The rate rises linearly and
falls as a cosine.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Bool, Float, Int

from probinf.core import Ending, Present, PRNGKey
from probinf.llm import _chains as chains
from probinf.models.lm import LanguageModel

BORDER = 25  # steps between two looks at whether the loss is still a number
MEMORY = 0.75  # of the moving average of the accuracy that decides which checkpoints are kept


class Schedule(eqx.Module):
    """Learning rates: from 0 to `peak` in `warmup` steps, then as a cosine to `final` at step `num_steps`."""

    peak: Array
    final: Array
    warmup: Array
    num_steps: Array

    def __init__(self, peak: float, final: float, warmup: int, num_steps: int):
        self.peak, self.final, self.warmup, self.num_steps = (
            jnp.asarray(value, jnp.float32) for value in (peak, final, warmup, num_steps)
        )

    def __call__(self, index: Int[Array, ""]) -> Float[Array, ""]:
        """The rate of a step."""
        index = index.astype(jnp.float32)
        part = jnp.clip((index - self.warmup) / jnp.maximum(self.num_steps - self.warmup, 1), 0, 1)
        cosine = self.final + (self.peak - self.final) * 0.5 * (1 + jnp.cos(math.pi * part))
        return jnp.minimum(cosine, self.peak * (index + 1) / jnp.maximum(self.warmup, 1))


class Fit(NamedTuple):
    """The state of a training run.

    Attributes:
        model: as it is; it stays as it was before the first loss that was not finite.
        moments: of the optimiser.
        failed: whether a loss or a gradient was not finite.
    """

    model: LanguageModel
    moments: Any
    failed: Bool[Array, ""]


class Snapshots(NamedTuple):
    """Models kept on the way, at the first step where the moving average of the accuracy reaches each target.

    Attributes:
        models: a model whose array leaves have a leading axis, one entry a target.
        found: [targets]
        average: moving average of the probability of a whole right solution.
        steps: [targets], where each was taken.
    """

    models: LanguageModel
    found: Bool[Array, " k"]
    average: Float[Array, ""]
    steps: Int[Array, " k"]


def optimiser() -> optax.GradientTransformation:
    """Clipped gradients, then Muon for the matrices of the layers and AdamW for all else, at a rate of 1."""
    turned = optax.contrib.muon(
        1.0,
        consistent_rms=0.2,  # the root mean square of a step is that of AdamW, so that one rate serves both
        weight_decay=0.01,
        adam_b2=0.98,
        muon_weight_dimension_numbers=_matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), turned)


def _matrices(arrays: Any) -> Any:
    """Marks the matrices of the layers; embeddings are rows side by side rather than a map."""

    def mark(path: Any, leaf: Array) -> Any:
        inside = ".layers" in jax.tree_util.keystr(path)
        return optax.contrib.MuonDimensionNumbers() if inside and leaf.ndim == 2 else None

    return jax.tree_util.tree_map_with_path(mark, arrays)


def start_fit(model: LanguageModel) -> Fit:
    """A training run that has done nothing."""
    return Fit(model, optimiser().init(eqx.filter(model, eqx.is_array)), jnp.asarray(False))


def start_snapshots(model: LanguageModel, count: int) -> Snapshots:
    """No snapshot yet."""
    arrays, static = eqx.partition(model, eqx.is_array)
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), arrays)
    nothing = jnp.zeros(count, bool), jnp.zeros(()), jnp.zeros(count, jnp.int32)
    return Snapshots(eqx.combine(copies, static), *nothing)


class LanguageRecord(NamedTuple):
    """What a step of the language model tells, of its batch before the update.

    Attributes:
        loss: nats a token of the solution.
        step_accuracy: share of results that would be right, each after right ones, if the likeliest digit were taken.
        chain_accuracy: share of solutions right throughout in that way.
        pass_at_1: mean probability that a solution drawn at temperature 1 is right; exact, nothing is drawn.
    """

    loss: Float[Array, ""]
    step_accuracy: Float[Array, ""]
    chain_accuracy: Float[Array, ""]
    pass_at_1: Float[Array, ""]


class LanguageStep(eqx.Module):
    """A step of the language model: fresh problems, loss on the tokens of the solution.

    Attributes:
        schedule: of the learning rate.
        targets: accuracies, rising, at which a snapshot is kept, [k].
        batch_size: problems a step.
    """

    schedule: Schedule
    targets: Float[Array, " k"]
    batch_size: int = eqx.field(static=True)

    def __call__(
        self, key: PRNGKey, index: Int[Array, ""], state: tuple[Fit, Snapshots]
    ) -> tuple[tuple[Fit, Snapshots], LanguageRecord]:
        """One step; see `probinf.core.run_steps`."""
        fit, snapshots = state
        problem = chains.problem_tokens(key, self.batch_size)
        solution = chains.solution_tokens(chains.results(problem))

        def loss_of(model: LanguageModel) -> tuple[Array, Array]:
            log_probs = solution_log_probs(model, problem)
            chosen = jnp.take_along_axis(log_probs, solution[..., None], axis=-1)[..., 0]
            return -jnp.mean(chosen), log_probs

        (loss, log_probs), gradient = eqx.filter_value_and_grad(loss_of, has_aux=True)(fit.model)
        record = LanguageRecord(loss, *language_accuracies(log_probs, solution))
        snapshots = _keep(snapshots, fit.model, record.pass_at_1, self.targets, index)
        return (update(fit, loss, gradient, self.schedule(index)), snapshots), record


def solution_log_probs(model: LanguageModel, problem: Int[Array, "n l"]) -> Float[Array, "n s v"]:
    """Log probabilities of each token of the solutions, given the right ones before it."""
    solution = chains.solution_tokens(chains.results(problem))
    inputs = jnp.concatenate([problem, solution[:, :-1]], axis=1)
    logits = model(inputs).logits[:, problem.shape[1] - 1 :]
    return jax.nn.log_softmax(logits, axis=-1)


def language_accuracies(
    log_probs: Float[Array, "n s v"], solution: Int[Array, "n s"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Accuracy of likeliest results and likeliest solutions, and the probability of a right solution."""
    hits = jnp.argmax(log_probs, axis=-1) == solution
    chosen = jnp.take_along_axis(log_probs, solution[..., None], axis=-1)[..., 0]
    return jnp.mean(hits[:, ::2]), jnp.mean(jnp.all(hits, axis=-1)), jnp.mean(jnp.exp(jnp.sum(chosen, axis=-1)))


def update(fit: Fit, loss: Float[Array, ""], gradient: Any, rate: Float[Array, ""]) -> Fit:
    """The optimiser's step; from the first loss or gradient that is not finite on, nothing changes any more."""
    arrays, static = eqx.partition(fit.model, eqx.is_array)
    failed = fit.failed | ~jnp.isfinite(loss) | ~jnp.isfinite(optax.tree.norm(gradient))
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to a power that is an integer array
        direction, moments = optimiser().update(gradient, fit.moments, arrays)
    moved = jax.tree.map(lambda leaf, change: leaf + rate.astype(leaf.dtype) * change, arrays, direction)

    def unless_failed(new: Array, old: Array) -> Array:
        return jnp.where(failed, old, new)

    arrays, moments = jax.tree.map(unless_failed, (moved, moments), (arrays, fit.moments))
    return Fit(eqx.combine(arrays, static), moments, failed)


def _keep(
    snapshots: Snapshots, model: LanguageModel, accuracy: Array, targets: Array, index: Int[Array, ""]
) -> Snapshots:
    average = MEMORY * snapshots.average + (1 - MEMORY) * accuracy
    new = ~snapshots.found & (average >= targets)
    arrays, _ = eqx.partition(model, eqx.is_array)
    kept, static = eqx.partition(snapshots.models, eqx.is_array)

    def write(copies: Array, leaf: Array) -> Array:
        return jnp.where(new.reshape(-1, *(1,) * leaf.ndim), leaf[None], copies)

    kept = jax.tree.map(write, kept, arrays)
    steps = jnp.where(new, index, snapshots.steps)
    return Snapshots(eqx.combine(kept, static), snapshots.found | new, average, steps)


def snapshot(snapshots: Snapshots, place: int) -> LanguageModel:
    """One of the models kept."""
    arrays, static = eqx.partition(snapshots.models, eqx.is_array)
    return eqx.combine(jax.tree.map(lambda leaf: leaf[place], arrays), static)


class StopAtNaN:
    """A control that ends a training run at the first loss that is not finite."""

    def border(self, num_done: int) -> int:
        """Looks at every `BORDER` steps."""
        return num_done - num_done % BORDER + BORDER

    def __call__(self, present: Present) -> Ending | None:
        """`STOPPED` once a loss was not finite."""
        seen = present.records.loss[: present.num_done - present.num_done % BORDER]
        return None if bool(jnp.all(jnp.isfinite(seen))) else Ending.STOPPED
