"""`posterior`: a reference posterior by name, as a `Target` with its reference summary."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import biject_to
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.initialization import init_to_uniform

from probinf.core._arguments import whole_number
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.models.reference._catalogue import AUXILIARY, MODELS, NAMES, SHIPPED
from probinf.models.reference._folder import FolderContents, ReferenceSummary, read_folder


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """A reference posterior.

    Attributes:
        name: DATA-MODEL, one of `NAMES`.
        target: its density; the data are array leaves.
        data: what the model was given, by keyword.
        summary: the reference, by parameter name such as `theta[1]`; None where the folder has none.
        shapes: shape of each constrained site that `quantities` reads, by its name.
    """

    name: str
    target: Target
    data: Mapping[str, Any]
    summary: Mapping[str, ReferenceSummary] | None
    shapes: Mapping[str, tuple[int, ...]]

    def quantities(self, samples: Mapping[str, Any]) -> dict[str, Float[Array | np.ndarray, "..."]]:
        """The scalars that the reference names, numbered from 1: `beta` of shape [2] gives `beta[1]` and `beta[2]`.

        Args:
            samples: constrained values by site, such as `Draws.samples`; any leading axes, the same in all.

        Returns:
            By name, arrays of the leading axes.

        Raises:
            ValueError: a site is missing, or does not end in its shape.
        """
        found = {}
        for site, shape in self.shapes.items():
            if site not in samples:
                raise ValueError(f"`samples` has no '{site}': pass constrained samples of `{self.name}`, by site")
            values = samples[site]
            lead = values.ndim - len(shape)
            if lead < 0 or values.shape[lead:] != shape:
                raise ValueError(f"`samples['{site}']` has shape {values.shape}, which must end in {shape}")
            for index in np.ndindex(*shape):
                label = f"[{','.join(str(i + 1) for i in index)}]" if index else ""
                found[site + label] = values[(..., *index)]
        return found

    def initial_position(self, key: PRNGKey, num_chains: int) -> dict[str, Float[Array, "chains ..."]]:
        """Unconstrained starting points for `sample`, which cannot draw them itself where a prior is improper.

        Args:
            key: PRNG key.
            num_chains: how many, at least 1.

        Returns:
            By site, every coordinate uniform on (-2, 2), as Stan does; leading axis `num_chains`. For regressions in
            raw units that is so far in the tails that warm-up, which tunes one step size for all chains, can leave one
            of them behind: begin near the mode.
        """
        return starts(MODELS[self.name], dict(self.data), key, whole_number("num_chains", num_chains, 1))


def posterior(name: str, folder: str | Path | None = None) -> Posterior:
    """A posterior of posteriordb (Magnusson et al. 2024) by its name, with data and reference from a folder.

    Densities are known up to a constant and are in the default precision of JAX when this is called. Where a prior is
    improper, `target.sample_prior` is None and `sample` needs `initial_position`.

    Args:
        name: one of `NAMES`.
        folder: of the layout `posteriordb.csv` with `posteriordb_data/DATA.json`, or a checkout of posteriordb. None
            takes the data from the package, which has those of eight schools alone, and gives no summary.

    Returns:
        A `Posterior`.

    Raises:
        ValueError: an unknown name; a folder that is None (for all but eight schools), missing, or of another layout;
            a file or a variable that is missing, damaged or not finite; `gp_pois_regr` without float64.
    """
    if name not in MODELS:
        raise ValueError(f"`name` is {name!r}, which is no reference posterior: choose one of {list(NAMES)}")
    contents = _shipped(name) if folder is None else read_folder(folder, name)
    data = _arguments(MODELS[name], contents)
    target = Target.from_numpyro(MODELS[name], **data)
    start = jax.eval_shape(lambda key: _start(MODELS[name], data, key), jax.random.key(0))
    sites = jax.eval_shape(target.constrain, start)
    shapes = {site: value.shape for site, value in sites.items() if site not in AUXILIARY}
    return Posterior(name, target, data, contents.summary, shapes)


def _shipped(name: str) -> FolderContents:
    if name not in SHIPPED:
        raise ValueError(
            f"`folder` is None, but the data of {name!r} do not ship with probinf (only those of {list(SHIPPED)} do): "
            "pass the path of a checkout of github.com/stan-dev/posteriordb"
        )
    return FolderContents(SHIPPED[name], "the package", None)


def _arguments(model: Callable[..., Any], contents: FolderContents) -> dict[str, Any]:
    """What the model takes of the data: arrays, and whole numbers where it says `int`."""
    wanted = inspect.signature(model).parameters
    missing = [variable for variable in wanted if variable not in contents.data]
    if missing:
        raise ValueError(
            f"{contents.source} has no variable {', '.join(missing)}, which `{model.__name__}` needs: it has "
            f"{sorted(contents.data)}"
        )
    given = {variable: contents.data[variable] for variable in wanted}
    return {
        variable: _whole(variable, value, contents.source)
        if wanted[variable].annotation is int
        else _array(variable, value, contents.source)
        for variable, value in given.items()
    }


def _whole(variable: str, value: Any, source: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"variable '{variable}' of {source} is {value!r}, but must be a whole number")
    return value


def _array(variable: str, value: Any, source: str) -> Array:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"variable '{variable}' of {source} is not a rectangular array of numbers: {error}") from error
    if not np.all(np.isfinite(array)):
        raise ValueError(
            f"variable '{variable}' of {source} has values that are NaN or infinite: the models need finite ones"
        )
    return jnp.asarray(array)


@eqx.filter_jit
def starts(
    model: Callable[..., Any], data: dict[str, Any], key: PRNGKey, num_chains: int
) -> dict[str, Float[Array, "chains ..."]]:
    """Positions of the model, their coordinates uniform on (-2, 2)."""
    return jax.vmap(lambda k: _start(model, data, k))(jax.random.split(key, num_chains))


def _start(model: Callable[..., Any], data: Mapping[str, Any], key: PRNGKey) -> dict[str, Array]:
    sites = trace(substitute(seed(model, key), substitute_fn=init_to_uniform)).get_trace(**data)
    latent = {n: s for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]}
    return {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in latent.items()}
