"""Checks of arguments that every room makes, with one wording."""

import operator
from typing import Any


def whole_number(name: str, value: Any, least: int = 0, more: str = "") -> int:
    """`value` as a Python integer.

    Args:
        name: what the caller calls it, for the error.
        value: an integer of Python or NumPy, or a concrete integer scalar of JAX.
        least: the smallest that will do.
        more: the end of the sentence about one that is too small.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below `least`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if number < least:
        raise ValueError(f"`{name}` is {number}; needed at least {least}{more}")
    return number
