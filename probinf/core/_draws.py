r"""`Draws`: what every run returns, with its summary, its file and its flags."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from probinf.core._arviz import as_arviz, dataset, read_netcdf, write_netcdf
from probinf.core._plots import draw_plot
from probinf.core._status import check_status, explain
from probinf.core._storage import probinf_version
from probinf.core._summary import Summary, summarise
from probinf.core._types import PRNGKey

# Names that ArviZ expects among the sample statistics.
_ARVIZ_NAMES = {
    "divergent": "diverging",
    "log_density": "lp",
    "num_steps": "n_steps",
    "reached_max_depth": "reached_max_treedepth",
}
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Draws:
    """The draws of a run, with what is known about them.

    OK flags do not mean that the chains have converged: look at `summary()`.

    Attributes:
        samples: pytree of arrays `[chains, draws, ...]` in the constrained space; empty if draws were not kept.
        info: per-step quantities of the kernel by name, `[chains, draws, ...]`.
        status: uint32 status bits `[chains]`.
        log_evidence: log of the normalising constant, where the run estimates it.
        kernel: the tuned kernel; None when loaded from a file.
        state: last kernel states, leading axis chains; None when loaded from a file.
        attrs: settings, versions and timings; `stopped` says how a stop rule ended the run, `extended_at` after how
            many draws `extend` went on.
        continuation: how `extend` goes on, for the runner that made the draws; None when loaded from a file.
    """

    samples: PyTree
    info: dict[str, Any]
    status: Any
    log_evidence: float | None = None
    kernel: Any = None
    state: Any = None
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    continuation: Any = None

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return np.atleast_1d(np.asarray(self.status)).shape[0]

    @property
    def num_draws(self) -> int:
        """Number of kept draws in a chain."""
        leaves = jax.tree.leaves((self.samples, self.info))
        return int(np.shape(leaves[0])[1]) if leaves else 0

    def summary(self) -> Summary:
        """Moments, quantiles and diagnostics of every scalar, flags first.

        Where a number would mean nothing (a NaN among the draws, a chain that does not move, fewer than 4 draws, a
        floating-point grid too coarse for the spread) it is NaN and `notes` says why.

        Returns:
            A `Summary`, which prints as a table.
        """
        size = f"{self.num_chains} chains of {self.num_draws} draws"
        evidence = [] if self.log_evidence is None else [f"log evidence {self.log_evidence:.6g}"]
        flags = explain(self.status, counts=self._counts()).splitlines() or ["no flags"]
        return summarise(self._named(), (size, *evidence, *flags, *self._notes()))

    def extend(
        self,
        key: PRNGKey,
        *,
        num_samples: int,
        stop: Any = None,
        checkpoint: str | Path | None = None,
        progress: bool = False,
        mesh: jax.sharding.Mesh | None = None,
        throw: bool = True,
    ) -> "Draws":
        """Goes on with a run of `sample`: the same chains, kernel and target, no warm-up, and nothing is compiled.

        Flags, counts of divergences and streaming statistics go on too; a run that was interrupted among its draws is
        whole again. The draws are not those of one longer run, which has one key: for these call `sample` again with
        the same `checkpoint` and more `num_samples`.

        Args:
            key: PRNG key, another one than those of the earlier parts.
            num_samples: new draws a chain; with `stop` their bound.
            stop: as for `sample`. It looks at old and new draws together, and first of all at the old ones.
            checkpoint: folder for the new draws, another one than that of the earlier parts. Killed, the same calls
                of `sample` and `extend` resume it bit for bit.
            progress: shows a progress bar on stderr.
            mesh: devices to move to, as for `sample`; None for where the chains are.
            throw: as for `sample`.

        Returns:
            `Draws` with the new ones behind the old, chain by chain.

        Raises:
            ValueError: the draws were loaded or are no run of `sample`; they were interrupted in the warm-up; `key` is
                that of an earlier part; a bad argument.
            TypeError: called under `jit`, `vmap` or `grad`, or an argument of a wrong type.
            InferenceError: a chain has a fatal status; `error.result` is the flagged `Draws`.
        """
        if self.continuation is None:
            raise ValueError(
                "these draws cannot be extended, for they do not know their target and the state of their chains: "
                "files of `save` and copies by `pickle` do not keep them, and only `sample` makes them. Extend before "
                "saving, or call `sample` with the same `checkpoint` and more `num_samples`"
            )
        options = {"checkpoint": checkpoint, "progress": progress, "mesh": mesh, "throw": throw}
        return self.continuation(self, key, num_samples=num_samples, stop=stop, **options)

    def check(self) -> "Draws":
        """Returns itself if no flag is set; warns once of flags that are not fatal.

        Raises:
            InferenceError: a chain has a fatal flag.
        """
        check_status(self.status, what=str(self.attrs.get("name", "sample")), counts=self._counts())
        return self

    def to_arviz(self) -> Any:
        """The draws as `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (1.x).

        Groups `posterior` and `sample_stats` (divergences as `diverging`, the log density as `lp`). Nested samples
        are named by their path, such as `scale.0`; a bare array is `x`.
        """
        groups, record = self._groups()
        return as_arviz(groups, {"probinf": json.dumps(record)})

    def save(self, path: str | Path) -> Path:
        """Writes samples, info, status, log evidence and attributes to one netCDF file, atomically.

        ArviZ of either version reads it. Kernel, state and target are not kept: resume from a `checkpoint` for that.

        Args:
            path: file name, usually ending in `.nc`; an existing file is replaced once the new one is complete.

        Returns:
            The path.

        Raises:
            OSError: the file cannot be written; an existing one is untouched.
        """
        path = Path(path)
        groups, record = self._groups()
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            write_netcdf(temporary, groups, {"probinf": json.dumps(record)})
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @staticmethod
    def load(path: str | Path) -> "Draws":
        """Reads a file of `save`. Named tuples come back as dicts; `kernel` and `state` are None.

        Raises:
            ValueError: the file is missing, damaged, or of another kind.
        """
        groups, attrs = read_netcdf(Path(path))
        if "probinf" not in attrs:
            raise ValueError(f"{path} was not written by `Draws.save`: read it with `arviz.from_netcdf`")
        record = json.loads(attrs["probinf"])
        if record["format"] != _FORMAT:
            raise ValueError(
                f"{path} has format {record['format']}, this probinf reads {_FORMAT}: load it with "
                f"probinf {record['probinf']}"
            )
        return Draws(
            samples=_rebuild(record["samples"], groups.get("posterior", {})),
            info=_rebuild(record["info"], groups.get("sample_stats", {})),
            status=np.asarray(record["status"], np.uint32),
            log_evidence=record["log_evidence"],
            attrs=record["attrs"],
        )

    def plot(self, kind: str = "trace", *, names: Any = None) -> Any:
        """Draws a `matplotlib.figure.Figure`.

        Args:
            kind: `"trace"` (densities and traces by chain) or `"rank"` (rank histograms by chain, Vehtari 2021).
            names: which of the summary's rows to show; None for the first 12.

        Raises:
            ValueError: unknown kind or name, or no draws were kept.
        """
        return draw_plot(self._named(), kind, names)

    def __repr__(self) -> str:
        flags = "no flags" if not np.any(np.asarray(self.status)) else "flagged, see .summary()"
        return f"Draws({self.num_chains} chains of {self.num_draws} draws: {', '.join(self._named())}; {flags})"

    def _named(self) -> dict[str, np.ndarray]:
        """Sample arrays by their name, in the order of the pytree."""
        return _Names().add(self.samples)[1]

    def _groups(self) -> tuple[dict[str, Any], dict[str, Any]]:
        skeletons, groups = {}, {}
        for field, group, renamed in (("samples", "posterior", {}), ("info", "sample_stats", _ARVIZ_NAMES)):
            skeletons[field], variables = _Names(renamed).add(getattr(self, field))
            if variables:
                groups[group] = dataset({name: _storable(values) for name, values in variables.items()})
        record = {
            "format": _FORMAT,
            "probinf": probinf_version(),
            "jax": jax.__version__,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "status": np.atleast_1d(np.asarray(self.status)).tolist(),
            "log_evidence": None if self.log_evidence is None else float(self.log_evidence),
            "attrs": _plain(self.attrs),
        }
        return groups, record | skeletons

    def _counts(self) -> dict[str, str]:
        """Words for the divergences: how many, what share, and which came first."""
        if "divergent" not in self.info:
            return {}
        divergent = np.asarray(self.info["divergent"]).astype(bool)
        if not divergent.any():
            return {}
        draw, chain = np.argwhere(divergent.T)[0]
        share = 100 * divergent.mean()
        words = f"{divergent.sum()} of {divergent.size} ({share:.2g} %), first at draw {draw} of chain {chain}"
        return {"DIVERGENT": words}

    def _notes(self) -> list[str]:
        """Lines on what is no fault: how a stop rule ended the run, and trajectories that were cut short."""
        lines = []
        if stopped := self.attrs.get("stopped"):
            reached = "stopped after" if stopped["reached"] else "not reached in"
            lines.append(f"{stopped['rule']}: {reached} {stopped['num_draws']} draws a chain")
        cut = np.asarray(self.info.get("reached_max_depth", False))
        if cut.any():
            # Only the kernel of a run knows the bound; files do not keep it.
            bound = getattr(self.kernel, "max_depth", None)
            bound = "max_depth" if bound is None else f"max_depth = {bound}"
            words = f"{cut.sum()} of {cut.size} draws come from trajectories that reached {bound}"
            lines.append(f"{words}: they are right but slow; rescale the parameters, or raise it")
        return lines

    def __getstate__(self) -> dict[str, Any]:
        """Without the continuation: targets hold functions of the user, which often cannot be sent to a process."""
        return {**self.__dict__, "continuation": None}


class _Names:
    """Names the arrays of a pytree so that netCDF takes them, and writes down how to rebuild it.

    A skeleton is `["array", name, dtype]`, `["dict", [[key, skeleton], ...]]`, `["list", [...]]`, `["tuple", [...]]`
    or `["none"]`.
    """

    def __init__(self, renamed: Mapping[str, str] | None = None):
        self._renamed = renamed or {}
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, tree: PyTree) -> tuple[list[Any], dict[str, np.ndarray]]:
        """The skeleton of the tree, and its arrays by name."""
        return self._visit(tree, ""), self.arrays

    def _visit(self, node: Any, path: str) -> list[Any]:
        if node is None:
            return ["none"]
        node = _fields(node)
        if isinstance(node, Mapping):
            return ["dict", [[key, self._visit(value, f"{path}.{key}")] for key, value in node.items()]]
        if isinstance(node, list | tuple):
            return [type(node).__name__, [self._visit(value, f"{path}.{i}") for i, value in enumerate(node)]]
        array = np.asarray(node)
        name = self._free(path.lstrip(".") or "x")
        self.arrays[name] = array
        return ["array", name, str(array.dtype)]

    def _free(self, name: str) -> str:
        """A name that netCDF and ArviZ allow (no slash, no dimension) and that is not taken."""
        name = self._renamed.get(name, name).replace("/", ".")
        while name in self.arrays or name in ("chain", "draw"):
            name += "_"
        return name


def _rebuild(skeleton: list[Any], arrays: Mapping[str, np.ndarray]) -> Any:
    kind, *rest = skeleton
    if kind == "array":
        name, dtype = rest
        return arrays[name].astype(jnp.dtype(dtype), copy=False)
    if kind == "dict":
        return {key: _rebuild(part, arrays) for key, part in rest[0]}
    parts = [_rebuild(part, arrays) for part in rest[0]] if rest else None
    return tuple(parts) if kind == "tuple" and parts is not None else parts


def _storable(values: np.ndarray) -> np.ndarray:
    """An array of a type that netCDF has; small floats as float32, which holds them exactly."""
    return values if values.dtype.isbuiltin == 1 and values.dtype != np.float16 else values.astype(np.float32)


def _fields(item: Any) -> Any:
    """Named tuples, dataclasses and modules as dicts; anything else as it is."""
    if isinstance(item, tuple):
        names = getattr(item, "_fields", ())
    else:
        is_record = dataclasses.is_dataclass(item) and not isinstance(item, type)
        names = [field.name for field in dataclasses.fields(item)] if is_record else ()
    return {name: getattr(item, name) for name in names} if names else item


def _plain(item: Any) -> Any:
    """What JSON can hold of a value: arrays as lists, named tuples as dicts, anything else by its `repr`."""
    if item is None or isinstance(item, bool | int | float | str):
        return item
    if isinstance(item, jax.Array | np.ndarray | np.generic):
        return np.asarray(item).tolist()
    item = _fields(item)
    if isinstance(item, Mapping):
        return {str(key): _plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_plain(value) for value in item]
    return repr(item)
