"""`Rows`: the particles of a language-model run, N texts that are written at the same time."""

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree


class Rows(eqx.Module):
    """N texts, what weighs them, and what the model needs to go on with them; every leaf has leading axis N.

    A row that is finished is absorbing: it is not touched any more and its log increment is 0. A row of weight zero
    is finished too, for nothing that it could still write would count.

    Attributes:
        tokens: generated tokens; 0 beyond `length`.
        length: how many of them are real.
        finished: whether the row has ended: at a stop, at the bound on tokens, or with weight zero.
        stopped: whether a stop was written; else it ended at a bound, or with weight zero.
        log_prob: log of the base law of all generated tokens, in nats.
        log_increment: log weight of the last step, $log G_t$ and corrections of the proposal together; 0 for a row that
            was finished before the step.
        log_mass: sum of all corrections log(base / proposal) so far.
        step_tokens: tokens made in the last step.
        scorer_tokens: tokens that the scorer was fed in the last step.
        boundaries: `length` after each step; 0 where the row had no such step.
        scores: the potential's score of the text after each step; NaN where there is none.
        num_steps: how many steps the row has made.
        logits: of each row's next token; those of a finished row mean nothing. None in what a run returns.
        cache: the model's cache of each row's own tokens. None in what a run returns.
        match_state: states of the automata of delimiters and stops, [N, 2].
        slot: between two steps, the slot that each row stood in after the first of them.
        mask_state: state of the token mask; None without one.
        potential_state: state of the potential.
        extra: what a method keeps of every row; None without it. For little: it is copied whole.
    """

    tokens: Int[Array, "n capacity"]
    length: Int[Array, " n"]
    finished: Bool[Array, " n"]
    stopped: Bool[Array, " n"]
    log_prob: Float[Array, " n"]
    log_increment: Float[Array, " n"]
    log_mass: Float[Array, " n"]
    step_tokens: Int[Array, " n"]
    scorer_tokens: Int[Array, " n"]
    boundaries: Int[Array, "n max_steps"]
    scores: Float[Array, "n max_steps"]
    num_steps: Int[Array, " n"]
    logits: Float[Array, "n v"] | None
    cache: PyTree[Any]
    match_state: Int[Array, "n 2"]
    slot: Int[Array, " n"]
    mask_state: PyTree[Any] = None
    potential_state: PyTree[Any] = None
    extra: PyTree[Any] = None

    @property
    def num_rows(self) -> int:
        """N."""
        return self.length.shape[0]

    @property
    def heavy(self) -> tuple[PyTree, ...]:
        """Logits, cache and state of the potential, which only those need to see that go on writing."""
        return self.logits, self.cache, self.potential_state

    def with_heavy(self, heavy: tuple[PyTree, ...] = (None, None, None)) -> "Rows":
        """The rows with other logits, cache and state of the potential; with none of them by default."""
        logits, cache, potential_state = heavy
        return with_fields(self, logits=logits, cache=cache, potential_state=potential_state)


def with_fields(rows: Rows, **changes: Any) -> Rows:
    """The rows with some fields replaced.

    Args:
        rows: N texts.
        **changes: new values of its fields.
    """
    return dataclasses.replace(rows, **changes)
