r"""Everything that ArviZ 0.x and 1.x do differently, and the netCDF files that both read.

ArviZ 0.x holds draws in `InferenceData`, 1.x in `xarray.DataTree`. Groups are built here as `xarray.Dataset`s, which
both take, and files are written by xarray, so that a file does not depend on which ArviZ wrote it. ArviZ is imported
on first use: it takes seconds.
"""

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

_ENGINE = "h5netcdf"


class Diagnostics(NamedTuple):
    """Per column: Monte Carlo standard error of the mean, bulk and tail ESS, rank-normalised split R-hat.

    Vehtari, Gelman, Simpson, Carpenter, Buerkner (2021).
    """

    mcse: Float[np.ndarray, " k"]
    ess_bulk: Float[np.ndarray, " k"]
    ess_tail: Float[np.ndarray, " k"]
    r_hat: Float[np.ndarray, " k"]


def import_arviz() -> ModuleType:
    """ArviZ, without the announcement that 0.23 makes on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("arviz")


def is_old(arviz: ModuleType) -> bool:
    """Whether this is ArviZ 0.x."""
    return arviz.__version__.partition(".")[0] == "0"


def diagnostics(draws: Float[np.ndarray, "chains draws k"]) -> Diagnostics:
    """ArviZ's diagnostics of every column; the caller has sorted out columns for which they mean nothing.

    One chain has no R-hat: NaN.
    """
    arviz = import_arviz()
    if draws.shape[2] == 0:
        return Diagnostics(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
    data = as_arviz({"posterior": dataset({"x": draws})}, {})

    def read(result: Any) -> np.ndarray:
        return np.asarray(result["x"].values, np.float64)

    r_hat = read(arviz.rhat(data)) if draws.shape[0] > 1 else np.full(draws.shape[2], np.nan)
    bulk, tail = (read(arviz.ess(data, method=method)) for method in ("bulk", "tail"))
    return Diagnostics(read(arviz.mcse(data, method="mean")), bulk, tail, r_hat)


def dataset(variables: Mapping[str, Shaped[np.ndarray, "chains draws ..."]]) -> Any:
    """An `xarray.Dataset` with dimensions `chain`, `draw` and `<name>_dim_<i>`, as ArviZ names them."""
    import xarray

    data, sizes = {}, (0, 0)
    for name, values in variables.items():
        extra = [f"{name}_dim_{i}" for i in range(values.ndim - 2)]
        data[name] = (["chain", "draw", *extra], values)
        sizes = values.shape[:2]
    return xarray.Dataset(data, coords={"chain": np.arange(sizes[0]), "draw": np.arange(sizes[1])})


def as_arviz(groups: Mapping[str, Any], attrs: Mapping[str, str]) -> Any:
    """`InferenceData` with ArviZ 0.x, `DataTree` with 1.x; groups are Datasets by name."""
    arviz = import_arviz()
    if is_old(arviz):
        return arviz.InferenceData(attrs=dict(attrs), **groups)
    return _tree(groups, attrs)


def _tree(groups: Mapping[str, Any], attrs: Mapping[str, str]) -> Any:
    import xarray

    root = {"/": xarray.Dataset(attrs=dict(attrs))}
    return xarray.DataTree.from_dict(root | {f"/{name}": group for name, group in groups.items()})


def write_netcdf(path: Path, groups: Mapping[str, Any], attrs: Mapping[str, str]) -> None:
    """Writes groups and root attributes to one netCDF file, which `arviz.from_netcdf` of either version reads."""
    _tree(groups, attrs).to_netcdf(path, engine=_ENGINE)


def read_netcdf(path: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Groups as arrays by name, and the root attributes.

    Raises:
        ValueError: the file is missing, cut, or no netCDF file.
    """
    import xarray

    try:
        with xarray.open_datatree(path, engine=_ENGINE) as tree:
            groups = {
                name: {str(key): values.values for key, values in group.data_vars.items()}
                for name, group in tree.children.items()
            }
            return groups, {str(name): value for name, value in tree.attrs.items()}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a netCDF file ({error}): give a file of `Draws.save`") from error
