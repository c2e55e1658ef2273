"""The random pairs, v = 10^U(-1, 5) and x = 10^U(-3, 6); numpy only, so that every peer can import it."""

from typing import Any, NamedTuple

import numpy as np

NAMES = ("log_iv", "log_kv")
SHOWN = 512  # values that are compared between libraries


class Problem(NamedTuple):
    """What is to be evaluated.

    Attributes:
        name: one of `NAMES`.
        seed: of the pairs.
    """

    name: str
    seed: int


def make_problem(name: str, seed: int = 1, *, solve: bool = True) -> Problem:
    """The problem; `solve` is there for the harness, and nothing is solved.

    Raises:
        ValueError: `name` is not one of `NAMES`.
    """
    del solve
    if name not in NAMES:
        raise ValueError(f"`name` is {name!r}, needed one of {NAMES}")
    return Problem(name, seed)


def pairs(problem: Problem, count: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """`count` orders and arguments, the same in both dtypes but for rounding."""
    rng = np.random.default_rng(problem.seed)
    v, x = 10 ** rng.uniform(-1, 5, count), 10 ** rng.uniform(-3, 6, count)
    return v.astype(dtype), x.astype(dtype)


def details(values: Any) -> dict[str, Any]:
    """What a run tells of its values, all of them logarithms."""
    values = np.asarray(values)
    return {"non_finite": 1 - float(np.isfinite(values).mean()), "values": values[:SHOWN].astype(float).tolist()}
