r"""Status bits: what went wrong under `jit`, carried as data and reported at the host boundary.

Inside compiled code nothing raises. A fault sets a bit in a `uint32` array; bits combine with OR over
particles, chains, steps and devices. A fatal bit freezes the state and makes the evidence NaN.
"""

import enum
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32


class Status(enum.IntFlag):
    """One bit a fault; `Status.OK` is zero. See `explain` for causes and mends."""

    OK = 0
    NAN_LOG_WEIGHT = 1
    POSINF_LOG_WEIGHT = 2
    ALL_WEIGHTS_ZERO = 4
    NONFINITE_INIT = 8
    DIVERGENT = 16
    MAX_STEPS = 32
    BAD_INVOLUTION = 64
    INTERRUPTED = 128


FATAL = Status.POSINF_LOG_WEIGHT | Status.NONFINITE_INIT | Status.MAX_STEPS | Status.BAD_INVOLUTION

_TEXT = {
    Status.NAN_LOG_WEIGHT: (
        "a log weight or log density was NaN and counted as probability zero. Likely (a) NaN in the data, "
        "(b) a parameter outside the support of a distribution, (c) overflow: try float64"
    ),
    Status.POSINF_LOG_WEIGHT: (
        "a log weight or log density was +inf, so no probability is defined. Likely (a) a density with a "
        "scale of zero, (b) an improper potential: bound it, (c) a density that overflows far out in float32, as "
        "NumPyro's InverseGamma does below 1e-20: use another one, or 64 bits"
    ),
    Status.ALL_WEIGHTS_ZERO: (
        "every particle had weight zero, so the evidence is 0 (or NaN, where a NaN caused it). Likely (a) an "
        "observation the model calls impossible, (b) too few particles: raise `num_particles`"
    ),
    Status.NONFINITE_INIT: (
        "the log density or its gradient is not finite at the starting point. Pass other starting points "
        "(`initial_position`), or look for NaN in the data"
    ),
    Status.DIVERGENT: (
        "divergent transitions (the energy error was over 1000, or NaN). Raise `target_accept`, use a smaller "
        "`step_size`, or reparametrise the model; the draws may miss part of the posterior"
    ),
    Status.MAX_STEPS: "a bounded loop ended at its bound before it was done. Raise `max_steps`",
    Status.BAD_INVOLUTION: "an involution did not invert itself, or its Jacobian was wrong. Mend the `involution`",
    Status.INTERRUPTED: (
        "the run was interrupted; what was finished is here. Run it again; one with a checkpoint goes on from there "
        "with the same `checkpoint`"
    ),
}


class InferenceError(RuntimeError):
    """A run ended with a fatal status bit. The message names bits, members, first step and mend.

    Attributes:
        result: the flagged result, as `throw=False` would have returned it; None where there is none.
    """

    def __init__(self, message: str, *, result: Any = None) -> None:
        RuntimeError.__init__(self, message)
        self.result = result


class InferenceWarning(UserWarning):
    """A run ended with a status bit that is not fatal."""


def flag(bit: Status, condition: Bool[Array, "..."]) -> UInt32[Array, "..."]:
    """The bit where `condition` holds, else zero, elementwise: OR it into a status."""
    return jnp.where(condition, jnp.uint32(int(bit)), jnp.uint32(0))


def any_bits(status: UInt32[Array, "..."], where: Bool[Array, "..."] | None = None) -> UInt32[Array, ""]:
    """The OR of all members of a status, or of those where `where` holds."""
    members = status if where is None else jnp.where(where, status, 0)
    return jax.lax.reduce_or(members, tuple(range(members.ndim)))


def is_fatal(status: Any) -> Any:
    """Whether a status, uint32 of any shape, holds a fatal bit, elementwise; works under `jit` and on NumPy arrays.

    All weights zero is fatal only together with a NaN: without one, evidence zero is a legitimate answer.

    Args:
        status: uint32 of any shape, of JAX or NumPy.

    Returns:
        Bool of the same shape, of the same library.
    """
    both = int(Status.ALL_WEIGHTS_ZERO | Status.NAN_LOG_WEIGHT)
    return ((status & np.uint32(int(FATAL))) != 0) | ((status & np.uint32(both)) == both)


def explain(status: Any, *, counts: dict[str, str] | None = None) -> str:
    """One sentence a bit: its name, where it is set, its likely causes and what to do.

    Args:
        status: integer or array of status bits; an array is read as one member an entry.
        counts: extra words by bit name, such as `{"DIVERGENT": "12 of 4000 (0.3 %), first at 17"}`.

    Returns:
        The text, empty when no bit is set.
    """
    members = np.atleast_1d(np.asarray(status)).astype(np.uint32)
    lines = []
    for bit, text in _TEXT.items():
        hit = np.flatnonzero((members & np.uint32(int(bit))).ravel())
        if hit.size:
            where = f" [members {_shorten(hit)} of {members.size}]" if members.size > 1 else ""
            more = f" ({counts[bit.name]})" if counts and bit.name in counts else ""
            lines.append(f"{bit.name}{where}{more}: {text}.")
    return "\n".join(lines)


def check_status(status: Any, *, what: str, counts: dict[str, str] | None = None, result: Any = None) -> None:
    """Raises `InferenceError` for fatal bits, else gives one `InferenceWarning` for the rest.

    Args:
        status: concrete integer or array of status bits.
        what: the name of the run, first word of the message.
        counts: as for `explain`.
        result: the flagged result, for `InferenceError.result`.

    Raises:
        InferenceError: a member of `status` is fatal.
    """
    members = np.atleast_1d(np.asarray(status)).astype(np.uint32)
    text = explain(members, counts=counts)
    if not text:
        return
    if np.any(is_fatal(members)):
        message = f"`{what}` failed.\n{text}\nPass `throw=False` to get the flagged result."
        raise InferenceError(message, result=result)
    warnings.warn(f"`{what}` finished with flags.\n{text}", InferenceWarning, stacklevel=3)


def _shorten(indices: np.ndarray) -> str:
    shown = ", ".join(str(i) for i in indices[:8])
    return f"[{shown}{', …' if indices.size > 8 else ''}]"
