r"""`LanguageSteps`: writing texts in steps, as a `FeynmanKac` in batch form.

$x_0$ are N empty texts, with $G_0 = 1$. At time t = 1 .. T, $M_t$ writes the t-th step of every text, and
$G_t = \frac{p}{q} \cdot$ potential: the target is $p(x_{1:T} | c) \prod_t G_t$ on texts cut into T steps. Texts that
are finished stay as they are, with $G_t = 1$.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from probinf.core import FeynmanKac, PRNGKey, repeat_while, unwrap_key, weight_dtype
from probinf.core._population import freeze
from probinf.llm._decode import Decoder, Made, any_row
from probinf.llm._lm import cache_size
from probinf.llm._potential_types import Potential, Prompt, Scored, StepView
from probinf.llm._rows import Rows, with_fields


class LanguageSteps(FeynmanKac):
    """A model, a prompt and a potential; particles are `Rows`. `Setup.model` makes one.

    Attributes:
        decoder: draws the tokens of a step.
        first_logits: [V], of the token after the prompt.
        potential: bound to the prompt.
        max_steps: the most steps T of a text; times are 0 .. T.
        capacity: the most tokens of a text.
    """

    batch: ClassVar[bool] = True
    decoder: Decoder
    first_logits: Float[Array, " v"]
    potential: Potential
    max_steps: int = eqx.field(static=True)
    capacity: int = eqx.field(static=True)

    @property
    def num_steps(self) -> int:
        """T + 1."""
        return self.max_steps + 1

    @property
    def traceable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it may run under `jit`: as the potential."""
        return self.potential.traceable

    def init(self, key: PRNGKey, num_particles: int) -> Rows:
        """N empty texts; `key` is not used."""
        del key
        return self.empty_rows(num_particles)

    def mutate(self, key: PRNGKey, t: int | Array, x: Rows) -> Rows:
        """Writes the t-th step of every text that is not finished; t = 1 is the first."""
        # The loop takes the bits of the key, which would count as used again at each turn.
        bits, restore = unwrap_key(key)

        def one(_: Any, rows: Rows) -> Rows:
            rows, view, made = self.write(restore(bits), t, rows)
            state, scored = self.potential.update(rows.potential_state, view)
            scored = check_scored(self.potential, scored, rows.num_rows)
            return self.weigh(t, with_fields(rows, potential_state=state), view, made, scored)

        # A loop of at most one turn, not a `cond`: what a loop carries is changed in place, so that the caches are not
        # copied; and nothing is computed once all rows are finished.
        return repeat_while(lambda rows: any_row(~rows.finished, self.decoder.axis_name), one, idle(x), 1)

    def log_potential(self, t: int | Array, x_prev: PyTree | None, x: Rows) -> Float[Array, " n"]:
        """Log weight of the step that was just written."""
        del t, x_prev
        return x.log_increment

    def freeze(self, status: Array, old: Rows, new: Rows) -> Rows:
        """After a fatal fault the old texts, finished. Caches are not kept back: selecting copies them each time."""
        ended = with_fields(idle(old), finished=jnp.ones_like(old.finished))
        return freeze(status, ended.with_heavy(), new.with_heavy()).with_heavy(new.heavy)

    def empty_rows(self, num_rows: int) -> Rows:
        """N rows that have written nothing.

        Args:
            num_rows: N >= 1.
        """
        dtype = weight_dtype(self.first_logits.dtype)
        zeros, counts = jnp.zeros(num_rows, dtype), jnp.zeros(num_rows, jnp.int32)
        mask, network = self.decoder.mask, self.decoder.network
        return Rows(
            tokens=jnp.zeros((num_rows, self.capacity), jnp.int32),
            length=counts,
            finished=jnp.zeros(num_rows, bool),
            stopped=jnp.zeros(num_rows, bool),
            log_prob=zeros,
            log_increment=zeros,
            log_mass=zeros,
            step_tokens=counts,
            scorer_tokens=counts,
            boundaries=jnp.zeros((num_rows, self.max_steps), jnp.int32),
            scores=jnp.full((num_rows, self.max_steps), jnp.nan, dtype),
            num_steps=counts,
            logits=jnp.broadcast_to(self.first_logits, (num_rows, *self.first_logits.shape)),
            cache=network.empty_cache(num_rows, cache_size(self.capacity, network.config.max_length)),
            match_state=jnp.zeros((num_rows, 2), jnp.int32),
            slot=jnp.arange(num_rows, dtype=jnp.int32),
            mask_state=None if mask is None else mask.start(num_rows),
            potential_state=self.potential.start(num_rows, self.capacity),
        )

    def write(self, key: PRNGKey, t: int | Array, rows: Rows) -> tuple[Rows, StepView, Made]:
        """Draws the tokens of the t-th step: the rows, what a potential may see of it, and what the proposal did.

        Args:
            key: PRNG key.
            t: which step, from 1.
            rows: N texts, of which those that are finished stay as they are.
        """
        written, made = self.decoder(key, rows)
        view = StepView(
            tokens=made.tokens,
            count=made.num_tokens,
            log_prob=made.log_prob,
            active=~rows.finished & (made.correction != -jnp.inf),
            finished=written.finished,
            all_tokens=written.tokens,
            length=written.length,
            last=jnp.asarray(t) == self.max_steps,
            axis_name=self.decoder.axis_name,
        )
        return written, view, made

    def weigh(self, t: int | Array, rows: Rows, view: StepView, made: Made, scored: Scored) -> Rows:
        """Notes weights, scores and costs of the t-th step, and ends the rows of weight zero."""
        dtype = rows.log_increment.dtype
        # A row that no token was allowed for has weight zero, whatever the potential says.
        stuck = made.correction == -jnp.inf
        wrote = view.active | stuck
        increment = made.correction.astype(dtype) + scored.log_potential.astype(dtype)
        increment = jnp.where(stuck, -jnp.inf, jnp.where(view.active, increment, 0))
        score = jnp.where(view.active, scored.score.astype(dtype), rows.scores[:, t - 1])
        boundary = jnp.where(wrote, rows.length, rows.boundaries[:, t - 1])
        fed = jnp.where(view.active, scored.num_tokens.astype(jnp.int32), 0)
        return with_fields(
            rows,
            finished=rows.finished | ~(increment > -jnp.inf),  # NaN too counts as weight zero
            log_increment=increment,
            step_tokens=made.num_tokens,
            scorer_tokens=fed,
            boundaries=rows.boundaries.at[:, t - 1].set(boundary),
            scores=rows.scores.at[:, t - 1].set(score),
            num_steps=rows.num_steps + wrote.astype(jnp.int32),
        )


def check_scored(potential: Potential, scored: Scored, num_rows: int) -> Scored:
    """What a potential said, as arrays.

    Raises:
        ValueError: something of it is not of shape [N].
    """
    found = Scored(*(jnp.asarray(values) for values in scored))
    for name, values in zip(Scored._fields, found, strict=True):
        if values.shape != (num_rows,):
            raise ValueError(
                f"`{type(potential).__name__}.update` gave `{name}` of shape {values.shape}; needed ({num_rows},), one "
                "a row"
            )
    return found


def idle(rows: Rows) -> Rows:
    """The rows as after a step in which nothing was done."""
    none = jnp.zeros_like(rows.step_tokens)
    return with_fields(rows, log_increment=jnp.zeros_like(rows.log_increment), step_tokens=none, scorer_tokens=none)


class Setup(eqx.Module):
    """All that a run is told but its prompt: a method makes one, and a `LanguageSteps` of it for every prompt.

    Attributes:
        network, sampling, mask, delimiters, stops: as in `Decoder`.
        potential: not bound to a prompt yet.
        max_steps: the most steps of a text.
        step_tokens: the most tokens of a step.
        capacity: the most tokens of a text.
        base: as in `Decoder`.
    """

    network: Any
    sampling: Any
    mask: Any
    delimiters: Any
    stops: Any
    potential: Potential
    max_steps: int = eqx.field(static=True)
    step_tokens: int = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    base: str = eqx.field(static=True)

    def model(
        self, prompt: Prompt, *, axis_name: str | None = None, reference: Int[Array, " capacity"] | None = None
    ) -> LanguageSteps:
        """Reads the prompt, with all models that have to.

        Args:
            prompt: padded token ids.
            axis_name: the axis of problems, if they are mapped.
            reference: [capacity] tokens that row 0 is led through (conditional SMC), or None.
        """
        cache, output = self.network.prefill(prompt.tokens, prompt.length)
        decoder = Decoder(
            network=self.network,
            prompt_cache=cache,
            sampling=self.sampling,
            mask=self.mask,
            delimiters=self.delimiters,
            stops=self.stops,
            reference=reference,
            max_tokens=min(self.step_tokens, self.capacity),
            base=self.base,
            axis_name=axis_name,
        )
        return LanguageSteps(decoder, output.logits, self.potential.bind(prompt), self.max_steps, self.capacity)
