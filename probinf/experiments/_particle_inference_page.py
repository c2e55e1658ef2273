"""What the experiment on particle inference shows: text, figures and tables from its metrics."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, ROSE, TEAL, canvas
from probinf.experiments._page import Figure, Section, Table
from probinf.experiments._particle_inference_claims import times
from probinf.experiments._workspace import Workspace

INTRODUCTION = (
    "A language model that solves a problem in steps can be run many times. Best-of-N writes N whole solutions and "
    "keeps the one that a reward model likes best; nearly all of its tokens continue solutions that were lost early "
    "on. A particle filter looks at the reward after every step, drops solutions in proportion to how bad they look, "
    "and copies the others: the same tokens are spent where there is hope. It is the algorithm that tracks a target "
    "by radar, with the language model as dynamics and the reward as observation.",
    "The first testbed needs no language model. A solution has ten steps; each is right with probability p, an error "
    "is never mended, and the reward's logit is +1 or -1 for right or wrong so far, plus noise. Problems differ in p. "
    "Coverage, best-of-N and the filters' targets are known exactly.",
)
TOY = {
    "odds": ("filter, odds", BLUE),
    "prob": ("filter, prob", TEAL),
    "ratio": ("filter, ratio", ROSE),
    "beam": ("beam", ORANGE),
    "best-of-n": ("best-of-N", INK),
}
# Where a filter resamples: at every step, or rarely, that is when the ESS is below N/2.
CHAINS = {
    "odds": ("filter, odds, every step", BLUE, "o-"),
    "prob": ("filter, prob, every step", TEAL, "o-"),
    "ratio": ("filter, ratio, every step", ROSE, "o-"),
    "rarely": ("filter, odds, rarely", BLUE, "o:"),
    "judge": ("filter, judge's law, rarely", BLUE, "s--"),
    "beam": ("beam", ORANGE, "o-"),
    "dvts": ("DVTS", ORANGE, "s--"),
    "best-of-n": ("best-of-N", INK, "o-"),
    "majority": ("majority", MUTED, "o-"),
    "weighted": ("weighted majority", MUTED, "s--"),
    "coverage": ("coverage (a perfect choice)", INK, ":"),
    "particle-gibbs": ("particle Gibbs, rarely", TEAL, "s--"),
    "tempered": ("tempered filter, rarely", ROSE, "s--"),
    "entropic": ("entropic filter, rarely", TEAL, "^:"),
    "parallel-tempering": ("parallel tempering, rarely", ROSE, "^:"),
    "twisted": ("twisted filter, rarely", BLUE, "^:"),
    "waste-free": ("waste-free filter, every step", ORANGE, "^:"),
}


def toy_section(workspace: Workspace, found: Mapping[str, Any]) -> Section:
    """The Bernoulli chain."""
    finishing = found["finishing"]
    paragraphs = (
        *INTRODUCTION,
        "Weighting by the odds r/(1 - r) of the reward (as the published code does), by r (as the published model is "
        "written) and by the ratio r_t / r_{t-1} are three different targets, not better and worse ways to the same "
        "one: a draw from them is right with the three probabilities drawn as dotted lines.",
        f"Solutions need not be of one length. Where each is finished with probability {finishing['stop']:g} after a "
        "step, finished ones must be absorbing: they keep their weight. Code that weights them again by their last "
        f"reward at every later step has another target; at N = {finishing['num_particles']} a draw is then right with "
        f"probability {finishing['weighted_again']['cells']['sampled']['mean']:.3f} where the target says "
        f"{finishing['limit']:.3f}, and the evidence is off by a factor exp("
        f"{finishing['weighted_again']['median_log_ratio']:.1f}) in the median. Absorbing, it is "
        f"{finishing['absorbing']['cells']['sampled']['mean']:.3f}. Here the mistake looks like a gain, "
        "for a power of a reward that is right on average favours the right; it is the answer to another question.",
    )
    items = (toy_figure(workspace, found), *(toy_table(name, found[name]) for name in ("independent", "persistent")))
    return Section("A chain of coins", paragraphs, items)


def toy_figure(workspace: Workspace, found: Mapping[str, Any]) -> Figure:
    """Accuracy against N, independent and persistent noise."""
    with canvas(columns=2, height=3.9) as (figure, panels):
        for axes, name in zip(panels, ("independent", "persistent"), strict=True):
            _toy_panel(axes, found[name])
        panels[0].set_title("noise anew at every step")
        panels[1].set_title("noise that a solution keeps")
        panels[0].legend(loc="lower right", ncols=2, fontsize=8)
        caption = (
            "Share of problems solved against the number of solutions N. Solid: the solution with the highest last "
            "reward. Dotted: a draw from the target of each filter, exact. Lines of best-of-N and of coverage (dashed) "
            "are exact, points are simulated."
        )
        alt = "Filters with odds and beam search reach one with 16 solutions where best-of-N stays below 0.6 with 64."
        return workspace.figure("inference-toy", figure, caption=caption, alt=alt)


def _toy_panel(axes: Axes, found: Mapping[str, Any]) -> None:
    sizes = found["particles"]
    for method, (title, colour) in TOY.items():
        values = [cell["chosen"]["mean"] for cell in found["cells"][method]]
        line = method != "best-of-n"
        axes.plot(sizes, values, "o-" if line else "o", color=colour, label=title, markersize=3.5)
        if "limits" in found and method in found["limits"]:
            axes.axhline(found["limits"][method], color=colour, linewidth=0.9, linestyle=":")
    axes.plot(sizes, found["exact"]["chosen"], color=INK, linewidth=1)
    axes.plot(sizes, found["exact"]["covered"], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="coverage")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(xlabel="N", ylabel="solved", ylim=(0, 1.02))


def toy_table(name: str, found: Mapping[str, Any]) -> Table:
    """Every cell of one setting."""
    columns = ("N", "coverage", "exact", "best-of-N", "exact")
    columns += tuple(f"{method} {kind}" for method in ("odds", "prob", "ratio") for kind in ("draw", "best"))
    columns += ("beam",)
    rows = []
    for index, size in enumerate(found["particles"]):
        cells = {method: row[index] for method, row in found["cells"].items()}
        numbers = [
            cells["best-of-n"]["covered"]["mean"],
            found["exact"]["covered"][index],
            cells["best-of-n"]["chosen"]["mean"],
            found["exact"]["chosen"][index],
            *(cells[method][kind]["mean"] for method in ("odds", "prob", "ratio") for kind in ("sampled", "chosen")),
            cells["beam"]["chosen"]["mean"],
        ]
        rows.append((str(size), *(f"{value:.3f}" for value in numbers)))
    if "limits" in found:
        dots = {method: f"{value:.4f}" for method, value in found["limits"].items()}
        rows.append(("∞", "", "", "", "", dots["odds"], "", dots["prob"], "", dots["ratio"], "", ""))
    noise = "noise anew at every step" if name == "independent" else "noise that a solution keeps"
    caption = (
        f"{noise[0].upper()}{noise[1:]} (sigma {found['sigma']:g}, rho {found['rho']:g}), {found['num_problems']:,} "
        "problems, standard errors at most 0.008. Draw: one of the final solutions by weight; best: the highest last "
        "reward."
    )
    return Table(caption, columns, tuple(rows))


def chains_section(workspace: Workspace, name: str, found: Mapping[str, Any]) -> Section:
    """The chains task with one rater: curves, table, factors."""
    paragraphs = (
        f"Arithmetic mod 10, {found['num_steps']} operations, one result a step: a small transformer writes the "
        f"results, and each step is rated by {found['rated_by']}. One solution is right in every step with probability "
        f"{found['pass_at_1']:.3f}. All methods get the same {found['num_problems']} problems; an exact verifier, "
        "which no method sees, decides. A filter resamples at every step, or rarely: where the effective sample size "
        "is below N/2.",
        *_versus_text(found["versus"]),
        *_factor_text(found),
        *_targets_text(found),
    )
    items = (
        chains_figure(workspace, name, found),
        chains_table(found),
        *((factors_table(found, "generated"), factors_table(found, "all")) if found["factors"] else ()),
    )
    return Section(f"A transformer's chains, rated by {found['short']}", paragraphs, items)


def _versus_text(versus: Mapping[str, Any]) -> tuple[str, ...]:
    ranked = ", ".join(f"{_or_nan(value):.3f} by the {name}" for name, value in versus["baselines"].items())
    return (
        f"With {versus['few']} particles the filter solves {_or_nan(versus['filters']['odds']):.3f} of the problems if "
        f"it resamples at every step and {_or_nan(versus['filters']['rarely']):.3f} if rarely; "
        f"best-of-{versus['many']}, where solutions are ranked by rates of their steps made one, solves {ranked}.",
    )


def _factor_text(found: Mapping[str, Any]) -> tuple[str, ...]:
    factor = found["factors"].get("odds", {}).get("generated", {}).get("highest")
    if factor is None:
        return ()
    return (
        f"To solve {100 * factor['level']:.0f} % of the problems, the highest of the accuracies fixed beforehand that "
        f"both surely reach, the filter that weights by odds and resamples at every step needs {times(factor)} times "
        "fewer tokens than best-of-N.",
    )


def _targets_text(found: Mapping[str, Any]) -> tuple[str, ...]:
    if not found["targets"]:
        return ()
    sampled = found["targets"]["sampled"]
    return (
        "Draws from the targets of the three weights are right with probability "
        + ", ".join(f"{value:.3f} ({name})" for name, value in sampled.items())
        + ". Where a rater is sure of itself odds and probability agree. The ratio's target is p r_T, one rate only: "
        "enough where a rate judges all that was written so far, as that of a reward model does, and little where it "
        "judges the last step alone, as that of a judge does.",
    )


def chains_figure(workspace: Workspace, name: str, found: Mapping[str, Any]) -> Figure:
    """Accuracy against tokens: whole solutions and last results."""
    with canvas(columns=2, height=4.4) as (figure, panels):
        for axes, reading, title in zip(
            panels, ("whole", "last"), ("every step right", "last result right"), strict=True
        ):
            for method, curve in found["curves"].items():
                label, colour, style = CHAINS[method]
                tokens, values = np.asarray(curve["tokens"]), np.asarray(curve[reading]["mean"])
                axes.plot(tokens, values, style, color=colour, label=label, markersize=3.5)
                axes.vlines(tokens, curve[reading]["low"], curve[reading]["high"], color=colour, linewidth=0.9)
            ticks = found["curves"]["best-of-n"]["tokens"]
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
            axes.set(xlabel="tokens a problem", ylabel="solved", title=title, ylim=(0, 1.02))
        panels[1].legend(loc="lower right", ncols=2, fontsize=7.5)
        caption = "Share of problems solved against tokens generated, with 95 % intervals."
        alt = "Curves of the particle methods rise to the left of best-of-N."
        return workspace.figure(f"inference-{name}", figure, caption=caption, alt=alt)


def chains_table(found: Mapping[str, Any]) -> Table:
    """Every method at every N."""
    rows = []
    for method, curve in found["curves"].items():
        for index, size in enumerate(curve["particles"]):
            low, high = (_or_nan(curve["whole"][end][index]) for end in ("low", "high"))
            rows.append(
                (
                    CHAINS[method][0],
                    str(size),
                    f"{curve['tokens'][index]:,.0f}",
                    f"{curve['scorer_tokens'][index]:,.0f}",
                    f"{curve['whole']['mean'][index]:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    f"{curve['last']['mean'][index]:.3f}",
                    f"{curve['sampled']['mean'][index]:.3f}",
                )
            )
    columns = ("method", "N", "tokens", "rater's tokens", "every step right", "95 %", "last right", "a draw right")
    caption = f"Means over {found['num_problems']} problems; tokens are those of one problem."
    return Table(caption, columns, tuple(rows))


def factors_table(found: Mapping[str, Any], cost: str) -> Table:
    """Scaling-rate factors at all accuracies; `cost` is "generated" for those tokens, or "all" for the rater's too."""
    rows = tuple(
        (CHAINS[method][0], *(_factor_cell(factor, found["most"]) for factor in both[cost]["levels"]))
        for method, both in found["factors"].items()
    )
    counted = "tokens generated" if cost == "generated" else "tokens generated and tokens that the rater reads"
    caption = (
        f"How many times fewer tokens than best-of-N, up to N = {found['most']}, for each accuracy (every step right), "
        f"with 95 % intervals: {counted}. Bootstrap over problems. ≥: the smallest run is above that accuracy already."
    )
    levels = next(iter(found["factors"].values()))[cost]["levels"]
    return Table(caption, ("method", *(f"{factor['level']:g}" for factor in levels)), rows)


def _factor_cell(factor: Mapping[str, Any], most: int) -> str:
    if not factor["method"]:
        return "not reached"
    if not factor["baseline"]:
        return f"not reached by best-of-{most}"
    return times(factor).replace("at least", "≥")


def evidence_section(found: Mapping[str, Any]) -> Section:
    """The judge's evidence, which is one."""
    rows = tuple(
        (
            str(row["num_particles"]),
            f"{row['num_runs']:,}",
            f"{_or_nan(row['evidence']['mean'][0]):.4f}",
            f"{_or_nan(row['evidence']['standard_error'][0]):.4f}",
            f"{_or_nan(row['mean_log']):.3f}",
            f"{_or_nan(row['accuracy']):.3f}",
        )
        for row in found["rows"]
    )
    columns = ("N", "runs", "mean of Ẑ", "± s.e.", "mean of log Ẑ", "a draw right")
    paragraphs = (
        "Weighting each step by p_strong / p_weak turns the weak model into a proposal for the strong one. The mass of "
        "the target is then 1 whatever the problem, so the mean of the filter's evidence must be 1: an exact test of "
        "sampling, caches, weights and resampling in one, on a neural language model. A draw from the particles is one "
        "from the law of the strong model, up to a bias of order 1/N.",
    )
    return Section("Evidence of exactly one", paragraphs, (Table("The judge's evidence.", columns, rows),))


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
