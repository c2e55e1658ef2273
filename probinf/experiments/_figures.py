"""Figures of reports: one quiet style, drawn by matplotlib, kept as SVG.

The colours are few and named. A figure file holds their light values; where a figure is put into a page each becomes
a CSS variable (`themed`), so that the same drawing is right on a dark page. Text stays text: it is crisp, can be
searched, and takes the font of the page.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

INK, MUTED, GRID, PAPER = "#1b2430", "#5f6b7a", "#dfe4ea", "#fdfdfe"
BLUE, ORANGE, TEAL, ROSE = "#2463a8", "#c8571b", "#17806c", "#a83264"
CHAINS = (BLUE, ORANGE, TEAL, ROSE)

_FONT = "DejaVu Sans"  # ships with matplotlib, so that layout is the same everywhere
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--card",
    BLUE: "--blue",
    ORANGE: "--orange",
    TEAL: "--teal",
    ROSE: "--rose",
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": _FONT,
    "font.size": 9,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
}


@contextlib.contextmanager
def canvas(*, rows: int = 1, columns: int = 1, height: float = 3.6) -> Iterator[tuple[Canvas, list[Axes]]]:
    """A figure 10 inches wide in the style of the reports, and its axes in reading order.

    No state of `matplotlib.pyplot` is touched, and no display is needed. Draw and call `to_svg` inside the block.

    Args:
        rows: rows of axes.
        columns: axes in a row.
        height: inches.
    """
    with mpl.rc_context(_STYLE):
        figure = Canvas(figsize=(10, height), layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def to_svg(figure: Canvas, *, name: str) -> str:
    """The figure as SVG text; `name` makes its ids differ from those of the other figures of a page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "probinf"})
    return buffer.getvalue()


def themed(svg: str, *, label: str) -> str:
    """SVG text ready to stand inside a page: no prolog, colours as CSS variables, the font of the page.

    Args:
        svg: what `to_svg` returned.
        label: the text for who cannot see the figure, already escaped for an attribute.
    """
    body = svg[svg.index("<svg") :]
    # The style element would speak to the whole page; the page's own style sheet says the same to its figures only.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        body = re.sub(re.escape(colour), f"var({variable})", body, flags=re.IGNORECASE)
    body = body.replace(f"'{_FONT}'", "var(--sans)")
    return body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
