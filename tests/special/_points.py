"""The stored reference points as arrays, functions evaluated in pieces of one shape, and how far numbers are off."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import mpmath as mp
import numpy as np

TABLE = Path(__file__).with_name("log_bessel_points.csv")
SIZE = 256


def at(function: Callable[..., Any], first: Any, second: Any) -> Any:
    """What a function that works item by item gives at all pairs, as NumPy arrays.

    It is called with `SIZE` pairs at a time, so that all tests of a file share one compiled program a dtype.
    """
    first, second = np.broadcast_arrays(first, second)
    shape, count = first.shape, first.size
    padded = [np.concatenate([a.ravel(), np.ones(-count % SIZE, a.dtype)]) for a in (first, second)]
    pieces = [function(*(a[i : i + SIZE] for a in padded)) for i in range(0, count, SIZE)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count].reshape(shape), *pieces)


class Points:
    """Columns of `log_bessel_points.csv`: `v` and `x` in float64, the others as mpmath numbers."""

    def __init__(self) -> None:
        with TABLE.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.v = np.array([float.fromhex(row["v"]) for row in rows])
        self.x = np.array([float.fromhex(row["x"]) for row in rows])
        with mp.workdps(30):
            self.columns = {name: [mp.mpf(row[name]) for row in rows] for name in rows[0] if name not in "vx"}

    def __getitem__(self, name: str) -> list[mp.mpf]:
        return self.columns[name]

    @property
    def radius(self) -> np.ndarray:
        """sqrt(v^2 + x^2)."""
        return np.hypot(self.v, self.x)

    def single(self, name: str) -> tuple[np.ndarray, np.ndarray, list[mp.mpf], np.ndarray]:
        """Orders and arguments rounded to float32, the values there (Taylor, second order), and which are in range."""
        inside = self.x > 1e-37
        v, x = (a[inside].astype(np.float32) for a in (self.v, self.x))
        parts = [np.array(self[name + part], object)[inside] for part in ("", "_v", "_x", "_vv", "_vx", "_xx")]
        moved = []
        with mp.workdps(30):
            for i in range(len(v)):
                a = mp.mpf(float(v[i])) - mp.mpf(float(self.v[inside][i]))
                b = mp.mpf(float(x[i])) - mp.mpf(float(self.x[inside][i]))
                f, f_v, f_x, f_vv, f_vx, f_xx = (part[i] for part in parts)
                moved.append(f + a * f_v + b * f_x + a * a * f_vv / 2 + a * b * f_vx + b * b * f_xx / 2)
        return v, x, moved, inside


def errors(found: np.ndarray, exact: Sequence[mp.mpf], scale: np.ndarray | float = 1.0) -> np.ndarray:
    """|error| / max(|exact|, scale); infinite where `found` is not finite, unless the exact number is out of range."""
    scales = np.broadcast_to(scale, np.shape(found))
    return np.array([_error(float(a), b, float(s)) for a, b, s in zip(found, exact, scales, strict=True)])


def _error(found: float, exact: mp.mpf, scale: float) -> float:
    if not np.isfinite(found):
        return 0.0 if found == float(exact) else np.inf
    with mp.workdps(60):
        return float(abs(mp.mpf(found) - exact) / max(abs(exact), mp.mpf(scale), mp.mpf(10) ** -290))
