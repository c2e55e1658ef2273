r"""Figures of draws, on matplotlib alone, so that they look the same with every ArviZ."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

_MOST_PANELS = 12
_BINS = 20


def draw_plot(
    leaves: Mapping[str, Shaped[np.ndarray, "chains draws ..."]], kind: str, names: Sequence[str] | None
) -> Any:
    """A `matplotlib.figure.Figure` with one row (trace) or one panel (rank) for each scalar.

    Raises:
        ValueError: unknown kind or name, or nothing to plot.
    """
    painters = {"trace": _trace, "rank": _rank}
    if kind not in painters:
        raise ValueError(f"`kind` must be one of {sorted(painters)}, got {kind!r}")
    columns = _columns(leaves, names)
    if not columns:
        raise ValueError("there are no draws to plot: run with `collect=True`, or look at `.summary()`")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.8 * len(columns) + 0.4), layout="constrained")
    painters[kind](figure, columns)
    return figure


def _columns(leaves: Mapping[str, np.ndarray], names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Scalars by the names of the summary's rows, `[chains, draws]`."""
    found = {}
    for name, values in leaves.items():
        for index in np.ndindex(*values.shape[2:]):
            if values.shape[1] and (names is not None or len(found) < _MOST_PANELS):
                label = f"{name}[{', '.join(map(str, index))}]" if index else name
                found[label] = np.asarray(values[(..., *index)], np.float64)
    if names is None:
        return found
    for name in names:
        if name not in found:
            raise ValueError(f"`names` holds {name!r}, which is not among the draws: {', '.join(list(found)[:20])}")
    return {name: found[name] for name in names}


def _trace(figure: Any, columns: Mapping[str, Float[np.ndarray, "chains draws"]]) -> None:
    axes = figure.subplots(len(columns), 2, squeeze=False)
    for (name, chains), (left, right) in zip(columns.items(), axes, strict=True):
        finite = chains[np.isfinite(chains)]
        edges = np.histogram_bin_edges(finite, bins=min(50, max(5, int(np.sqrt(finite.size)))))
        for chain in chains:
            left.hist(chain[np.isfinite(chain)], bins=edges, histtype="step", density=bool(np.ptp(edges)))
            right.plot(chain, linewidth=0.5)
        left.set_title(name, fontsize="medium", loc="left")
        left.set_yticks([])
        right.set_xlabel("draw")


def _rank(figure: Any, columns: Mapping[str, Float[np.ndarray, "chains draws"]]) -> None:
    axes = figure.subplots(len(columns), 1, squeeze=False)
    for (name, chains), (panel,) in zip(columns.items(), axes, strict=True):
        ranks = np.argsort(np.argsort(chains, axis=None, kind="stable")).reshape(chains.shape)
        edges = np.linspace(0, chains.size, _BINS + 1)
        for chain in ranks:
            panel.hist(chain, bins=edges, histtype="step")
        # Chains that agree have flat histograms at this height.
        panel.axhline(chains.shape[1] / _BINS, color="black", linewidth=0.8, linestyle="--")
        panel.set_title(name, fontsize="medium", loc="left")
        panel.set_xlabel("rank over all chains")
