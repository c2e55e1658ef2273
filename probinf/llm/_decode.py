r"""`Decoder`: one step of every row, token by token, in one bounded loop.

At each token the base law p of the run (`Sampling`) is restricted to the tokens that the mask allows and renormalised:
the proposal $q = p \, 1[A] / p(A)$. The correction $\log p - \log q$, here $\log p(A)$, goes into the row's log
increment. Every token is fed to the model once, after it is drawn, at its row's own position. Rows that have ended
their step wait, and rows that are finished stay as they are.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from probinf.core import PRNGKey, categorical, choose, fast_key, repeat_while, unwrap_key, weight_dtype
from probinf.llm._matcher import Matcher
from probinf.llm._rows import Rows, with_fields
from probinf.llm._sampling import Sampling

BASES = ("proposal", "model")


class Made(NamedTuple):
    """What one step made of the rows that were active.

    Attributes:
        tokens: [N, S], left-aligned; 0 beyond `num_tokens`.
        num_tokens: [N] how many were made.
        log_prob: [N] log of their base law.
        correction: [N] log of base over proposal; -inf where no token was allowed.
    """

    tokens: Int[Array, "n s"]
    num_tokens: Int[Array, " n"]
    log_prob: Float[Array, " n"]
    correction: Float[Array, " n"]


class _Carry(NamedTuple):
    tokens: Int[Array, "n capacity"]
    length: Int[Array, " n"]
    finished: Bool[Array, " n"]
    stopped: Bool[Array, " n"]
    waiting: Bool[Array, " n"]
    log_prob: Float[Array, " n"]
    correction: Float[Array, " n"]
    logits: Float[Array, "n v"]
    cache: PyTree
    match_state: Int[Array, "n 2"]
    mask_state: PyTree


class Decoder(eqx.Module):
    """Draws the tokens of one step.

    Attributes:
        network: a `StepwiseModel`.
        prompt_cache: its cache of the prompt, which all rows share.
        sampling: the base law.
        mask: a `TokenMask`, or None.
        delimiters: what ends a step.
        stops: what ends a row.
        reference: [capacity] tokens that row 0 is led through (conditional SMC), or None.
        max_tokens: the most tokens of a step.
        base: "proposal": p is the tempered and filtered model; "model": p is the model, and p / q corrects for them.
        axis_name: the axis of problems, if they are mapped: loops then end when those of all problems do.
    """

    network: Any
    prompt_cache: PyTree
    sampling: Sampling
    mask: Any
    delimiters: Matcher
    stops: Matcher
    reference: Int[Array, " capacity"] | None
    max_tokens: int = eqx.field(static=True)
    base: str = eqx.field(static=True, default="proposal")
    axis_name: str | None = eqx.field(static=True, default=None)

    def __call__(self, key: PRNGKey, rows: Rows) -> tuple[Rows, Made]:
        """One step; row i's tokens depend on the key and on i alone, whatever the number of rows."""
        if rows.logits is None:
            raise TypeError("these rows have no logits, as those that a run returns: nothing can be written after them")
        zeros = jnp.zeros(rows.length.shape, weight_dtype(rows.logits.dtype))
        carry = _Carry(
            rows.tokens,
            rows.length,
            rows.finished,
            rows.stopped,
            jnp.zeros_like(rows.finished),
            zeros,
            zeros,
            rows.logits,
            rows.cache,
            rows.match_state,
            rows.mask_state,
        )
        # The loop takes the bits of the key: a typed key in a loop counts as used again at each turn.
        bits, restore = unwrap_key(fast_key(key))

        def unfinished(carry: _Carry) -> Array:
            return any_row(~(carry.finished | carry.waiting), self.axis_name)

        def one_token(index: Any, carry: _Carry) -> _Carry:
            return self._one_token(jax.random.fold_in(restore(bits), index), carry)

        after = repeat_while(unfinished, one_token, carry, self.max_tokens)
        made = Made(
            _window(after.tokens, rows.length, after.length, self.max_tokens),
            after.length - rows.length,
            after.log_prob,
            after.correction,
        )
        return with_fields(
            rows,
            tokens=after.tokens,
            length=after.length,
            finished=after.finished,
            stopped=after.stopped,
            log_prob=rows.log_prob + after.log_prob.astype(rows.log_prob.dtype),
            log_mass=rows.log_mass + after.correction.astype(rows.log_mass.dtype),
            logits=after.logits,
            cache=after.cache,
            match_state=after.match_state,
            mask_state=after.mask_state,
        ), made

    def _one_token(self, key: PRNGKey, carry: _Carry) -> _Carry:
        capacity = carry.tokens.shape[1]
        active = ~(carry.finished | carry.waiting)
        log_base, log_proposal, log_allowed = self._laws(carry.logits, carry.mask_state)
        stuck = active & (log_allowed == -jnp.inf)
        drawing = active & ~stuck
        token = choose(key, categorical, self._probabilities(log_proposal, log_allowed, drawing, carry))
        log_p, log_q = (_at(law, token) for law in (log_base, log_proposal))
        correction = log_allowed if self.base == "proposal" else log_p - (log_q - log_allowed)
        # A model that says NaN must not pass for one that says nothing about the weight.
        correction = jnp.where(stuck, -jnp.inf, jnp.where(jnp.isnan(log_p), jnp.nan, correction))

        slot = jnp.where(drawing, carry.length, capacity)
        tokens = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(carry.tokens, slot, token)
        length = carry.length + drawing.astype(carry.length.dtype)
        delimiter_state, delimited = self.delimiters.step(carry.match_state[:, 0], token)
        # Begun anew behind a delimiter, not behind the bound of a step, which may cut one in two.
        delimiter_state = jnp.where(delimited, 0, delimiter_state)
        stop_state, stops = self.stops.step(carry.match_state[:, 1], token)
        stops = drawing & stops
        finished = carry.finished | stuck | stops | (drawing & (length >= capacity))
        mask_state = carry.mask_state
        if self.mask is not None:
            moved = self.mask.advance(mask_state, token)
            mask_state = jax.tree.map(lambda new, old: _select(drawing, new, old), moved, mask_state)
        # The last token of a finished row is never continued.
        fed = drawing & ~finished
        cache, output = self.network.advance(self.prompt_cache, carry.cache, token[:, None], fed.astype(jnp.int32))
        return _Carry(
            tokens,
            length,
            finished,
            carry.stopped | stops,
            carry.waiting | (drawing & delimited),
            carry.log_prob + jnp.where(drawing, log_p, 0),
            carry.correction + jnp.where(active, correction, 0),
            _select(fed, output.logits[:, 0].astype(carry.logits.dtype), carry.logits),
            cache,
            _select(drawing, jnp.stack([delimiter_state, stop_state], axis=1), carry.match_state),
            mask_state,
        )

    def _laws(self, logits: Array, mask_state: PyTree) -> tuple[Array, Array, Array]:
        """Log of the base law; of the proposal, not normalised; and of what normalises it, one number a row."""
        log_proposal = self.sampling.log_probs(logits)
        log_base = log_proposal
        if self.base == "model":
            log_base = jax.nn.log_softmax(logits.astype(log_proposal.dtype), axis=-1)
        if self.mask is None:
            return log_base, log_proposal, jnp.zeros(logits.shape[0], log_proposal.dtype)
        allowed = self.mask.allowed(mask_state)
        if allowed.shape != logits.shape:
            raise ValueError(f"`mask.allowed` gave shape {allowed.shape}; needed {logits.shape}, rows by vocabulary")
        log_proposal = jnp.where(allowed, log_proposal, -jnp.inf)
        return log_base, log_proposal, jax.nn.logsumexp(log_proposal, axis=-1)

    def _probabilities(self, log_proposal: Array, log_allowed: Array, drawing: Array, carry: _Carry) -> Array:
        """What to draw from: token 0 for rows that do not draw, and the reference's next one for its row."""
        vocabulary = jnp.arange(log_proposal.shape[1], dtype=jnp.int32)[None, :]
        forced = jnp.where(drawing, -1, 0).astype(jnp.int32)
        if self.reference is not None:
            following = self.reference[jnp.minimum(carry.length[0], self.reference.shape[0] - 1)]
            forced = forced.at[0].set(jnp.where(drawing[0], following, 0))
        certain = (vocabulary == forced[:, None]).astype(log_proposal.dtype)
        # Normalised first: what a mask leaves may be too little for a float.
        norm = jnp.where(log_allowed > -jnp.inf, log_allowed, 0)[:, None]
        return jnp.where(forced[:, None] >= 0, certain, jnp.exp(log_proposal - norm))


def any_row(rows: Bool[Array, " n"], axis_name: str | None) -> Bool[Array, ""]:
    """Whether one holds, in any problem: the same for all problems, so that a loop need not keep some of them back."""
    some = jnp.any(rows)
    return some if axis_name is None else jax.lax.pmax(some.astype(jnp.int32), axis_name) > 0


def _window(tokens: Array, start: Array, end: Array, size: int) -> Int[Array, "n s"]:
    """The tokens from `start` to `end` of each row, left-aligned."""
    places = start[:, None] + jnp.arange(size, dtype=start.dtype)[None, :]
    taken = jnp.take_along_axis(tokens, jnp.minimum(places, tokens.shape[1] - 1), axis=1)
    return jnp.where(places < end[:, None], taken, 0)


def _at(law: Float[Array, "n v"], token: Int[Array, " n"]) -> Float[Array, " n"]:
    return jnp.take_along_axis(law, token[:, None], axis=1)[:, 0]


def _select(rows: Bool[Array, " n"], new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
