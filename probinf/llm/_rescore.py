r"""`rescore`: the mass of a reference's future behind every row's past, for ancestor sampling.

With $x^j_{1:t-1}$ the text of row j and $x^*_{t:T}$ the steps of the reference still to come,

$$ \log \frac{\gamma_T(x^j_{1:t-1}, x^*_{t:T})}{\gamma_{t-1}(x^j_{1:t-1})}
   = \sum_{s \ge t} \log p(x^*_s | c, x^j_{1:t-1}, x^*_{t:s-1}) + \log G_s(x^j_{1:t-1}, x^*_{t:s}), $$

where every later potential looks at the whole text and so depends on j (Lindsten, Jordan, Schoen 2014, section 5.1:
state-space models without the Markov property). The future is fed to the model at once, not token by token. It has no
mass behind a text that ended, or behind which it would be cut into other steps, end elsewhere, be too long, or not be
allowed by the mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from probinf.llm._model import LanguageSteps
from probinf.llm._potential_types import StepView
from probinf.llm._reference import Reference
from probinf.llm._rows import Rows
from probinf.llm._step_reader import CHUNK

LOGITS = 1 << 26  # the most numbers that one block of laws holds


class Rescored(NamedTuple):
    """The future's mass behind every row, and what it cost.

    Attributes:
        log_mass: [N], in nats; -inf where it cannot follow.
        num_tokens: [N] tokens whose probability was asked for.
        num_scorer_tokens: [N] tokens that the scorer was fed.
    """

    log_mass: Float[Array, " n"]
    num_tokens: Int[Array, " n"]
    num_scorer_tokens: Int[Array, " n"]


def rescore(model: LanguageSteps, rows: Rows, reference: Reference, num_steps: Int[Array, ""]) -> Rescored:
    """The mass of what a reference has behind its first `num_steps` steps, behind every row.

    Args:
        model: whose potential is traceable. No random choice is made.
        rows: N texts of `num_steps` steps, with caches.
        reference: a whole text.
        num_steps: how many steps are written.
    """
    dtype = rows.log_prob.dtype
    goes_on = reference.num_steps > num_steps
    count = jnp.where(goes_on, reference.length - reference.length_after(num_steps), 0)
    tokens = reference.rest(num_steps)
    follows = goes_on & ~rows.finished & (rows.length + count <= model.capacity)
    follows = follows & _same_steps(model, rows, tokens, count, reference, num_steps)
    log_probs = _log_probs(model, rows, tokens, jnp.where(follows, count, 0)).astype(dtype)
    follows = follows & jnp.all(log_probs > -jnp.inf, axis=1)
    log_probs = jnp.where(follows[:, None], log_probs, 0)
    log_potential, fed = _potentials(model, rows, tokens, log_probs, follows, reference, num_steps)
    log_mass = jnp.sum(log_probs, axis=1) + log_potential
    log_mass = jnp.where(follows & ~jnp.isnan(log_mass), log_mass, -jnp.inf)
    # Behind a reference that has ended comes nothing, and nothing is what comes behind every text that has ended.
    log_mass = jnp.where(goes_on, log_mass, jnp.where(rows.finished, 0, -jnp.inf))
    return Rescored(log_mass, jnp.where(follows, count, 0), fed)


def _same_steps(
    model: LanguageSteps,
    rows: Rows,
    tokens: Int[Array, " capacity"],
    count: Int[Array, ""],
    reference: Reference,
    num_steps: Int[Array, ""],
) -> Bool[Array, " n"]:
    """Whether the tokens are allowed behind each row, and end steps and the text where those of the reference do."""
    decoder = model.decoder
    start = reference.length_after(num_steps)
    steps = jnp.arange(reference.boundaries.shape[0], dtype=jnp.int32)
    ours = (steps >= num_steps) & (steps < reference.num_steps)
    places = start + 1 + jnp.arange(tokens.shape[0], dtype=jnp.int32)
    ends = jnp.any((places[:, None] == reference.boundaries[None, :]) & ours[None, :], axis=1)

    def one(i: Array, carry: tuple) -> tuple:
        match_state, mask_state, in_step, same = carry
        token = jnp.broadcast_to(tokens[i], rows.length.shape)
        delimiter_state, delimited = decoder.delimiters.step(match_state[:, 0], token)
        stop_state, stopped = decoder.stops.step(match_state[:, 1], token)
        finishes = stopped | (rows.length + i + 1 >= model.capacity)
        in_step = in_step + 1
        step_ends = finishes | delimited | (in_step >= decoder.max_tokens)
        fits = (step_ends == ends[i]) & (finishes == (reference.finished & (i == count - 1)))
        if decoder.mask is not None:
            fits = fits & decoder.mask.allowed(mask_state)[:, tokens[i]]
            mask_state = decoder.mask.advance(mask_state, token)
        delimiter_state = jnp.where(delimited, 0, delimiter_state)  # as the decoder does
        same = same & (fits | (i >= count))
        return jnp.stack([delimiter_state, stop_state], axis=1), mask_state, jnp.where(ends[i], 0, in_step), same

    carry = (rows.match_state, rows.mask_state, jnp.zeros((), jnp.int32), jnp.ones_like(rows.finished))
    return jax.lax.fori_loop(0, _most(count, decoder.axis_name), one, carry)[3]


def _log_probs(
    model: LanguageSteps, rows: Rows, tokens: Int[Array, " capacity"], count: Int[Array, " n"]
) -> Float[Array, "n capacity"]:
    """Log of the base law of each token behind each row; 0 from `count` on, -inf for what is never proposed."""
    decoder, num_rows = model.decoder, count.shape[0]
    size = max(1, min(CHUNK, tokens.shape[0], LOGITS // (num_rows * model.first_logits.size)))
    num_blocks = -(-tokens.shape[0] // size)
    padded = jnp.pad(tokens, (0, num_blocks * size - tokens.shape[0]))

    def block(i: Array, carry: tuple) -> tuple:
        cache, logits, found = carry
        i = jnp.asarray(i).astype(jnp.int32)
        part = jax.lax.dynamic_slice_in_dim(padded, i * size, size)
        here = jnp.clip(count - i * size, 0, size)
        fed = jnp.broadcast_to(part[None], (num_rows, size))
        cache, output = decoder.network.advance(decoder.prompt_cache, cache, fed, here)
        said = output.logits.astype(logits.dtype)
        # The law of a token is what the model said at the one before.
        laws = jnp.concatenate([logits[:, None], said[:, :-1]], axis=1)
        values = jnp.where(jnp.arange(size, dtype=here.dtype)[None] < here[:, None], _at(model, laws, fed), 0)
        found = jax.lax.dynamic_update_slice_in_dim(found, values.astype(found.dtype), i * size, axis=1)
        return cache, said[:, -1], found

    found = jnp.zeros((num_rows, num_blocks * size), rows.log_prob.dtype)
    needed = _most((jnp.max(count) + size - 1) // size, decoder.axis_name)
    carry = (rows.cache, rows.logits, found)
    return jax.lax.fori_loop(0, needed, block, carry)[2][:, : tokens.shape[0]]


def _at(model: LanguageSteps, logits: Float[Array, "n s v"], tokens: Int[Array, "n s"]) -> Float[Array, "n s"]:
    """Log of the base law of tokens, -inf where the proposal never draws them."""
    decoder, flat = model.decoder, logits.reshape(-1, logits.shape[-1])
    log_proposal = decoder.sampling.log_probs(flat)
    log_base = log_proposal
    if decoder.base == "model":
        log_base = jax.nn.log_softmax(flat.astype(log_proposal.dtype), axis=-1)
        log_base = jnp.where(log_proposal > -jnp.inf, log_base, -jnp.inf)
    found = jnp.take_along_axis(log_base, tokens.reshape(-1, 1), axis=1, mode="promise_in_bounds")
    return found.reshape(tokens.shape)


def _potentials(
    model: LanguageSteps,
    rows: Rows,
    tokens: Int[Array, " capacity"],
    log_probs: Float[Array, "n capacity"],
    follows: Bool[Array, " n"],
    reference: Reference,
    num_steps: Int[Array, ""],
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """The sum of the log potentials of the steps to come, and what scorers were fed."""
    start, room = reference.length_after(num_steps), model.decoder.max_tokens
    window = jnp.arange(room, dtype=jnp.int32)
    places = jnp.arange(model.capacity, dtype=jnp.int32)
    behind = jnp.clip(places[None] - rows.length[:, None], 0, model.capacity - 1)
    written = jnp.where(places[None] < rows.length[:, None], rows.tokens, tokens[behind])

    def one(step: Array, carry: tuple) -> tuple:
        state, total, fed = carry
        first, last = (reference.length_after(s) - start for s in (step - 1, step))
        mine = (places >= first) & (places < last)
        here = jnp.where(window < last - first, tokens[jnp.minimum(first + window, model.capacity - 1)], 0)
        active = follows & (step <= reference.num_steps)
        length = jnp.where(follows, rows.length + last, rows.length)
        view = StepView(
            tokens=jnp.where(active[:, None], here[None], 0),
            count=jnp.where(active, last - first, 0),
            log_prob=jnp.sum(jnp.where(mine[None], log_probs, 0), axis=1),
            active=active,
            finished=jnp.where(follows, reference.finished & (step >= reference.num_steps), rows.finished),
            all_tokens=jnp.where(places[None] < length[:, None], written, 0),
            length=length,
            last=step == model.max_steps,
            axis_name=model.decoder.axis_name,
        )
        state, scored = model.potential.update(state, view)
        more = jnp.where(active, scored.log_potential, 0).astype(total.dtype)
        return state, total + more, fed + jnp.where(active, scored.num_tokens, 0).astype(fed.dtype)

    carry = (rows.potential_state, jnp.zeros_like(rows.log_prob), jnp.zeros_like(rows.length))
    last = _most(reference.num_steps, model.decoder.axis_name)
    return jax.lax.fori_loop(num_steps.astype(jnp.int32) + 1, last.astype(jnp.int32) + 1, one, carry)[1:]


def _most(count: Int[Array, ""], axis_name: str | None) -> Int[Array, ""]:
    """The largest count of all that are mapped: their loops then have one end, and keep none of them back."""
    return count if axis_name is None else jax.lax.pmax(count, axis_name)
