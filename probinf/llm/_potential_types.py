r"""`Potential`: the protocol of what weighs a language model's steps, $G_t(x_{1:t})$ in $p(x) \prod_t G_t(x_{1:t})$.

The engine decodes one step of every row, then calls `update` once with a `StepView` of what was made.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree


class Prompt(eqx.Module):
    """The text before generation, as tokens.

    Attributes:
        tokens: [P] token ids, padded on the right.
        length: how many of them are real.
        text: the prompt as the user gave it, for functions on the host; None in compiled programs, where it would
            recompile for each prompt.
    """

    tokens: Int[Array, " p"]
    length: Int[Array, ""]
    text: str | None = eqx.field(static=True, default=None)


class StepView(eqx.Module):
    """What one step made, for N rows; a step has room for S tokens.

    Attributes:
        tokens: [N, S] tokens of this step, left-aligned; 0 from `count` on.
        count: [N] how many of them are real; 0 for rows that are not active.
        log_prob: [N] log base probability of this step's tokens, in nats.
        active: [N] whether the row was unfinished before the step.
        finished: [N] whether it is finished now.
        all_tokens: [N, capacity] all generated tokens; 0 from `length` on.
        length: [N] how many of them are real.
        last: [] whether no step follows this one, whatever the rows are.
        axis_name: the axis over which several problems are mapped, if they are. A loop that ends where those of all
            problems do (`lax.pmax` of what it goes by, over this axis) keeps no copies of what it carries.
    """

    tokens: Int[Array, "n s"]
    count: Int[Array, " n"]
    log_prob: Float[Array, " n"]
    active: Bool[Array, " n"]
    finished: Bool[Array, " n"]
    all_tokens: Int[Array, "n capacity"]
    length: Int[Array, " n"]
    last: Bool[Array, ""]
    axis_name: str | None = eqx.field(static=True, default=None)

    @property
    def ends(self) -> Bool[Array, " n"]:
        """Rows whose last step this is: they finished in it, or are active in the last step of all."""
        return self.active & (self.finished | self.last)


class Scored(NamedTuple):
    """What a potential says of one step.

    Attributes:
        log_potential: [N] log G_t; 0 for rows that were not active; NaN where a score failed (it counts as weight zero
            and is flagged), -inf where the row is impossible.
        score: [N] score of the text so far, higher is better; NaN where there is none.
        num_tokens: [N] tokens that a scoring language model was fed for the row.
    """

    log_potential: Float[Array, " n"]
    score: Float[Array, " n"]
    num_tokens: Int[Array, " n"]


class Potential(eqx.Module):
    r"""$\log G_t(x_{1:t})$ of every row after every step; subclass it and define `update`.

    Law: for rows that are not active, `log_potential` is 0 and the state does not change. Leaves of the state have
    leading axis N, so that resampling can copy them; what all rows share (a prompt's cache) is a leaf of the potential
    that `bind` returns.

    Order of calls: `for_model` once, `bind` once a prompt, `start` once, `update` once a step, on the bound potential.
    """

    @property
    def traceable(self) -> bool:
        """Whether it may run under `jit`; if not, the engine calls it in a host loop, with concrete arrays."""
        return True

    def for_model(self, lm: Any) -> "Potential":
        """The potential for texts of one model; by default itself.

        Args:
            lm: the `LM` that proposes.

        Returns:
            The potential, with what it needs of `lm`, such as its tokenizer.

        Raises:
            ValueError: it cannot read the tokens of `lm`.
        """
        del lm
        return self

    def context(self) -> int | None:
        """The most tokens, prompt and text together, that it can read; None for any number."""
        return None

    def bind(self, prompt: Prompt) -> "Potential":
        """The potential for this prompt; by default itself."""
        del prompt
        return self

    def start(self, num_rows: int, capacity: int) -> PyTree:
        """The state before the first step, for N rows of at most `capacity` generated tokens; by default None."""
        del num_rows, capacity
        return None

    def update(self, state: PyTree, step: StepView) -> tuple[PyTree, Scored]:
        """Weighs one step."""
        raise TypeError(f"`{type(self).__name__}` does not define `update`: define it")

    def causes(self) -> Mapping[str, int]:
        """What failed on the host since `bind`, and for how many rows; empty where nothing did."""
        return {}
