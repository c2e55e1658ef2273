r"""The table of a run: posterior moments with diagnostics, and a named reason wherever a number would mean nothing.

Computed in float64 on the host. A column of draws gets NaN, with the reason in `notes`, if a draw is not finite; its
diagnostics also if it has fewer than 4 draws a chain, if a chain is constant, or if its standard deviation is below
32 spacings of its floating-point grid, where the sampler itself could not resolve its moves.
"""

import dataclasses
import io
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Shaped

from probinf.core._arviz import diagnostics

MIN_DRAWS = 4
MIN_SPACINGS = 32
COLUMNS = ("mean", "sd", "mcse", "3%", "97%", "ess_bulk", "ess_tail", "r_hat")
_MOST_ROWS = 60


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """A small table; prints itself, and `table["mean"]` is a column.

    Attributes:
        names: one name for each scalar, such as `beta[3]`.
        columns: float64 arrays by name of `COLUMNS`; 3% and 97% are quantiles.
        notes: why a row has NaN, by row name.
        header: lines on size and flags of the run, shown first.
    """

    names: tuple[str, ...]
    columns: dict[str, Float[np.ndarray, " k"]]
    notes: dict[str, str]
    header: tuple[str, ...]

    def __getitem__(self, column: str) -> Float[np.ndarray, " k"]:
        return self.columns[column]

    def row(self, name: str) -> dict[str, float]:
        """One row as a dict."""
        at = self.names.index(name)
        return {column: float(values[at]) for column, values in self.columns.items()}

    def __rich__(self):
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("", *COLUMNS, box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for i, name in enumerate(self.names[:_MOST_ROWS]):
            table.add_row(Text(name), *_row_text(*(float(self.columns[column][i]) for column in COLUMNS)))
        more = len(self.names) - _MOST_ROWS
        lines = [f"... and {more} more rows in `.columns`"] if more > 0 else []
        lines += [f"{name}: {note}" for name, note in list(self.notes.items())[:_MOST_ROWS]]
        return Group(*(Text(line) for line in self.header), table, *(Text(line) for line in lines))

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120, no_color=True).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __repr__(self) -> str:
        return str(self)


def summarise(leaves: Mapping[str, Shaped[np.ndarray, "chains draws ..."]], header: tuple[str, ...]) -> Summary:
    """The summary of arrays by name.

    Args:
        leaves: numbers or booleans, chains and draws leading.
        header: lines to show first.

    Returns:
        A `Summary` with one row for each scalar.
    """
    names, columns, grids = [], [], []
    for name, values in leaves.items():
        indices = _indices(values.shape[2:])
        flat = np.asarray(values).reshape(*values.shape[:2], len(indices))
        names += [name + index for index in indices]
        columns.append(flat.astype(np.float64))
        grids.append(_spacing(flat))
    if not names:
        return Summary((), {column: np.zeros(0) for column in COLUMNS}, {}, (*header, "no draws were kept"))
    draws, spacing = np.concatenate(columns, axis=2), np.concatenate(grids)
    reasons, finite = _reasons(draws, spacing)
    table = _moments(draws, finite)
    good = np.array([not reason for reason in reasons])
    for column, values in zip(("mcse", "ess_bulk", "ess_tail", "r_hat"), diagnostics(draws[:, :, good]), strict=True):
        table[column] = np.full(len(names), np.nan)
        table[column][good] = values
    if draws.shape[0] == 1:
        reasons = [reason or "no r_hat from one chain: run at least 2" for reason in reasons]
    notes = {name: reason for name, reason in zip(names, reasons, strict=True) if reason}
    table = {column: table[column] for column in COLUMNS}
    return Summary(tuple(names), table, notes, (*header, *_convergence(table, draws.shape[0])))


def _indices(shape: tuple[int, ...]) -> list[str]:
    return [f"[{', '.join(map(str, index))}]" if index else "" for index in np.ndindex(*shape)]


def _spacing(flat: Shaped[np.ndarray, "chains draws k"]) -> Float[np.ndarray, " k"]:
    """The distance of neighbouring floating-point numbers at the largest draw of each column; 0 for integers."""
    if flat.size == 0 or flat.dtype.kind in "biu":
        return np.zeros(flat.shape[2])
    size = np.max(np.where(np.isfinite(flat), np.abs(flat), 0), axis=(0, 1))
    # In the type of the draws themselves, which may be one of ml_dtypes.
    return np.spacing(size.astype(flat.dtype)).astype(np.float64)


def _reasons(
    draws: Float[np.ndarray, "chains draws k"], spacing: Float[np.ndarray, " k"]
) -> tuple[list[str], Bool[np.ndarray, " k"]]:
    """Why the diagnostics of a column mean nothing (empty if they do), and which columns are finite."""
    num_chains, num_draws, size = draws.shape
    bad = ~np.isfinite(draws)
    reasons = []
    for k in range(size):
        column, wrong = draws[:, :, k], bad[:, :, k]
        constant = np.flatnonzero(np.all(column == column[:, :1], axis=1))
        if wrong.any():
            # Draws are looked at in order of time, not chain by chain.
            draw, chain = np.argwhere(wrong.T)[0]
            reasons.append(f"{wrong.sum()} of {wrong.size} draws are not finite, first draw {draw} of chain {chain}")
        elif num_draws < MIN_DRAWS:
            reasons.append(f"{num_draws} draws a chain: diagnostics need at least {MIN_DRAWS}")
        elif constant.size == num_chains:
            reasons.append("constant: every draw of a chain is the same")
        elif constant.size:
            reasons.append(f"chain {constant[0]} is constant ({constant.size} of {num_chains} chains)")
        elif np.std(column) < MIN_SPACINGS * spacing[k]:
            grains = np.std(column) / spacing[k]
            reasons.append(
                f"sd is {grains:.2g} spacings of the floating-point grid at {np.max(np.abs(column)):.3g}: too coarse "
                "for diagnostics; centre the parameter, or use float64"
            )
        else:
            reasons.append("")
    return reasons, np.logical_not(np.any(bad, axis=(0, 1)))


def _moments(draws: Float[np.ndarray, "chains draws k"], finite: Bool[np.ndarray, " k"]) -> dict[str, np.ndarray]:
    flat = draws.reshape(-1, draws.shape[2])
    nothing = np.full(draws.shape[2], np.nan)
    if flat.shape[0] == 0:
        return {column: nothing for column in ("mean", "sd", "3%", "97%")}
    clean = np.where(finite, flat, 0)
    low, high = np.quantile(clean, (0.03, 0.97), axis=0)
    sd = np.std(clean, axis=0, ddof=1) if flat.shape[0] > 1 else nothing
    # Exactly zero where nothing varies, which rounding of the mean may hide.
    sd = np.where(np.ptp(clean, axis=0) == 0, np.minimum(sd, 0), sd)
    values = {"mean": np.mean(clean, axis=0), "sd": sd, "3%": low, "97%": high}
    return {column: np.where(finite, value, np.nan) for column, value in values.items()}


def _convergence(table: Mapping[str, np.ndarray], num_chains: int) -> list[str]:
    """Lines on rows whose chains disagree or moved too little (Vehtari et al. 2021: R-hat over 1.01, ESS a chain)."""
    lines = []
    apart = int(np.sum(table["r_hat"] > 1.01))
    if apart:
        lines.append(f"r_hat is over 1.01 in {apart} of {len(table['r_hat'])} rows: the chains disagree; run longer")
    few = int(np.sum(np.minimum(table["ess_bulk"], table["ess_tail"]) < 100 * num_chains))
    if few:
        lines.append(f"ess is under 100 a chain in {few} of {len(table['r_hat'])} rows: run longer")
    return lines


def _row_text(*values: float) -> list[str]:
    """Mean and quantiles to three digits of the sd; the rest to three of their own, sample sizes whole."""
    mean, sd, mcse, low, high, bulk, tail, r_hat = values
    digits = 2 - math.floor(math.log10(sd)) if math.isfinite(sd) and sd > 0 else 6
    place = f".{digits}f" if 0 <= digits <= 8 else ".6g"
    around = [f"{value:{place}}" for value in (mean, low, high)]
    return [around[0], f"{sd:.3g}", f"{mcse:.2g}", *around[1:], f"{bulk:.0f}", f"{tail:.0f}", f"{r_hat:.3f}"]
