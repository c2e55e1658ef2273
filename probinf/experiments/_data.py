"""The data sets that ship with the package; `data/LICENCE.md` has their sources and licences."""

import csv
from importlib import resources
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """A rectangular data set: `values` is [rows, columns], float64."""

    columns: tuple[str, ...]
    values: np.ndarray


def load(name: str) -> Dataset:
    """Reads a CSV that ships with probinf.

    Args:
        name: `"coal"` (112 x 2: year and disasters; Jarrett 1979), `"diabetes"` (442 x 11, the last column is the
            response; Efron et al. 2004), `"galaxies"` (82 x 1: velocities; Roeder 1990) or `"nile"` (100 x 2: year
            and flow; Cobb 1978).

    Returns:
        The column names and the numbers, in raw units.

    Raises:
        ValueError: no such data set ships.
    """
    folder = resources.files("probinf.experiments") / "data"
    file = folder / f"{name}.csv"
    if not file.is_file():
        known = sorted(item.name.removesuffix(".csv") for item in folder.iterdir() if item.name.endswith(".csv"))
        raise ValueError(f"no data set {name!r} ships with probinf: choose one of {known}")
    columns, *rows = csv.reader(file.read_text(encoding="utf-8").splitlines())
    return Dataset(tuple(columns), np.array(rows, dtype=np.float64))
