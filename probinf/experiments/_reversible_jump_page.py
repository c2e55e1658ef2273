"""What the experiment on reversible jump shows: text, figures and tables from its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, canvas
from probinf.experiments._page import Section, Table
from probinf.experiments._workspace import Workspace

DASHED = (0, (4, 3))


def _beside(axes: Any, labels: Sequence[Any], found: Any, error: Any, exact: Any, name: str) -> None:
    """Bars of what was found, with two standard errors, and marks of what is exact."""
    place = np.arange(len(labels))
    axes.bar(place, found, width=0.6, color=BLUE, alpha=0.55, label="chains ± 2 s.e.")
    axes.vlines(place, np.asarray(found) - 2 * np.asarray(error), np.asarray(found) + 2 * np.asarray(error), color=BLUE)
    axes.hlines(exact, place - 0.4, place + 0.4, color=INK, linewidth=1.4, label=name)
    axes.set_xticks(place, [str(label) for label in labels])
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.legend()


def _rates(found: Mapping[str, Any], names: Sequence[str]) -> str:
    rates = (f"{name} {rate:.0%}" for name, rate in zip(names, found["acceptance"], strict=True))
    return "Accepted: " + ", ".join(rates) + "."


def selection_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """Inclusion probabilities, and the best models."""
    names, p = metrics["names"], len(metrics["names"])
    text = (
        "Which of ten measurements tell how diabetes goes on? A set of predictors is a model; coefficients and noise "
        "are integrated out (Zellner's prior, g = n), all sizes are alike, and so are all sets of a size. A move adds "
        "or removes one predictor. The probabilities of all models are known from their enumeration.",
        f"The chains visit {metrics['num_visited']:,} of {metrics['num_models']:,} models. "
        + _rates(metrics, ("births and deaths",)),
    )
    with canvas(height=3.0) as (figure, (axes,)):
        mean, error, exact = (metrics[name][:p] for name in ("mean", "standard_error", "exact"))
        _beside(axes, names, mean, error, exact, "all models enumerated")
        axes.set(title="Probability that a predictor is in the model")
        caption = "Inclusion probabilities of the chains, and the exact ones."
        alt = "Ten bars, each ending at the dark line that marks the exact probability."
        item = workspace.figure("rj-inclusion", figure, caption=caption, alt=alt)
    rows = tuple(
        (
            ", ".join(names[i] for i in inside),
            f"{metrics['exact'][p + row]:.4f}",
            f"{metrics['mean'][p + row]:.4f}",
            f"{metrics['standard_error'][p + row]:.4f}",
        )
        for row, inside in enumerate(metrics["best"])
    )
    table = Table("The most probable models.", ("predictors", "exact", "chains", "± s.e."), rows)
    return Section("Which predictors: every model counted", text, (item, table))


def changes_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """The number of changes, and the rate of every year."""
    num = len(metrics["exact"]) - len(metrics["years"])
    counts, path = np.asarray(metrics["counts"], float), np.asarray(metrics["rate_path"], float)
    text = (
        "British coal mines had 191 disasters from 1851 to 1962. Their rate is constant between change points, of "
        "which there may be up to eight, at any of 111 boundaries. Green's moves split a segment into two whose rates "
        "have the old one as weighted geometric mean, or merge two neighbours; the determinant of that map, rate 1 "
        "times rate 2 over rate, comes from automatic differentiation. Boundaries shift, and rates take random steps.",
        "The chains sample the rates. With rates integrated out the number of change points has an exact law, by a "
        "recursion over the last segment, and so has the mean rate of every year. "
        + _rates(metrics, ("splits and merges", "shifts", "rates")),
    )
    with canvas(columns=2, height=3.2) as (figure, (left, right)):
        mean, error, exact = (metrics[name][:num] for name in ("mean", "standard_error", "exact"))
        _beside(left, range(num), mean, error, exact, "exact, by recursion")
        left.set(title="Number of change points", xlabel="k")
        years = metrics["first_year"] + np.arange(counts.size)
        right.bar(years, counts, color=MUTED, alpha=0.35, width=0.9, label="disasters")
        right.plot(years, path, color=INK, linewidth=1, linestyle=DASHED, label="mean rate, exact")
        right.plot(metrics["years"], metrics["mean"][num:], "o", color=ORANGE, markersize=5, label="chains")
        right.set(title="Disasters a year", xlabel="year")
        right.legend()
        caption = "Left, the posterior of the number of change points; right, the data and the mean rate."
        alt = "Left, bars that end at dark lines; right, yearly counts under a curve that falls near 1890."
        item = workspace.figure("rj-changes", figure, caption=caption, alt=alt)
    labels = [f"{k} changes" for k in range(num)] + [f"rate in {year}" for year in metrics["years"]]
    return Section("How often the rate changed: coal-mining disasters", text, (item, _table(metrics, labels)))


def _table(metrics: Mapping[str, Any], labels: Sequence[str]) -> Table:
    rows = tuple(
        (label, f"{exact:.4f}", f"{mean:.4f}", f"{error:.4f}", "yes" if judged else "no")
        for label, exact, mean, error, judged in zip(
            labels, metrics["exact"], metrics["mean"], metrics["standard_error"], metrics["judged"], strict=True
        )
    )
    caption = "Probabilities all but 0 or 1 are shown and not judged: a mean of few visits is not normal."
    return Table(caption, ("", "exact", "chains", "± s.e.", "judged"), rows)


def mixture_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """The number of components in two ways."""
    count = len(metrics["exact"])
    numbers = np.arange(1, count + 1)
    text = (
        "The velocities of 82 galaxies come in clusters. How many? A mixture of normal laws has a mean, a spread and a "
        "weight for each component, and from one to six components, all alike beforehand. Components come and go; one "
        "splits into two of the same weight, mean and variance together, or two merge; all take random steps.",
        "There is no closed form, but another way: the evidence of each number of components by tempered SMC, which "
        "knows nothing of jumps. " + _rates(metrics, ("births and deaths", "splits and merges", "steps")),
    )
    with canvas(height=3.0) as (figure, (axes,)):
        _beside(axes, range(1, count + 1), metrics["mean"], metrics["standard_error"], metrics["exact"], "tempered SMC")
        low, high = (np.asarray(metrics["exact"]) + sign * 2 * np.asarray(metrics["exact_error"]) for sign in (-1, 1))
        axes.vlines(np.arange(count) + 0.25, low, high, color=INK, linewidth=0.9)
        axes.set(title="Number of components", xlabel="k")
        caption = "The posterior of the number of components by reversible jump and from evidences, each ± 2 s.e."
        alt = "Bars that rise with the number of components, each close to a dark line with an error bar."
        item = workspace.figure("rj-mixture", figure, caption=caption, alt=alt)
    rows = tuple(
        (str(k), f"{log_z:.2f}", f"{exact:.4f}", f"{error:.4f}", f"{mean:.4f}", f"{own:.4f}")
        for k, log_z, exact, error, mean, own in zip(
            numbers,
            metrics["log_evidence"],
            metrics["exact"],
            metrics["exact_error"],
            metrics["mean"],
            metrics["standard_error"],
            strict=True,
        )
    )
    caption = f"{metrics['num_replicates']} runs of {metrics['num_particles']:,} particles for each number."
    table = Table(caption, ("k", "log evidence", "p(k), SMC", "± s.e.", "p(k), chains", "± s.e."), rows)
    return Section("How many components: velocities of galaxies", text, (item, table))


def speed_section(metrics: Mapping[str, Any]) -> Section:
    """Steps a second in three ways."""
    text = (
        f"All {metrics['num_chains']} chains make their steps in one compiled loop, whatever the dimension of each, "
        f"split over {metrics['num_devices']} CPU devices or what accelerators there are: "
        "all models share arrays of one shape. The usual way is a compiled step of one chain that Python calls again "
        "and again. One chain in a compiled loop shows how much of the gain is that of the loop.",
    )
    rows = tuple(
        (
            row["name"],
            *(f"{rate:,.0f}" for rate in row["rates"]),
            f"{row['ratio']:.1f}",
            f"{row['lowest']:.1f}",
            f"{row['loop_ratio']:.1f}",
        )
        for row in metrics["rows"]
    )
    caption = (
        f"Steps of chains a second, medians of {metrics['num_rounds']} rounds of {metrics['num_steps']:,} steps, the "
        "three ways in turn, after one call that compiles. A step of the last two showcases is three moves."
    )
    columns = ("", "all at once", "called from Python", "one, compiled loop", "ratio", "lowest", "ratio to loop")
    return Section("Speed", text, (Table(caption, columns, rows),))
