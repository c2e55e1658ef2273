"""Step modes: where one step of a text ends and the next begins. Pure data; the engine compiles it into tables."""

from collections.abc import Sequence

import equinox as eqx

from probinf.core import whole_number


class StepMode(eqx.Module):
    """A step ends after a delimiter, and after `max_tokens` tokens at the latest; made by `delimiter` or `block`.

    Attributes:
        delimiters: texts or token ids that end a step.
        max_tokens: the most tokens of a step.
    """

    delimiters: tuple[str | int, ...] = eqx.field(static=True)
    max_tokens: int = eqx.field(static=True)


def delimiter(ends: str | int | Sequence[str | int], *, max_tokens: int = 64) -> StepMode:
    """Steps that end with a delimiter: rows that have written it wait for the others.

    Args:
        ends: a text such as ";" or a token id, or several of them. A text may reach over several tokens; the token that
            completes it is the last of its step.
        max_tokens: the most tokens of a step; one that has not met a delimiter ends there, and the text goes on in the
            next.

    Raises:
        ValueError: no delimiter, an empty or a negative one, or `max_tokens` below 1.
        TypeError: a delimiter is neither a text nor an integer.
    """
    found = as_ends("ends", ends)
    if not found:
        raise ValueError('`ends` is empty; needed a delimiter such as ";", or `block(16)` for steps without one')
    return StepMode(found, whole_number("max_tokens", max_tokens, 1))


def block(num_tokens: int) -> StepMode:
    """Steps of a fixed number of tokens, so that no row waits.

    Args:
        num_tokens: tokens of a step; only the last of a text may be shorter.

    Raises:
        ValueError: it is below 1.
        TypeError: it is not an integer.
    """
    return StepMode((), whole_number("num_tokens", num_tokens, 1))


def as_ends(name: str, ends: str | int | Sequence[str | int] | None) -> tuple[str | int, ...]:
    """Texts and token ids as a tuple; None is none of them.

    Raises:
        ValueError: one is empty or negative.
        TypeError: one is neither a text nor an integer.
    """
    if ends is None:
        return ()
    several = list(ends) if isinstance(ends, Sequence) and not isinstance(ends, str) else [ends]
    found: list[str | int] = []
    for end in several:
        if end == "":
            raise ValueError(f"`{name}` holds an empty text, which would end everything: leave it out")
        found.append(end if isinstance(end, str) else whole_number(name, end))
    return tuple(found)
