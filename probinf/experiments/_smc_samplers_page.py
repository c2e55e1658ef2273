"""What the experiment on SMC samplers shows: text, figures and tables from its metrics."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from probinf.experiments._figures import BLUE, CHAINS, INK, MUTED, ORANGE, TEAL, canvas
from probinf.experiments._page import Figure, Section, Table
from probinf.experiments._smc_targets import CENTRE, MODE_VARIANCE, MODE_WEIGHT, PRIOR_SD
from probinf.experiments._workspace import Workspace

NUM_SHOWN = 8  # chains


def modes_section(workspace: Workspace, metrics: Mapping[str, Any], runs: Any) -> Section:
    """The path of temperatures, and the marginals of one run."""
    paragraphs = (
        "A posterior in ten dimensions has two narrow modes far apart. Its evidence is known, and so is that the mode "
        f"at {CENTRE:g} has weight {MODE_WEIGHT}. Particles from the prior pass through the posteriors of ever higher "
        "powers of the likelihood, are reweighted, resampled and moved by HMC; temperatures, step sizes and the number "
        "of moves are chosen from the particles.",
        "Choices made from the particles leave a bias that falls like 1/N; a second run with the schedule of the first "
        "has none at all.",
    )
    figures = (_temperatures(workspace, runs), _marginals(workspace, runs))
    return Section("Two modes in ten dimensions", paragraphs, (*figures, _modes_table(metrics)))


def _temperatures(workspace: Workspace, runs: Any) -> Figure:
    count = int(runs.schedule.num_temperatures[0])
    step = np.arange(1, count + 1)
    with canvas(columns=3, height=2.7) as (figure, (left, middle, right)):
        left.semilogy(step, runs.schedule.stages.inverse_temperature[0, :count], "o-", color=BLUE, markersize=4)
        left.set(title="Inverse temperature", xlabel="step")
        num_particles = runs.population.log_weights.shape[1]
        middle.plot(step, runs.ess[0, :count] / num_particles, "o-", color=ORANGE, markersize=4)
        middle.set(title="ESS after reweighting / N", xlabel="step", ylim=(0, 1.05))
        right.plot(step, runs.acceptance_rate[0, :count], "o-", color=TEAL, markersize=4, label="acceptance rate")
        right.set(title="Moves", xlabel="step", ylim=(0, 1.05))
        moves = runs.schedule.stages.num_moves[0, :count]
        right.bar(step, moves / 10, color=MUTED, alpha=0.35, width=0.6, label="number of moves / 10")
        right.legend(loc="upper right")
        caption = "What one run chose: temperatures, effective sample sizes, and the moves at each temperature."
        alt = "A rising curve of temperatures, a level curve of sample sizes, and a level acceptance rate above bars."
        return workspace.figure("smc-temperatures", figure, caption=caption, alt=alt)


def _density(x: np.ndarray) -> np.ndarray:
    # Of each coordinate alone: the prior shrinks both modes a little.
    shrink = PRIOR_SD**2 / (PRIOR_SD**2 + MODE_VARIANCE)
    sd = np.sqrt(MODE_VARIANCE * shrink)
    one, other = (scipy.stats.norm.pdf(x, centre * shrink, sd) for centre in (-CENTRE, CENTRE))
    return (1 - MODE_WEIGHT) * one + MODE_WEIGHT * other


def _bars(axes: Any, values: np.ndarray, weights: np.ndarray | None, colour: str, label: str) -> None:
    grid = np.linspace(-4.5, 4.5, 400)
    axes.hist(values, bins=np.linspace(-4.5, 4.5, 61), weights=weights, density=True, color=colour, alpha=0.5)
    axes.plot([], [], color=colour, linewidth=6, alpha=0.5, label=label)
    axes.plot(grid, _density(grid), color=INK, linewidth=1, linestyle=(0, (4, 3)), label="exact")
    axes.legend(loc="upper left")


def _marginals(workspace: Workspace, runs: Any) -> Figure:
    weights = scipy.special.softmax(np.asarray(runs.population.log_weights[0], np.float64))
    with canvas(columns=2, height=2.9) as (figure, axes):
        for place, coordinate in zip(axes, (0, 9), strict=True):
            _bars(place, runs.samples[0, :, coordinate], weights, BLUE, "particles")
            place.set(title=f"Coordinate {coordinate + 1}", xlabel="x", ylim=(0, 0.85))
        caption = "Two posterior marginals of the particles of one run, and the exact densities (dashed)."
        alt = "Histograms with a low peak at -2 and a high one at 2, under dashed curves of the same shape."
        return workspace.figure("smc-marginals", figure, caption=caption, alt=alt)


def _modes_table(metrics: Mapping[str, Any]) -> Table:
    def row(text: str, found: Mapping[str, Any], index: int, exact: float) -> tuple[str, ...]:
        return (text, f"{exact:g}", f"{found['mean'][index]:.4f}", f"{found['standard_error'][index]:.4f}")

    rows = (
        row("evidence / exact", metrics["evidence"], 0, 1.0),
        row("weight of the mode at 2", metrics["weight"], 0, MODE_WEIGHT),
        row("evidence / exact, frozen schedule", metrics["frozen"], 0, 1.0),
        row("evidence times weight / exact evidence, frozen", metrics["frozen"], 1, MODE_WEIGHT),
    )
    caption = (
        f"{metrics['num_replicates']} runs of each kind. Log evidence of one run: sd {metrics['log_sd']:.3f}; weight: "
        f"sd {metrics['weight_sd']:.3f}."
    )
    return Table(caption, ("", "exact", "mean", "± s.e."), rows)


def chains_section(workspace: Workspace, metrics: Mapping[str, Any], positions: np.ndarray) -> Section:
    """Traces of chains that stay where they are, and what they say together."""
    paragraphs = (
        "Chains of HMC that start from the prior fall into the nearer mode and stay: between the modes the density is "
        "lower by a factor e^80. Each chain looks well mixed. Together they tell how many started on which side, half "
        "of them, and not how much the modes weigh.",
    )
    with canvas(columns=2, height=2.9) as (figure, (left, right)):
        for chain, row in enumerate(positions[:NUM_SHOWN, :, 0]):
            left.plot(row, color=CHAINS[chain % len(CHAINS)], linewidth=0.6)
        left.set(title=f"{min(NUM_SHOWN, len(positions))} chains", xlabel="draw", ylabel="coordinate 1")
        _bars(right, positions[..., 0].ravel(), None, ORANGE, "draws of all chains")
        right.set(title=f"All {metrics['num_chains']} chains", xlabel="coordinate 1", ylim=(0, 0.85))
        caption = "Chains keep to one mode; pooled, they give both modes about the same weight."
        alt = "Left, traces in two bands without a crossing; right, a histogram with peaks of about the same height."
        item = workspace.figure("smc-chains", figure, caption=caption, alt=alt)
    return Section("What single chains see", paragraphs, (item,))


def counts_section(metrics: Mapping[str, Any]) -> Section:
    """Evidence and means against quadrature."""
    rows = tuple(
        (
            ", ".join(f"{count:g}" for count in row["counts"]),
            row["moves"],
            f"{row['exact'][0]:.5f}",
            f"{row['mean'][0]:.4f}",
            f"{row['standard_error'][0]:.4f}",
            *(f"{mean:.4f} ({exact:.4f})" for mean, exact in zip(row["mean"][1:], row["exact"][1:], strict=True)),
        )
        for row in metrics["rows"]
    )
    caption = f"{metrics['num_replicates']} runs of {metrics['num_particles']:,} particles; quadrature in brackets."
    columns = ("counts", "moves", "log Z", "ratio", "± s.e.", "mean 1", "mean 2")
    text = (
        "Poisson counts with normal log rates: a count of zero gives a long left tail, a large count a narrow peak far "
        "from the prior's bulk. Waste-free moves keep all the states that the chains pass through.",
    )
    return Section("Skewed posteriors", text, (Table(caption, columns, rows),))


def data_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """The evidence of every prefix, and when the particles were moved."""
    ratio, error = (np.asarray(metrics["path"][name], float) for name in ("mean", "standard_error"))
    t = np.arange(1, ratio.size + 1)
    with canvas(columns=2, height=2.9) as (figure, (left, right)):
        left.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="exact")
        left.vlines(t, ratio - 2 * error, ratio + 2 * error, color=BLUE, linewidth=1.4)
        left.plot(t, ratio, "o", color=BLUE, markersize=3.5, label="mean ± 2 s.e.")
        left.set(title="Evidence / exact", xlabel="data so far")
        left.margins(y=0.3)
        left.legend(loc="upper right", ncols=2)
        right.plot(t, metrics["ess"], "o-", color=ORANGE, markersize=3.5, label="mean ESS / N")
        right.bar(t, metrics["moved"], color=MUTED, alpha=0.35, label="share of runs that moved")
        right.set(title="When the particles are moved", xlabel="data so far", ylim=(0, 1.05))
        right.legend(loc="lower right")
        caption = "Data tempering on Poisson counts: evidence of every prefix against the closed form."
        alt = "Left, points with error bars around one; right, sample sizes, and bars that get rarer."
        item = workspace.figure("smc-data", figure, caption=caption, alt=alt)
    text = (
        "Data may come one by one: the particles follow the posterior and are moved only when their weights have "
        "become uneven, ever more seldom as each datum changes less.",
    )
    return Section("One datum after the other", text, (item,))


def variance_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """Variance against N and against the ESS aimed at."""
    with canvas(columns=2, height=3.0) as (figure, (left, right)):
        for axes, x, rows in ((left, metrics["sizes"], metrics["by_size"]), (right, metrics["ess"], metrics["by_ess"])):
            value, error = (np.array([row[name] for row in rows]) for name in ("variance", "log_error"))
            axes.vlines(x, value * np.exp(-2 * error), value * np.exp(2 * error), color=BLUE, linewidth=1.6)
            axes.plot(x, value, "o", color=BLUE, markersize=5, label="variance of log Z ± 2 s.e.")
        sizes, first = np.asarray(metrics["sizes"], float), metrics["by_size"][0]["variance"]
        left.plot(sizes, first * sizes[0] / sizes, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="slope -1")
        left.set(xscale="log", yscale="log", xlabel="N", title="Number of particles")
        left.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        left.minorticks_off()
        right.set(xlabel="ESS aimed at / N", yscale="log", title=f"Effective sample size, N = {metrics['sizes'][0]:,}")
        left.legend(loc="lower left")
        caption = "Variance of the log evidence of the second pair of counts. More temperatures lower it too."
        alt = "Left, points on a straight line of slope -1; right, points that fall as the sample size aimed at rises."
        item = workspace.figure("smc-variance", figure, caption=caption, alt=alt)
    text = ("The error of the log evidence is that of a mean: four times the particles, half the error.",)
    return Section("What particles buy", text, (item,))
