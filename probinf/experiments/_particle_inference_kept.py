"""Tallies on disk, so that a run that was interrupted goes on behind the last method that it finished."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from probinf.core._files import read_arrays, write_arrays
from probinf.experiments._particle_inference_chains import Independent, Tally


def kept_tally(folder: Path, name: str, compute: Callable[[], Tally]) -> Tally:
    """The tally `name` of a folder, computed and written if it is not there."""
    return _kept(folder / f"{name}.npz", compute, lambda tally: tally._asdict(), lambda arrays: Tally(**arrays))


def kept_solutions(folder: Path, name: str, compute: Callable[[], Independent]) -> Independent:
    """As `kept_tally`, of independent solutions."""
    return _kept(folder / f"{name}.npz", compute, _flat, _solutions)


def _kept(
    file: Path,
    compute: Callable[[], Any],
    flatten: Callable[[Any], dict[str, Any]],
    restore: Callable[[dict[str, np.ndarray]], Any],
) -> Any:
    if not file.is_file():
        found = {name: np.asarray(values) for name, values in flatten(compute()).items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(file, found)
    # Read back in either case: a resumed run and an uninterrupted one see the same numbers.
    arrays = read_arrays(file)
    del arrays["digest"]
    return restore(arrays)


def _flat(found: Independent) -> dict[str, Any]:
    arrays = found._asdict()
    for name in ("scores", "evidence"):
        arrays |= {f"{name}.{inner}": values for inner, values in arrays.pop(name).items()}
    # No answer is the empty text.
    arrays["answers"] = np.array([[answer or "" for answer in row] for row in found.answers], dtype=np.str_)
    return arrays


def _solutions(arrays: dict[str, np.ndarray]) -> Independent:
    nested: dict[str, Any] = {"scores": {}, "evidence": {}}
    for name in [name for name in arrays if "." in name]:
        outer, inner = name.split(".")
        nested[outer][inner] = arrays.pop(name)
    answers = [[str(answer) or None for answer in row] for row in arrays.pop("answers")]
    return Independent(**{**arrays, **nested, "answers": answers, "aggregate": str(arrays["aggregate"])})
