"""Checks of arguments that every room makes, with one wording."""

import operator
from collections.abc import Iterable
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


def names_of_sites(sites: Any, example: str, mend: str) -> tuple[str, ...]:
    """`sites` as a tuple of different names, in their order.

    Args:
        sites: names of entries of a position.
        example: a list to be shown.
        mend: what to do if there is none.

    Raises:
        TypeError: it is no sequence of names.
        ValueError: it is empty, or names a site twice.
    """
    if isinstance(sites, str) or not isinstance(sites, Iterable):
        raise TypeError(f"`sites` must be a sequence of names, but is {sites!r}: write `{example}`")
    names = tuple(sites)
    if not names:
        raise ValueError(f"`sites` is empty: name at least one {mend}")
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"`sites` must be names, but is {list(names)!r}: write `{example}`")
    if len(set(names)) < len(names):
        raise ValueError(f"`sites` names a site twice: {list(names)}")
    return names
