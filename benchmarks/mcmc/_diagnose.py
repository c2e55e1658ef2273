"""The one estimator of everybody's effective sample size, and how far posterior moments of libraries lie apart.

ESS is the bulk ESS of ArviZ, rank-normalised and split (Vehtari et al. 2021), as `Draws.summary` shows it, of the same
scalars for all libraries. It is computed by the command itself, off the clock and in no worker.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._harness import Row, Run
from probinf.core._arviz import as_arviz, dataset, diagnostics, import_arviz

Z_LIMIT = 5.0  # standard errors; of 103 normal scores the largest exceeds it once in 17,000 runs


def reduced(details: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Details of a run with the file "draws" read, deleted and replaced by what it says of its columns `names`."""
    path = Path(details["draws"])
    draws = np.load(path).astype(np.float64)
    path.unlink()
    rest = {name: value for name, value in details.items() if name != "draws"}
    if not np.all(np.isfinite(draws)):
        return {**rest, "min_ess": 0.0, "slowest": "not finite", "max_r_hat": math.inf, "moments": []}
    found = diagnostics(draws)
    # A column that never moves has no ESS.
    bulk = np.nan_to_num(found.ess_bulk, nan=0.0)
    centred = np.square(draws - draws.mean(axis=(0, 1)))
    arviz = import_arviz()
    spread = arviz.mcse(as_arviz({"posterior": dataset({"x": centred})}, {}), method="mean")["x"].values
    return {
        **rest,
        "min_ess": float(np.min(bulk)),
        "slowest": names[int(np.argmin(bulk))],
        "max_r_hat": float(np.max(np.nan_to_num(found.r_hat, nan=np.inf if len(draws) > 1 else 1.0))),
        "moments": [
            _short(values) for values in (draws.mean(axis=(0, 1)), found.mcse, centred.mean(axis=(0, 1)), spread)
        ],
    }


def agreement(row: Row, rows: Sequence[Row]) -> tuple[float, float] | None:
    """The largest z score of a mean, and that of a variance, against the pooled rows of other libraries.

    Runs of a row are averaged, others are weighted by their precision. A wrong library pulls the pool, so that
    others are flagged beside it: the largest z is its own. None where nobody else ran.
    """
    rest = [other for other in rows if other.competitor.library != row.competitor.library]
    own, others = _average(row), [found for found in map(_average, rest) if found is not None]
    if own is None or not others:
        return None
    means, errors = np.stack([one[0] for one in others]), np.stack([one[1] for one in others])
    precision = 1 / np.square(errors)
    pooled, variance = np.sum(precision * means, axis=0) / precision.sum(axis=0), 1 / precision.sum(axis=0)
    z = np.abs(own[0] - pooled) / np.sqrt(np.square(own[1]) + variance)
    return float(np.max(z[0])), float(np.max(z[1]))


def _average(row: Row) -> tuple[np.ndarray, np.ndarray] | None:
    """Means and variances [2, k] over the runs of a row, and their standard errors; None without finite ones."""
    moments = [run.details["moments"] for run in row.runs if run.details.get("moments")]
    if not moments:
        return None
    at = np.asarray(moments)  # [runs, 4, k]
    errors = np.sqrt(np.mean(np.square(at[:, 1::2]), axis=0) / len(at))
    return at[:, ::2].mean(axis=0), np.maximum(errors, np.finfo(np.float64).tiny ** 0.25)


def ess_per_second(run: Run, clock: str = "wall") -> float:
    """Bulk ESS of the slowest scalar over the seconds of the whole call."""
    return run.details["min_ess"] / getattr(run, clock)


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
