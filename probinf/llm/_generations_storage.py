r"""Files of `Generations`: one npz archive with a JSON record and a checksum; nothing is ever unpickled.

The arrays of member i stand under `i.field`; ragged ones (token ids) as their concatenation and their lengths. All else
is in `record`, UTF-8 JSON. The file is written under another name and renamed, so that it is whole or absent.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probinf.core._files import read_arrays, write_arrays
from probinf.core._storage import probinf_version

FORMAT = 1
_READERS = {"generations": "Generations.load", "batch": "GenerationsBatch.load"}


def save_generations(path: Path, members: Sequence[Any], *, kind: str) -> Path:
    """Writes the members, `Generations` all, to one file.

    Raises:
        OSError: the file cannot be written; an existing one is untouched.
    """
    arrays: dict[str, np.ndarray] = {}
    records = []
    for i, member in enumerate(members):
        own, record = _pack(member)
        arrays |= {f"{i}.{name}": values for name, values in own.items()}
        records.append(record)
    head = {
        "format": FORMAT,
        "kind": kind,
        "probinf": probinf_version(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "members": records,
    }
    text = json.dumps(head, default=_plain)
    write_arrays(path, arrays | {"record": np.frombuffer(text.encode(), np.uint8)})
    return path


def load_generations(path: Path, make: Any, *, kind: str) -> list[Any]:
    """Reads the members of a file.

    Args:
        path: of the file.
        make: the class `Generations`.
        kind: what the caller reads, `"generations"` or `"batch"`.

    Raises:
        ValueError: the file is missing, cut, changed, of another kind or of another format.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path that `save` returned")
    try:
        arrays = read_arrays(path)
        head = json.loads(arrays["record"].tobytes().decode())
    except (ValueError, KeyError) as error:
        # The reader's message speaks of checkpoints; what it found stands behind the colon.
        found = str(error.__cause__ or error).strip("'\"")
        raise ValueError(
            f"{path} cannot be read as a file of `{_READERS[kind]}` ({found}): it was cut, changed, or written by "
            "something else. Restore it from a copy, or run again"
        ) from error
    if head["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {head['format']}, this probinf reads {FORMAT}: load it with probinf {head['probinf']}"
        )
    if head["kind"] != kind:
        raise ValueError(f"{path} holds a {head['kind']}: read it with `{_READERS[head['kind']]}`")
    return [_unpack(make, record, arrays, f"{i}.") for i, record in enumerate(head["members"])]


def _pack(member: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by field, and the plain fields."""
    arrays, record = {}, {}
    for field in dataclasses.fields(member):
        value = getattr(member, field.name)
        if field.name == "token_ids":
            arrays["token_ids"] = np.concatenate([np.zeros(0, np.int32), *value])
            arrays["token_counts"] = np.asarray([len(row) for row in value], np.int64)
        elif field.name == "records":
            arrays |= {f"records.{name}": np.asarray(values) for name, values in value.items()}
        elif isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif isinstance(value, float):
            arrays[field.name] = np.asarray(value)  # JSON has neither NaN nor infinity
        else:
            record[field.name] = value
    return arrays, record


def _unpack(make: Any, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str) -> Any:
    own = {name[len(prefix) :]: values for name, values in arrays.items() if name.startswith(prefix)}
    ends = np.cumsum(own.pop("token_counts"))[:-1]
    fields = dict(record) | {
        "texts": tuple(record["texts"]),
        "token_ids": tuple(np.split(own.pop("token_ids"), ends)),
        "records": {name.removeprefix("records."): own.pop(name) for name in list(own) if name.startswith("records.")},
    }
    for name, values in own.items():
        fields[name] = values if values.ndim else float(values)
    return make(**fields)


def _plain(value: Any) -> Any:
    """What JSON can hold of a setting: numbers of arrays, anything else by its `repr`."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    tolist = getattr(value, "tolist", None)
    return tolist() if callable(tolist) else repr(value)
