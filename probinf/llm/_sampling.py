r"""`Sampling`: the base law of a run, a model's next-token law tempered and filtered.

$p(v) \propto \exp(l_v / \tau)$ on the tokens that pass the filters, in this order, each on the renormalised law that
the one before left: top-k (the k most probable), top-p (the fewest whose probability reaches p; Holtzman et al. 2020),
min-p (at least that fraction of the most probable; Nguyen et al. 2024).

The base law is what a run targets: p times potentials. Its weights never correct for temperature or filters, unless
the run is told `base="model"`; then p is the model itself, what is here is the proposal q, and log p - log q goes into
the weight.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from probinf.core import is_concrete, weight_dtype, whole_number
from probinf.llm._kept import kept, real


class Sampling(eqx.Module):
    """Temperature and filters. Numbers are array leaves: other values recompile nothing; switching a filter on does.

    Where probabilities tie at the edge of top-k or top-p, all that tie are kept.

    Attributes:
        temperature: >= 0; 0 keeps the most probable token alone (all of them, where they tie).
        top_k: how many tokens are kept, or None for all.
        top_p: in (0, 1], or None for 1.
        min_p: in [0, 1]; 0 keeps all.
    """

    temperature: Float[Array, ""]
    top_k: Array | None
    top_p: Float[Array, ""] | None
    min_p: Float[Array, ""]

    def __init__(self, temperature: Any = 1.0, top_k: Any = None, top_p: Any = None, min_p: Any = 0.0):
        """Checks what is concrete.

        Raises:
            ValueError: a number is out of range.
            TypeError: `top_k` is not an integer.
        """
        _check("temperature", temperature, lambda x: 0 <= x < float("inf"), "a finite number, at least 0")
        _check("min_p", min_p, lambda x: 0 <= x <= 1, "a number in [0, 1]")
        if top_p is not None:
            _check("top_p", top_p, lambda x: 0 < x <= 1, "a number in (0, 1]")
        if top_k is not None and is_concrete(top_k):
            whole_number("top_k", top_k, 1)
        self.temperature = real(temperature)
        self.top_k = None if top_k is None else jnp.asarray(top_k, jnp.int32)
        # Finding the edge takes many passes over the vocabulary, so that it is left out where nothing is cut.
        keeps_all = top_p is None or (is_concrete(top_p) and float(top_p) == 1)
        self.top_p = None if keeps_all else real(top_p)
        self.min_p = real(min_p)

    def log_probs(self, logits: Float[Array, "n v"]) -> Float[Array, "n v"]:
        """Log of the base law of the next token, -inf for tokens that it never draws.

        Args:
            logits: of the model, any scale; -inf is a token of probability zero.

        Returns:
            At least float32; every row sums to 1 in probability.
        """
        logits = logits.astype(weight_dtype(logits.dtype))
        temperature = self.temperature.astype(logits.dtype)
        top = jnp.max(logits, axis=-1, keepdims=True)
        shifted = logits - top
        greedy = jnp.where(shifted < 0, -jnp.inf, shifted)  # 0 at the top; NaN stays NaN
        scaled = jnp.where(temperature > 0, shifted / jnp.where(temperature > 0, temperature, 1), greedy)
        if self.top_k is not None:
            scaled = _kept(scaled, at_least(jnp.exp(scaled), jnp.ones_like(scaled), self.top_k.astype(scaled.dtype)))
        if self.top_p is not None:
            relative = jnp.exp(scaled)
            wanted = self.top_p.astype(scaled.dtype) * jnp.sum(relative, axis=-1, keepdims=True)
            scaled = _kept(scaled, at_least(relative, relative, wanted))
        # Relative to the top, which is 0 here; log 0 = -inf cuts nothing.
        scaled = _kept(scaled, scaled >= jnp.log(self.min_p.astype(scaled.dtype)))
        # The largest is 0 already: no need to take it off, as `log_softmax` would.
        return scaled - jnp.log(jnp.sum(jnp.exp(scaled), axis=-1, keepdims=True))


@kept
def sampling_of(temperature: Any, top_k: Any, top_p: Any, min_p: Any) -> Sampling:
    """A `Sampling`, made once where all are plain numbers; arguments and errors are its."""
    return Sampling(temperature, top_k, top_p, min_p)


def at_least(
    values: Float[Array, "n v"], masses: Float[Array, "n v"], wanted: Float[Array, "#n #one"] | Float[Array, ""]
) -> Bool[Array, "n v"]:
    """The fewest of the largest values whose masses reach `wanted`; all of them if they never do.

    By bisection on the bits of the smallest value kept, which order as the values do: one pass over memory a bit,
    where sorting a vocabulary takes far longer on CPU.

    Args:
        values: >= 0.
        masses: >= 0.
        wanted: > 0.
    """
    bits = jnp.finfo(values.dtype).bits
    integer = jnp.dtype(f"int{bits}")
    order = jax.lax.bitcast_convert_type(values, integer)
    wanted = jnp.broadcast_to(wanted, (values.shape[0], 1))

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # the masses at or above `low` reach it, those at or above `high` do not
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(order >= middle, masses, 0), axis=-1, keepdims=True) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros((values.shape[0], 1), integer)
    high = jnp.max(order, axis=-1, keepdims=True) + 1
    low, _ = jax.lax.fori_loop(0, bits, halve, (low, high))
    return order >= low


def _kept(scaled: Array, keep: Array) -> Array:
    return jnp.where(keep, scaled, -jnp.inf)


def _check(name: str, value: Any, fits: Any, needed: str) -> None:
    if is_concrete(value) and not fits(float(value)):
        raise ValueError(f"`{name}` is {value}; needed {needed}")
