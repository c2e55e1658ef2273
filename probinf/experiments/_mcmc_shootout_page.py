"""What the experiment on Markov chain kernels shows: text, figures and tables from its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, ROSE, TEAL, canvas
from probinf.experiments._page import Figure, Section, Table
from probinf.experiments._workspace import Workspace

STYLES: Mapping[str, tuple[str, str]] = {
    "nuts": (BLUE, "o"),
    "chees_hmc": (TEAL, "o"),
    "hmc": (ORANGE, "o"),
    "adjusted_mclmc": (ROSE, "o"),
    "mala": (ORANGE, "s"),
    "barker": (TEAL, "s"),
    "random_walk": (ROSE, "^"),
    "slice_sampling": (MUTED, "^"),
}
LABELS = {"nuts": "probinf nuts", "chees_hmc": "probinf chees_hmc", "NumPyro": "NumPyro MCMC.run"}
COLOURS = {"nuts": BLUE, "chees_hmc": TEAL, "NumPyro": ORANGE}
DASHED: Mapping[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (4, 3))}
DOTTED: Mapping[str, Any] = {**DASHED, "linestyle": (0, (1, 2))}
SHOWN = ("random_walk", "mala", "nuts")
SPAN = 3000.0  # evaluations that the traces show


def conditioning_section(
    workspace: Workspace, metrics: Mapping[str, Any], traces: Mapping[str, tuple[np.ndarray, float]]
) -> Section:
    """What a badly scaled target costs each kernel; `traces` are positions of a chain and evaluations a draw."""
    text = (
        "A Gaussian in ten dimensions whose variances are all 1, so that warm-up, which learns the variances, cannot "
        "undo its correlations. Its condition number, the largest variance along a principal axis over the smallest, "
        "is the only thing that changes; another matrix of the same shape compiles nothing. All kernels run with their "
        "defaults. A gradient counts as one evaluation, like a density where there are no gradients, and costs 2 to 4 "
        "times as much.",
        "Chains start from exact draws and are tuned together. Every chain's means and variances then count as one "
        "independent replicate. (Those of `chees_hmc` share the number of steps of every draw, whatever it is.)",
    )
    figures = (_costs(workspace, metrics), _traces(workspace, metrics, traces), _bias(workspace, metrics))
    return Section("Badly scaled targets", text, (*figures[:2], _kernel_table(metrics), figures[2]))


def _of(metrics: Mapping[str, Any], kernel: str) -> list[Mapping[str, Any]]:
    return [row for row in metrics["rows"] if row["kernel"] == kernel]


def _costs(workspace: Workspace, metrics: Mapping[str, Any]) -> Figure:
    x = np.array(metrics["conditions"], float)
    with canvas(columns=2, height=3.8) as (figure, (left, right)):
        for axes, name, title in (
            (left, "ess_per_1000", "Effective draws for 1000 evaluations"),
            (right, "ess_per_second", "Effective draws a second, whole call"),
        ):
            for kernel, (colour, marker) in STYLES.items():
                y = _column(_of(metrics, kernel), name)
                axes.plot(x, y, marker=marker, color=colour, markersize=4.5, linewidth=1.1, label=kernel)
            axes.set(xscale="log", yscale="log", xlabel="condition number", title=title)
            axes.set_xticks(x, [f"{value:g}" for value in x])
            axes.tick_params(axis="x", which="minor", bottom=False)
        top, bottom = (_column(_of(metrics, kernel), "ess_per_1000")[-1] for kernel in ("nuts", "random_walk"))
        left.plot(x, 1.6 * top * (x / x[-1]) ** -0.5, label="condition$^{-1/2}$", **DASHED)
        left.plot(x, 0.6 * bottom * x[-1] / x, label="condition$^{-1}$", **DOTTED)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        caption = (
            "Smallest bulk ESS of the principal axes and their squares. Left, for the work done in the draws; right, "
            "for the time of the whole call with its warm-up, second call onward: it depends on the machine."
        )
        alt = "Falling lines, one a kernel: those with trajectories fall less steeply than random walks."
        return workspace.figure("mcmc-conditioning", figure, caption=caption, alt=alt)


def _traces(workspace: Workspace, metrics: Mapping[str, Any], traces: Mapping[str, tuple[np.ndarray, float]]) -> Figure:
    with canvas(columns=len(SHOWN), height=2.5) as (figure, places):
        for axes, kernel in zip(places, SHOWN, strict=True):
            values, cost = traces[kernel]
            at = cost * np.arange(1, values.size + 1)
            shown = at <= SPAN
            axes.plot(at[shown], values[shown], ".-", color=STYLES[kernel][0], linewidth=0.6, markersize=3)
            axes.set(title=kernel, xlabel="evaluations", ylim=(-4, 4), xlim=(0, SPAN))
        caption = (
            f"The slowest principal axis by one chain, condition number {metrics['conditions'][-1]:g}, for the same "
            "work. Cheap kernels keep one draw in several."
        )
        alt = "Three traces: a slow wander, a faster one, and nearly independent points."
        return workspace.figure("mcmc-traces", figure, caption=caption, alt=alt)


def _kernel_table(metrics: Mapping[str, Any]) -> Table:
    hardest = metrics["conditions"][-1]
    rows = tuple(
        (
            row["kernel"],
            f"{row['evaluations']:.1f}",
            f"{row['acceptance']:.2f}",
            f"{row['ess']:,.0f}",
            _short(row["ess_per_1000"]),
            f"{row['seconds']:.2f}",
            f"{row['ess_per_second']:,.0f}",
            f"{min(row['variance']):.3f} to {max(row['variance']):.3f}",
        )
        for row in metrics["rows"]
        if row["condition"] == hardest
    )
    columns = ("kernel", "evaluations", "accepted", "ESS", "ESS / 1000", "seconds", "ESS / second", "variances (1)")
    caption = (
        f"Condition number {hardest:g}: {metrics['num_chains']} chains, {metrics['num_warmup']:,} steps of warm-up and "
        f"{metrics['num_samples']:,} kept draws, in the defaults of every kernel. Evaluations are those of a step, "
        "ESS / 1000 is for so many of them, and the last column has the smallest and the largest variance along an "
        "axis, which should be 1. Times depend on the machine."
    )
    return Table(caption, columns, rows)


def _bias(workspace: Workspace, metrics: Mapping[str, Any]) -> Figure:
    rows = metrics["biased"]
    x = np.array([row["energy_variance"] for row in rows])
    excess, error = _column(rows, "excess"), _column(rows, "error")
    with canvas(columns=2, height=2.9) as (figure, (left, right)):
        left.axhline(0, label="exact", **DASHED)
        left.vlines(x, excess - 2 * error, excess + 2 * error, color=BLUE, linewidth=1.6)
        left.plot(x, excess, "o", color=BLUE, markersize=4.5, label="smallest variance / exact - 1, ± 2 s.e.")
        left.set(xscale="log", xlabel="variance of the energy error, over d", title="Bias of mclmc")
        right.plot(x, _column(rows, "ess_per_1000"), "o-", color=BLUE, markersize=4.5, label="mclmc")
        near = [row for row in metrics["rows"] if row["condition"] == metrics["bias_condition"]]
        for row in (row for row in near if row["kernel"] in ("nuts", "adjusted_mclmc")):
            colour = STYLES[row["kernel"]][0] if row["kernel"] != "nuts" else INK
            right.axhline(row["ess_per_1000"], color=colour, linewidth=0.9, linestyle=(0, (4, 3)), label=row["kernel"])
        right.set(xscale="log", xlabel="variance of the energy error, over d", title="ESS for 1000 gradients")
        right.set(ylim=(0, None))
        for axes in (left, right):
            axes.legend()
        caption = (
            f"Condition number {metrics['bias_condition']:g}, the stiffest axis. Without rejections a larger step is "
            "more wrong, and more draws do not mend it: effective draws count precision, not truth."
        )
        alt = (
            "Left, the error of the variance grows with the energy error; right, effective draws, level and then fewer."
        )
        return workspace.figure("mcmc-bias", figure, caption=caption, alt=alt)


def schools_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """Whole calls by the clock, and the exact means."""
    rows = metrics["rows"]
    crowds = sorted({row["num_chains"] for row in rows})
    with canvas(columns=len(crowds), height=2.6) as (figure, places):
        for axes, num_chains in zip(places, crowds, strict=True):
            here = [row for row in rows if row["num_chains"] == num_chains]
            values = [_number(row["ess_per_second"]) for row in here]
            axes.barh(range(len(here)), values, color=[COLOURS[row["sampler"]] for row in here], height=0.6)
            for place, value in enumerate(values):
                axes.text(value, place, f" {value:,.0f}", va="center", color=INK)
            axes.set_yticks(range(len(here)), [LABELS[row["sampler"]] for row in here])
            axes.invert_yaxis()
            axes.margins(x=0.2)
            axes.locator_params(axis="x", nbins=5)
            axes.grid(visible=False, axis="y")
            axes.set(title=f"{num_chains} chains", xlabel="effective draws a second of a whole call")
        caption = (
            "Smallest bulk ESS of mu, tau and the eight effects over the wall time of a whole call, warm-up included, "
            "second call onward and with new data, on the machine of this run."
        )
        alt = "Bars: probinf's samplers are ahead of NumPyro, more so with many chains."
        bars = workspace.figure("mcmc-schools", figure, caption=caption, alt=alt)
    text = (
        "The effects of coaching in eight schools, non-centred, written as a NumPyro model that both libraries take. "
        "NumPyro is called as its users call it, with all chains in one program: a new object for each run, and the "
        "model is compiled each time. Given the spread between schools everything is normal, so that the exact means "
        "are integrals over one variable.",
        "How fast depends on the machine, and on what else it does.",
    )
    return Section("Eight schools by the clock", text, (bars, _time_table(metrics), _means_table(metrics)))


def _time_table(metrics: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            LABELS[row["sampler"]],
            str(row["num_chains"]),
            f"{row['first_seconds']:.2f}",
            f"{row['seconds']:.2f}",
            f"{np.median(row['compilations']):.0f}",
            f"{row['evaluations']:.1f}",
            f"{row['ess']:,.0f}",
            f"{row['ess_per_second']:,.0f}",
        )
        for row in metrics["rows"]
    )
    columns = (
        "",
        "chains",
        "first call, s",
        "later, s",
        "programs compiled",
        "gradients a draw",
        "ESS",
        "ESS / second",
    )
    caption = (
        f"{metrics['num_draws']:,} steps of warm-up and as many draws a chain, medians of the later calls. The first "
        "compiles, and ours makes 20 of each only."
    )
    return Table(caption, columns, rows)


def _means_table(metrics: Mapping[str, Any]) -> Table:
    names = ("mu", "tau", *(f"school {j + 1}" for j in range(len(metrics["exact"]) - 2)))
    most = max(row["num_chains"] for row in metrics["rows"])
    shown = [row for row in metrics["rows"] if row["num_chains"] == most]
    rows = tuple(
        (
            name,
            f"{metrics['exact'][k]:.4f}",
            *(f"{_number(row['mean'][k]):.4f} ± {_number(row['error'][k]):.4f}" for row in shown),
        )
        for k, name in enumerate(names)
    )
    caption = f"Posterior means by quadrature, and by {most} chains with their standard errors."
    return Table(caption, ("", "exact", *(LABELS[row["sampler"]] for row in shown)), rows)


def lockstep_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """What waiting costs, against the number of chains."""
    found = metrics["rows"]
    top = 1.05 * max(_number(row["lockstep"]) for rows in found.values() for row in rows)
    with canvas(columns=len(found), height=3.0) as (figure, places):
        for axes, (name, rows) in zip(places, found.items(), strict=True):
            x = [row["num_chains"] for row in rows]
            for kind, colour, label in (
                ("lockstep", ORANGE, "lockstep"),
                ("interleaved", BLUE, "interleaved"),
                ("independent", MUTED, "never waiting"),
            ):
                axes.plot(x, _column(rows, kind), "o-", color=colour, markersize=3.5, linewidth=1.2, label=label)
            axes.set(xscale="log", title=name, xlabel="chains", ylim=(0.9, top))
            axes.set_xticks(x, [str(size) for size in x])
            axes.minorticks_off()
        places[0].set_ylabel("steps over the mean work")
        places[0].legend(loc="upper left")
        caption = (
            "Leapfrog steps that all chains make together, over the steps that a chain needs, from the records of "
            "nuts. Never waiting: all chains run until the slowest has its draws."
        )
        alt = "Rising curves: lockstep above, interleaved chains near the lowest possible."
        item = workspace.figure("mcmc-lockstep", figure, caption=caption, alt=alt)
    text = (
        "A program that runs many chains side by side does the same to all of them at a time. If every draw is one "
        "loop, all wait for the longest trajectory of each. Interleaved chains go on with their next trajectory as "
        "soon as an eighth of them is done, so that long and short ones cancel along the chain.",
        "Chains that are tuned together, as ours are, also make trajectories of more equal length than chains that "
        "are tuned one by one, as NumPyro's are. Those wait in lockstep; interleaving alone would not make up for step "
        "sizes that differ.",
    )
    return Section("What waiting costs", text, (item,))


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([_number(row[name]) for row in rows])


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
