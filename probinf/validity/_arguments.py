"""Checks of the arguments of this room's functions, with one wording."""

import numbers
from typing import Any

from probinf.core import whole_number


def rate_between(name: str, value: Any, least: float = 0.0) -> float:
    """`value` as a probability strictly between `least` and 1 (or equal to a positive `least`).

    Raises:
        ValueError: it is not; the message names it.
    """
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None
    if number is None or not (least <= number < 1) or number == 0:
        raise ValueError(f"`{name}` is {value!r}; needed a probability of at least {least:g}, above 0 and below 1")
    return number


def split_rate(name: str, value: Any, count: int, least: float) -> float:
    """The false alarm rate of each of `count` checks that together have the rate `value`.

    Raises:
        ValueError: `value` is not a probability, or each share would be below `least`.
    """
    share = rate_between(name, value) / count
    if share < least:
        raise ValueError(f"`{name}` is {value!r} for {count} checks; needed at least {count * least:.1g} in all")
    return share


def sample_size(name: str, value: Any, least: int = 2) -> int:
    """`value` as a whole number of at least `least` (see `whole_number`)."""
    return whole_number(name, value, least, ": take more")


def callables(**functions: Any) -> None:
    """Raises `TypeError`, with its name, for what is not callable."""
    for name, value in functions.items():
        if not callable(value):
            raise TypeError(f"`{name}` is {value!r}; needed a function")
