r"""The reward model of the chains task: the strong model, grown by layers, with a head that says P(right so far).

A small reward model from scratch learns how often the t-th step is wrong, and nothing else: to judge a step it must
first be able to do it. So training starts from the weights of the strong model. New layers are put on top whose output
matrices are zero: they change nothing at first, and give room to compare what was written with what is right.

The labels in the end are "right up to and with this step", at both tokens of each step, and the loss is the logistic
one, so that the logits are calibrated where the samples are like those of training. They say nothing about a step after
the first wrong one, and so teach slowly: training begins with "this step follows from the one before" and turns from
these labels to those. Beside it runs the loss of a language model on the right next token, given what was written:
what the judge could do is not forgotten on the way.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from probinf.core import PRNGKey
from probinf.experiments._train_chains_fit import Fit, Schedule, update
from probinf.experiments._train_chains_samples import Samples
from probinf.llm import _chains as chains
from probinf.models.lm import LanguageModel, Output, init_language_model
from probinf.models.lm import LanguageModelConfig as Shape


def grow(key: PRNGKey, model: LanguageModel, num_layers: int) -> LanguageModel:
    """A model that says what `model` says, with more layers and a value head, which says 0.

    Raises:
        ValueError: `num_layers` is less than the model has.
    """
    old = model.config
    if num_layers < old.num_layers:
        raise ValueError(f"`num_layers` is {num_layers}, but the model has {old.num_layers} already: needed no fewer")
    shape = {name: getattr(old, name) for name in old.__dataclass_fields__}
    grown = init_language_model(key, Shape(**(shape | {"num_layers": num_layers, "value_head": True})))
    added = [
        eqx.tree_at(lambda layer: (layer.output, layer.down), layer, replace_fn=jnp.zeros_like)
        for layer in grown.layers[old.num_layers :]
    ]
    parts = (model.embed, (*model.layers, *added), model.norm, model.output)
    return eqx.tree_at(
        lambda new: (new.embed, new.layers, new.norm, new.output), grown, parts, is_leaf=lambda leaf: leaf is None
    )


class RewardRecord(NamedTuple):
    """What a step of the reward model tells, of its batch before the update.

    Attributes:
        loss: nats a token, of "right up to and with this step".
        accuracy: share of steps judged rightly in this sense at a threshold of one half, at the tokens that end them.
        sums: nats a token of the right results.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    sums: Float[Array, ""]


class RewardStep(eqx.Module):
    """A step of the reward model, on samples drawn before.

    Attributes:
        schedule: of the learning rate.
        samples: drawn from with replacement.
        begin, end: steps between which the labels turn from those of single steps to those of prefixes.
        batch_size: solutions a step.
    """

    schedule: Schedule
    samples: Samples
    begin: Array
    end: Array
    batch_size: int = eqx.field(static=True)

    def __call__(self, key: PRNGKey, index: Int[Array, ""], state: Fit) -> tuple[Fit, RewardRecord]:
        """One step; see `probinf.core.run_steps`."""
        row_key, made_key, choice_key = jax.random.split(key, 3)
        rows = jax.random.randint(row_key, (self.batch_size,), 0, self.samples.problem.shape[0])
        drawn, made = (part[rows] for part in self.samples), corrupted(made_key, self.batch_size)
        share = jnp.clip((index - self.begin) / jnp.maximum(self.end - self.begin, 1), 0, 1).astype(jnp.float32)
        chosen = (jax.random.uniform(choice_key, (self.batch_size,)) < share)[:, None]
        problem, solution, labels = (jnp.where(chosen, one, two) for one, two in zip(drawn, made, strict=True))
        written = chains.next_results(problem, solution[:, ::2])

        def loss_of(model: LanguageModel) -> tuple[Array, tuple[Array, Array]]:
            output = model(jnp.concatenate([problem, solution], axis=1))
            logits = _values(output)[:, problem.shape[1] :]
            # The right result is asked for where it is to be written and where something has been written.
            log_probs = jax.nn.log_softmax(output.logits[:, problem.shape[1] - 1 : -1], axis=-1)
            sums = jnp.take_along_axis(log_probs, jnp.repeat(written, 2, axis=-1)[..., None], axis=-1)
            judged = _logistic(logits, labels)
            return judged - jnp.mean(sums), (judged, logits)

        (loss, (judged, logits)), gradient = eqx.filter_value_and_grad(loss_of, has_aux=True)(state.model)
        record = RewardRecord(judged, jnp.mean((logits[:, 1::2] > 0) == labels), loss - judged)
        return update(state, loss, gradient, self.schedule(index)), record


def corrupted(key: PRNGKey, count: int) -> Samples:
    """Solutions half of whose results are drawn blindly; the label of a step is that it follows from the one before."""
    problem_key, digit_key, place_key = jax.random.split(key, 3)
    problem = chains.problem_tokens(problem_key, count)
    digits = jax.random.randint(digit_key, (count, chains.NUM_STEPS), 0, 10)
    blind = jax.random.bernoulli(place_key, 0.5, digits.shape)

    def step(before: Array, item: tuple) -> tuple[Array, Array]:
        pair, digit, is_blind = item
        # A problem of one operation, whose start is what was written before.
        short = jnp.concatenate([pair[:, :1], before[:, None], pair, pair[:, :1]], axis=1)
        result = jnp.where(is_blind, digit, chains.results(short)[:, 0])
        return result, result

    pairs = problem[:, 2:-1].reshape(count, chains.NUM_STEPS, 2)
    items = (jnp.swapaxes(pairs, 0, 1), digits.T, blind.T)
    written = jax.lax.scan(step, problem[:, 1], items)[1].T
    return Samples(problem, chains.solution_tokens(written), chains.steps_correct(problem, written))


def _logistic(logits: Float[Array, "n s"], truth: Bool[Array, "n t"]) -> Float[Array, ""]:
    targets = jnp.repeat(truth, 2, axis=-1).astype(logits.dtype)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))


def _values(output: Output) -> Array:
    if output.values is None:
        raise ValueError("`model` has no value head: make it with `value_head=True` in its configuration")
    return output.values


def solution_values(
    model: LanguageModel, problem: Int[Array, "n p"], solution: Int[Array, "n s"]
) -> Float[Array, "n s"]:
    """The second head at each token of the solutions.

    Raises:
        ValueError: the model has no second head.
    """
    return _values(model(jnp.concatenate([problem, solution], axis=1)))[:, problem.shape[1] :]
