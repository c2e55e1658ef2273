r"""Reads data and reference summaries from a folder in one of two layouts.

The simple one has `posteriordb_data/DATA.json` and `posteriordb.csv` with the columns posterior, parameter, mean, sd,
mean_square, n_draws. The other is a checkout of posteriordb (Magnusson et al. 2024), or its `posterior_database`:
`posteriors/NAME.json` says which data and reference draws belong to a posterior, `data/data/DATA.json.zip` holds the
data, and `reference_posteriors/draws/draws/NAME.json.zip` a list of chains, each a dict from parameter to its draws,
from which the summary is computed: the summary files of that folder lack standard deviations.
"""

import csv
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_COLUMNS = ("posterior", "parameter", "mean", "sd", "mean_square", "n_draws")


class ReferenceSummary(NamedTuple):
    """What the reference draws say about one scalar parameter.

    Attributes:
        mean: their mean.
        sd: their standard deviation, with n - 1.
        mean_square: the mean of their squares.
        num_draws: how many there are; nearly independent, since posteriordb thins them.
    """

    mean: float
    sd: float
    mean_square: float
    num_draws: int


class FolderContents(NamedTuple):
    """What a folder holds on one posterior.

    Attributes:
        data: the data by variable, as JSON gives them.
        source: where the data come from, for errors.
        summary: by parameter name; None where the folder has no summary of this posterior.
    """

    data: Mapping[str, Any]
    source: str
    summary: dict[str, ReferenceSummary] | None


def read_folder(folder: str | Path, name: str) -> FolderContents:
    """Data and summary of the posterior `name`.

    Raises:
        ValueError: the folder is missing or has neither layout, or a file of it is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` is {str(folder)!r}, which is no folder: pass the path of a posteriordb folder")
    if (folder / "posteriordb_data").is_dir():
        return _read_simple(folder, name)
    for root in (folder, folder / "posterior_database"):
        if (root / "posteriors").is_dir():
            return _read_checkout(root, name)
    raise ValueError(
        f"`folder` is {str(folder)!r}, which has neither `posteriordb_data` (the simple layout) nor `posteriors` or "
        "`posterior_database/posteriors` (a checkout of posteriordb): pass one that has"
    )


def _read_simple(folder: Path, name: str) -> FolderContents:
    path = folder / "posteriordb_data" / f"{name.partition('-')[0]}.json"
    table = folder / "posteriordb.csv"
    return FolderContents(_object(path), str(path), _read_table(table, name) if table.is_file() else None)


def _read_table(path: Path, name: str) -> dict[str, ReferenceSummary] | None:
    """The rows of `name` by parameter; None if there are none."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}: its first line must name {list(_COLUMNS)}")
        summary = {}
        for row in reader:
            if row["posterior"] == name:
                numbers = (row["mean"], row["sd"], row["mean_square"], row["n_draws"])
                try:
                    mean, sd, mean_square = map(float, numbers[:3])
                    summary[row["parameter"]] = ReferenceSummary(mean, sd, mean_square, int(numbers[3]))
                except (TypeError, ValueError) as error:
                    where = f"{path}, line {reader.line_num}"
                    raise ValueError(f"{where}: {numbers} are not three numbers and a count") from error
    return summary or None


def _read_checkout(root: Path, name: str) -> FolderContents:
    entry_path = root / "posteriors" / f"{name}.json"
    entry = _object(entry_path)
    if not isinstance(entry.get("data_name"), str):
        raise ValueError(f"{entry_path} has no string `data_name`, so its data cannot be found")
    path = root / "data" / "data" / f"{entry['data_name']}.json.zip"
    # Null where posteriordb has no reference draws.
    reference = entry.get("reference_posterior_name")
    draws = root / "reference_posteriors" / "draws" / "draws" / f"{reference}.json.zip"
    summary = _summarise_draws(draws) if reference and draws.is_file() else None
    return FolderContents(_object(path), str(path), summary)


def _summarise_draws(path: Path) -> dict[str, ReferenceSummary]:
    chains = _parse(path)
    try:
        draws = {name: np.concatenate([np.asarray(c[name], np.float64) for c in chains]) for name in chains[0]}
        return {name: _moments(values) for name, values in draws.items()}
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold a list of chains with the same parameters, as lists of numbers"
        ) from error


def _moments(values: np.ndarray) -> ReferenceSummary:
    return ReferenceSummary(
        float(np.mean(values)), float(np.std(values, ddof=1)), float(np.mean(values**2)), values.size
    )


def _object(path: Path) -> dict[str, Any]:
    content = _parse(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, but needs an object of variables by name")
    return content


def _parse(path: Path) -> Any:
    """The content of a JSON file, which may be the one file of a zip archive."""
    try:
        if path.suffix != ".zip":
            return _json(path, path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            text = archive.read(members[0]) if len(members) == 1 else None
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: the folder does not hold this posterior") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no zip archive: fetch it again (is it a Git LFS pointer?)") from error
    if text is None:
        raise ValueError(f"{path} holds {len(members)} files, but needs one")
    return _json(path, text)


def _json(path: Path, text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
