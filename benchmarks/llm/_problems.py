"""What is run: a judge's particle filter on one chain of sums; NumPy only, so that the peers can import it.

Proposals are the weak chains model at temperature 1, weights are p_strong / p_weak of every step, resampled
systematically after each step; a step is two tokens, a digit and its `;`. The evidence is 1 exactly, whatever runs it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

CHECKPOINTS = Path(__file__).resolve().parents[2] / "probinf" / "llm" / "checkpoints"
STEP = 2  # tokens
PROMPT = "7+4*3-8*9+6-1*7+2*3+5-9*3>"
CONTINUED = "1;3;5;5;1;0;0;2;6;1;2;6;"  # its probability shows whether two libraries read the same model


class Problem(NamedTuple):
    """The task.

    Attributes:
        name: "chains".
        num_steps: T, steps of every text.
        prompt: the text to go on from.
        proposer, judge: folders of the models.
    """

    name: str
    num_steps: int
    prompt: str
    proposer: Path
    judge: Path


def make_problem(name: str, size: int, solve: bool = True) -> Problem:
    """The task with `size` steps.

    Args:
        name: "chains".
        size: T.
        solve: not used: the log evidence is 0.

    Raises:
        ValueError: an unknown name.
    """
    del solve
    if name != "chains":
        raise ValueError(f"`name` is {name!r}; needed 'chains'")
    return Problem(name, size, PROMPT, CHECKPOINTS / "chains", CHECKPOINTS / "chains-strong")


def systematic(uniform: float, log_weights: np.ndarray) -> np.ndarray:
    """The ancestors of systematic resampling, for peers on the host."""
    weights = np.exp(log_weights - log_weights.max())
    sums = np.cumsum(weights / weights.sum())
    positions = (np.arange(len(weights)) + uniform) / len(weights)
    return np.minimum(np.searchsorted(sums, positions), len(weights) - 1)


def log_mean_exp(log_weights: np.ndarray) -> float:
    """Log of the mean of the weights."""
    top = log_weights.max()
    return float(top + np.log(np.mean(np.exp(log_weights - top))))
