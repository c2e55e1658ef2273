r"""The genealogy of a particle run as a figure: lineages by slot over steps, final weights beside, the ESS below.

A segment leads from a slot's ancestor to the slot. Its width grows with the final weight that descends from it,
$\sum_{i \in \mathrm{desc}} W_i$, so that a picture with one thick trunk is one of degeneracy. What colour says is also
said by width, marker or dots, for readers who do not tell the colours apart.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# The palette of the reports (`experiments`, a room above this one), whose pages turn these very values into theirs.
INK, MUTED, GRID, PAPER = "#1b2430", "#5f6b7a", "#dfe4ea", "#fdfdfe"
BLUE, ORANGE = "#2463a8", "#c8571b"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
_DASHED = (0, (4, 3))
_SLOT_INCHES, _MOST_INCHES, _LABEL_INCHES = 0.16, 7.5, 0.14
_LABEL_LENGTH = 14
_CURVE = np.linspace(0, 1, 13)
_BEND = _CURVE**2 * (3 - 2 * _CURVE)


class Lineages(NamedTuple):
    """Segments from slots at one step to slots at the next, and what becomes of them.

    Attributes:
        step: the later step of each segment, 0-based.
        parent: slot at the step before.
        child: slot at `step`.
        share: final weight of all descendants.
        survives: whether any final text descends from it.
        heaviest: whether it is on the lineage of the final text of the largest weight.
        over: whether the text had ended before the step.
    """

    step: Int[np.ndarray, " segments"]
    parent: Int[np.ndarray, " segments"]
    child: Int[np.ndarray, " segments"]
    share: Float[np.ndarray, " segments"]
    survives: Bool[np.ndarray, " segments"]
    heaviest: Bool[np.ndarray, " segments"]
    over: Bool[np.ndarray, " segments"]


def trace_lineages(
    ancestors: Int[np.ndarray, "t_less_1 n"], weights: Float[np.ndarray, " n"], finished: Bool[np.ndarray, "t n"]
) -> Lineages:
    """Follows every final text back to its first step.

    Args:
        ancestors: row t tells from which slot each slot came on the way to step t + 1.
        weights: final weights, normalised (or all 0).
        finished: whether each slot's text had ended after each step.

    Returns:
        (T - 1) N segments, step by step.
    """
    steps, count = ancestors.shape[0], weights.size
    shares, lives, best = np.zeros((steps, count)), np.zeros((steps, count), bool), np.zeros((steps, count), bool)
    share, life, mark = np.asarray(weights, float), np.ones(count, bool), np.zeros(count, bool)
    if np.any(share > 0):
        mark[int(np.argmax(share))] = True
    for t in range(steps - 1, -1, -1):
        shares[t], lives[t], best[t] = share, life, mark
        share = np.bincount(ancestors[t], share, minlength=count)
        life = np.bincount(ancestors[t], life, minlength=count) > 0
        mark = np.bincount(ancestors[t], mark, minlength=count) > 0
    return Lineages(
        step=np.repeat(np.arange(1, steps + 1), count),
        parent=ancestors.ravel().astype(int),
        child=np.tile(np.arange(count), steps),
        share=shares.ravel(),
        survives=lives.ravel(),
        heaviest=best.ravel(),
        over=np.take_along_axis(finished[:steps], ancestors, 1).ravel(),
    )


def plot_genealogy(generations: Any, answers: Sequence[Hashable | None] | None, *, width: float = 10.0) -> Any:
    """The figure of `Generations.plot`; no state of `matplotlib.pyplot` is touched, and no display is needed.

    Args:
        generations: a `Generations`.
        answers: label of each final text, or None for no labels.
        width: inches.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    slots = generations.log_weight_path.shape[1]
    height = float(np.clip(_SLOT_INCHES * slots, 2.2, _MOST_INCHES))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height + 1.9), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(height, 1.0))
        main = figure.add_subplot(grid[0, 0])
        below = figure.add_subplot(grid[1, 0], sharex=main)
        _paint_lineages(main, generations)
        _paint_ess(below, generations)
        if generations.num_particles == slots:
            _paint_weights(figure.add_subplot(grid[0, 1], sharey=main), generations, answers)
        handles = _legend(generations)
        columns = len(handles) if width >= 10 else 3
        tight = {"handlelength": 1.6, "columnspacing": 1.3, "handletextpad": 0.6}
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=8, **tight)
    return figure


def _paint_lineages(axes: Any, generations: Any) -> None:
    slots = generations.log_weight_path.shape[1]
    weights = generations.weights if generations.num_particles == slots else np.full(slots, 1 / slots)
    found = trace_lineages(generations.ancestors, weights, generations.finished_path)
    lost = ~found.survives
    _draw_segments(axes, found, lost, MUTED, np.where(lost, 0.5, 0.0), order=1, alpha=0.45)
    _draw_segments(axes, found, found.survives & ~found.heaviest, BLUE, 0.9 + 4 * found.share, order=2, alpha=0.9)
    _draw_segments(axes, found, found.heaviest, ORANGE, 1.8 + 4 * found.share, order=3, alpha=1.0)
    done = generations.finished_path
    before = np.vstack([np.zeros((1, slots), bool), np.take_along_axis(done[:-1], generations.ancestors, 1)])
    step, slot = np.nonzero(done & ~before)
    axes.plot(step + 1, slot, "o", color=PAPER, markeredgecolor=INK, markersize=3.6, markeredgewidth=0.9, zorder=4)
    # A slot that nobody descends from has no segment at the first step.
    alive = np.ones(slots, bool) if len(found.step) == 0 else _first_survive(found, slots)
    for chosen, colour in ((alive, BLUE), (~alive, MUTED)):
        axes.plot(np.ones(chosen.sum()), np.flatnonzero(chosen), ".", color=colour, markersize=3.5, zorder=3.5)
    for t in np.flatnonzero(generations.resampled):
        axes.axvline(t + 0.5, color=GRID, linewidth=0.8, zorder=0)
    axes.set(ylabel="slot", xlim=(0.5, done.shape[0] + 0.5), ylim=(slots - 0.4, -0.6))
    axes.tick_params(labelbottom=False, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _first_survive(found: Lineages, slots: int) -> Bool[np.ndarray, " n"]:
    """Whether any final text descends from each slot at the first step."""
    alive = np.zeros(slots, bool)
    alive[found.parent[(found.step == 1) & found.survives]] = True
    return alive


def _draw_segments(
    axes: Any,
    found: Lineages,
    chosen: Bool[np.ndarray, " segments"],
    colour: str,
    widths: Float[np.ndarray, " segments"],
    *,
    order: int,
    alpha: float,
) -> None:
    """The chosen segments as curves; dotted where the text had ended, for then nothing was added to it."""
    from matplotlib.collections import LineCollection

    for dotted in (False, True):
        picked = np.flatnonzero(chosen & (found.over == dotted))
        across = found.step[picked, None] + _CURVE  # steps count from 1 on the axis, so this ends at step + 1
        rise = (found.child - found.parent)[picked, None] * _BEND
        curves = np.stack([across, found.parent[picked, None] + rise], axis=-1)
        style = (0, (1, 1.6)) if dotted else "solid"
        lines = LineCollection(
            list(curves), colors=colour, linewidths=widths[picked], linestyles=[style], alpha=alpha, zorder=order
        )
        lines.set_capstyle("butt" if dotted else "round")
        axes.add_collection(lines, autolim=False)


def _paint_weights(axes: Any, generations: Any, answers: Sequence[Hashable | None] | None) -> None:
    weights = generations.weights
    best = int(np.argmax(weights))
    bars = axes.barh(np.arange(weights.size), weights, height=0.7, color=BLUE)
    if np.any(weights > 0):
        bars[best].set_color(ORANGE)
    if answers is not None:
        for i in _with_room(weights):
            words = "no answer" if answers[i] is None else _short(str(answers[i]))
            axes.annotate(words, (weights[i], i), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    room = 1.5 if answers is not None else 1.05
    axes.set(xlabel="final weight", xlim=(0, room * max(float(weights.max(initial=0)), 1e-3)))
    axes.xaxis.get_major_locator().set_params(nbins=3)
    axes.tick_params(labelleft=False, length=0)


def _with_room(weights: Float[np.ndarray, " n"]) -> list[int]:
    """The heaviest particles, as many as have room for a label beside each other."""
    apart = _LABEL_INCHES * weights.size / max(_SLOT_INCHES, min(_SLOT_INCHES * weights.size, _MOST_INCHES))
    free, chosen = np.ones(weights.size, bool), []
    for i in np.argsort(-weights, kind="stable"):
        if weights[i] > 0 and free[i]:
            chosen.append(int(i))
            free[max(0, int(np.ceil(i - apart + 1e-9))) : int(np.ceil(i + apart))] = False
    return chosen


def _paint_ess(axes: Any, generations: Any) -> None:
    steps = np.arange(1, generations.ess.size + 1)
    # Methods that keep the texts of several passes have more slots than their ESS is out of.
    slots = generations.settings.get("num_particles", generations.log_weight_path.shape[1])
    axes.plot(steps, generations.ess, color=BLUE, marker=".", markersize=4, linewidth=1.2)
    # Resampling comes between the weights of one step and the next one.
    moves = np.flatnonzero(generations.resampled)
    axes.plot(moves + 0.5, np.zeros(moves.size), "^", color=INK, markersize=4, clip_on=False)
    for t in moves:
        axes.axvline(t + 0.5, color=GRID, linewidth=0.8, zorder=0)
    threshold = _threshold(generations)
    if threshold is not None:
        axes.axhline(threshold * slots, color=MUTED, linewidth=0.9, linestyle=_DASHED)
    axes.set(xlabel="step", ylabel="ESS", ylim=(0, 1.05 * slots), yticks=(0, slots))
    axes.tick_params(length=0)


def _legend(generations: Any) -> list[Any]:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=ORANGE, linewidth=3, label="lineage of the heaviest text"),
        Line2D([], [], color=BLUE, linewidth=1.8, label="of other final texts (width: weight)"),
        Line2D([], [], color=MUTED, linewidth=0.8, alpha=0.7, label="no descendants"),
        Line2D([], [], color=PAPER, marker="o", markeredgecolor=INK, markersize=4, label="text ends, dotted after"),
    ]
    if np.any(generations.resampled):
        entries.append(Line2D([], [], color=PAPER, marker="^", markerfacecolor=INK, markersize=5, label="resampled"))
    if _threshold(generations) is not None:
        entries.append(Line2D([], [], color=MUTED, linewidth=0.9, linestyle=_DASHED, label="ESS threshold"))
    return entries


def _threshold(generations: Any) -> float | None:
    """The share of N below which the run resampled, if it had such a rule."""
    value = generations.settings.get("ess_threshold")
    return float(value) if isinstance(value, int | float) and 0 < value < 1 else None


def _short(words: str) -> str:
    line = words.replace("\n", "⏎")
    cut = line if len(line) <= _LABEL_LENGTH else f"{line[: _LABEL_LENGTH - 1]}…"
    return cut.replace("$", r"\$")  # a dollar sign would begin mathematics
