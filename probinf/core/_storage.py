r"""Checkpoints of a run: append-only record files, and one small state file that is replaced atomically.

A folder holds `manifest.json` (what the run is; written once), `records-<first step>.npz` (immutable, one a write)
and `state.npz` (where the run stands). Every file is written as a temporary file, flushed to the disk and renamed,
records before state: a crash at any instant leaves a folder that is valid up to the last state. Each record file
carries a digest of its content and of the digest before it, the first one of the manifest, and the state carries
the last: a file that was cut, changed, exchanged or removed is found out.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from probinf.core._files import damaged_text, locked, read_arrays, write_arrays, write_file
from probinf.core._types import PRNGKey

FORMAT = 1
_MENDS = {
    "format": "read it with the probinf that wrote it",
    "probinf": "install that probinf to resume",
    "jax": "install that jax to resume",
    "platform": "resume on the same kind of device, so that the draws are those of an uninterrupted run",
    "x64": "set `jax_enable_x64` as it was",
    "state": "start from a state of the same shapes and dtypes",
    "records": "use the same step, and the same `collect`",
    "reduced": "use the same reducer",
    "key": "use the same key",
    "fingerprint": "the step, the data or a setting changed: put them back",
}


class StorageWarning(UserWarning):
    """A checkpoint could not be written; the run goes on in memory."""


class Leaf(NamedTuple):
    """Name, dtype and shape of one array of a pytree; keys keep their dtype, such as `key<fry>`."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Snapshot(NamedTuple):
    """Where a run is: everything that a checkpoint holds besides the records."""

    done: int
    state: PyTree
    accumulated: PyTree


def layout_of(tree: PyTree) -> list[Leaf]:
    """One `Leaf` for each array (or `ShapeDtypeStruct`) of the tree; other leaves are skipped."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    arrays = [(path, leaf) for path, leaf in paths if isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)]
    return [
        Leaf(f"{i:04d}{jax.tree_util.keystr(path)}", str(leaf.dtype), tuple(leaf.shape))
        for i, (path, leaf) in enumerate(arrays)
    ]


def identity_of(key: PRNGKey, state: PyTree, records: PyTree, reduced: PyTree, fingerprint: str) -> dict[str, Any]:
    """What must agree for a resumed run to give the draws of an uninterrupted one."""
    return {
        "format": FORMAT,
        "probinf": probinf_version(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "x64": jnp.result_type(float) == jnp.dtype("float64"),
        "state": layout_of(state),
        "records": layout_of(records),
        "reduced": layout_of(reduced),
        "key": f"{jax.random.key_impl(key)} {np.asarray(jax.random.key_data(key)).tolist()}",
        "fingerprint": fingerprint,
    }


def probinf_version() -> str:
    """The installed version of probinf, or `source` when it runs from a checkout that is not installed."""
    try:
        return importlib.metadata.version("probinf")
    except importlib.metadata.PackageNotFoundError:
        return "source"


class RunStore:
    """One checkpoint folder, locked against a second writer while it is open. Use `open_store`."""

    def __init__(self, folder: Path, identity: dict[str, Any], digest: str):
        self.folder = folder
        self.identity = identity
        self._first_digest = digest
        self._digest = digest

    def load(self, fresh: Snapshot, records: PyTree, num_steps: int) -> Snapshot:
        """Fills `records` with what is stored and returns where the run stood; `fresh` if nothing is stored.

        Args:
            fresh: the beginning of the run; gives the structure, and the devices on which leaves are put.
            records: pytree of NumPy arrays, leading axis `num_steps`, written in place; None if not collected.
            num_steps: number of steps asked for.

        Raises:
            ValueError: a file is damaged or missing, or more steps are stored than were asked for.
        """
        path = self.folder / "state.npz"
        if not path.exists():
            return fresh
        arrays = read_arrays(path)
        index = int(arrays["index"])
        if index > num_steps:
            raise ValueError(
                f"the checkpoint folder {self.folder} holds {index} finished steps, more than the num_steps = "
                f"{num_steps} asked for: ask for at least {index}, or give another folder"
            )
        host = jax.tree.leaves(records)
        digest = self._first_digest
        for part in _record_files(self.folder, digest, index if host else 0):
            for target, leaf in zip(host, part.leaves, strict=True):
                target[part.start : part.stop] = leaf
            digest = part.digest
        if digest != str(arrays["records_digest"]):
            raise ValueError(damaged_text(path, "it does not belong to the record files beside it"))
        self._digest = digest
        return Snapshot(index, _fill(fresh.state, arrays, "state"), _fill(fresh.accumulated, arrays, "reduced"))

    def save(self, start: int, records: PyTree, at: Snapshot) -> None:
        """Appends the records of the steps `start .. at.done - 1`, then moves the state on to `at`.

        Raises:
            OSError: nothing was changed, except perhaps a record file that the next call replaces.
        """
        digest = self._digest
        leaves = jax.tree.leaves(records)
        if leaves and at.done > start:
            arrays = {f"records{leaf.name}": _encode(a) for leaf, a in zip(layout_of(records), leaves, strict=True)}
            arrays |= {"start": np.asarray(start), "stop": np.asarray(at.done), "previous": np.asarray(digest)}
            digest = write_arrays(_record_path(self.folder, start), arrays)
        arrays = {"index": np.asarray(at.done), "records_digest": np.asarray(digest)}
        arrays |= _pack(at.state, "state") | _pack(at.accumulated, "reduced")
        write_arrays(self.folder / "state.npz", arrays)
        self._digest = digest


@contextlib.contextmanager
def open_store(folder: str | Path, identity: dict[str, Any], name: str) -> Iterator[RunStore]:
    """Opens or creates a checkpoint folder for the run that `identity` describes.

    Raises:
        ValueError: the folder holds another run, is damaged, or another process is writing to it.
        OSError: the folder cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"the checkpoint folder cannot be made ({error.strerror})", str(folder)) from error
    with locked(folder):
        path = folder / "manifest.json"
        if path.exists():
            _compare(folder, _read_manifest(path), json.loads(json.dumps(identity)))
        else:
            _write_manifest(path, identity, name)
        yield RunStore(folder, identity, _manifest_digest(path))


def read_records(folder: str | Path) -> dict[str, np.ndarray]:
    """The stored records of a run, finished or not, without the code that made it: to look at or to rescue.

    Versions, dtypes and settings need not agree with this process. Also safe while the run is going on.

    Args:
        folder: the `checkpoint` folder of a run.

    Returns:
        Arrays by path in the record, such as `"['x']"`, leading axis the finished steps.

    Raises:
        ValueError: the folder holds no run, or a file is damaged; the message names it.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.exists():
        raise ValueError(f"{folder} is no checkpoint folder: it has no manifest.json. Give the `checkpoint` of a run")
    layout = [Leaf(*leaf) for leaf in _read_manifest(path)["records"]]
    state = folder / "state.npz"
    index = int(read_arrays(state)["index"]) if state.exists() else 0
    files = _record_files(folder, _manifest_digest(path), index if layout else 0)
    parts = [part.leaves for part in files]
    empty = [[np.empty((0, *leaf.shape), jnp.dtype(leaf.dtype)) for leaf in layout]]
    columns = zip(*(empty + parts), strict=True)
    return {leaf.name[4:]: np.concatenate(column) for leaf, column in zip(layout, columns, strict=True)}


def _record_path(folder: Path, start: int) -> Path:
    return folder / f"records-{start:010d}.npz"


class _Part(NamedTuple):
    """The records of the steps `start .. stop - 1`."""

    start: int
    stop: int
    digest: str
    leaves: list[np.ndarray]


def _record_files(folder: Path, digest: str, stop: int) -> Iterator[_Part]:
    """The record files up to step `stop`; a file beyond it is what a crash left, and the next write replaces it."""
    layout = [Leaf(*leaf) for leaf in _read_manifest(folder / "manifest.json")["records"]]
    start = 0
    while start < stop:
        path = _record_path(folder, start)
        arrays = read_arrays(path)
        end = int(arrays["stop"])
        if int(arrays["start"]) != start or str(arrays["previous"]) != digest or not start < end <= stop:
            raise ValueError(damaged_text(path, "it does not follow the files before it"))
        leaves = [_decode(arrays[f"records{leaf.name}"], leaf, end - start) for leaf in layout]
        digest = str(arrays["digest"])
        yield _Part(start, end, digest, leaves)
        start = end


def _write_manifest(path: Path, identity: dict[str, Any], name: str) -> None:
    strays = sorted(path.parent.glob("records-*.npz")) + sorted(path.parent.glob("state.npz"))
    if strays:
        raise ValueError(damaged_text(path, f"it is missing, but {strays[0].name} is there"))
    content = identity | {"name": name, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    text = json.dumps(content, indent=1)
    try:
        write_file(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise OSError(error.errno, f"the checkpoint cannot be begun ({error.strerror})", str(path.parent)) from error


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(damaged_text(path, str(error))) from error


def _manifest_digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _compare(folder: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuses to go on with a run that is not the stored one."""
    for field, mend in _MENDS.items():
        was, now = stored.get(field), asked[field]
        if was == now:
            continue
        if isinstance(was, list):
            pairs = [(a, b) for a, b in zip(was, now, strict=False) if a != b]
            was, now = pairs[0] if pairs else (f"{len(was)} arrays", f"{len(now)} arrays")
        raise ValueError(
            f"the checkpoint folder {folder} holds another run: its {field} is {was}, and here it is {now}. To resume, "
            f"{mend}; or give another folder. `probinf.core.read_records` reads what is stored in any case"
        )


def _pack(tree: PyTree, prefix: str) -> dict[str, np.ndarray]:
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return {f"{prefix}{leaf.name}": _encode(a) for leaf, a in zip(layout_of(tree), arrays, strict=True)}


def _fill(tree: PyTree, arrays: dict[str, np.ndarray], prefix: str) -> PyTree:
    """The tree with its arrays replaced by the stored ones, on the devices where they are."""
    names = iter(layout_of(tree))

    def replace(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        name = next(names)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jnp.asarray(arrays[f"{prefix}{name.name}"])
            stored = jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        else:
            stored = jnp.asarray(_decode(arrays[f"{prefix}{name.name}"], name, None))
        return jax.device_put(stored, leaf.sharding) if leaf.committed else stored

    return jax.tree.map(replace, tree)


def _encode(array: Any) -> np.ndarray:
    """A NumPy array that `np.load` understands; bfloat16 and its like as bytes."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    host = np.asarray(array)
    return host if host.dtype.isbuiltin == 1 else np.frombuffer(host.tobytes(), np.uint8)


def _decode(stored: np.ndarray, leaf: Leaf, count: int | None) -> np.ndarray:
    dtype = jnp.dtype(leaf.dtype)
    shape = leaf.shape if count is None else (count, *leaf.shape)
    array = stored if dtype.isbuiltin == 1 else np.frombuffer(stored.tobytes(), dtype)
    return array.reshape(shape).astype(dtype, copy=False)
