"""The promises of `python -m benchmarks mcmc` against what was measured, and the columns of its tables."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks._harness import Row, pair_ratios
from benchmarks._report import CPU, PEAK, WALL, Column, Summary, groups, ours_of, target_line
from benchmarks.mcmc._diagnose import Z_LIMIT, agreement, ess_per_second

# Chains to how many times the ESS per second of the best JAX peer ours must have.
OVER_JAX = {4: 1.5, 64: 3.0}
OVER_NUTPIE = 1.0
SMALLEST, OVER_NUTPIE_ON_SMALLEST = "eight_schools", 0.5
COMPILE_CPU = 3.0
JAX_PEERS = ("numpyro", "blackjax")
BY_HAND = ("blackjax",)  # who gets the log density written by hand, as our variants "/density" do


def target_lines(rows: Sequence[Row]) -> list[str]:
    """The promises: ESS per second against the best JAX peer and nutpie, by wall and by CPU, and compilation."""
    lines = []
    for group in groups(rows):
        ours = ours_of(group)
        name, chains = group[0].case.problem, group[0].case.num_particles
        case = f"{name}, {chains} chains"
        missing = [row.competitor.name for row in group if row.fault]
        if missing:
            lines.append(target_line(case, f"every competitor ran (not: {', '.join(missing)})", "-", "-", False))
        if ours is None:
            continue
        over_nutpie = OVER_NUTPIE_ON_SMALLEST if name == SMALLEST else OVER_NUTPIE
        pairs = (("best JAX peer", JAX_PEERS, OVER_JAX.get(chains)), ("nutpie", ("nutpie",), over_nutpie))
        for title, libraries, least in pairs:
            peers = [row for row in group if row.competitor.library in libraries and row.runs]
            if peers and least is not None:
                wall, cpu = (
                    min(median_gain(_like(group, row), row, clock) for row in peers) for clock in ("wall", "cpu")
                )
                target = f"min ESS/s, ours / {title} >= {least:g}"
                lines.append(target_line(case, target, wall, cpu, wall >= least))
    return [*lines, *_compilation_lines(rows)]


def _compilation_lines(rows: Sequence[Row]) -> list[str]:
    """One pair of lines a problem: compilation is measured once for all numbers of chains."""
    lines, seen = [], set()
    for group in groups(rows):
        ours = ours_of(group)
        if ours is None or ours.case.problem in seen or "compile_cpu" not in ours.runs[0].details:
            continue
        seen.add(ours.case.problem)
        at = ours.runs[0].details
        target = f"compile CPU s < {COMPILE_CPU:g} (holds by CPU)"
        holds = at["compile_cpu"] < COMPILE_CPU
        lines.append(target_line(ours.case.problem, target, at["compile_wall"], at["compile_cpu"], holds))
        new_data = at["compiled_by_new_data"]
        lines.append(
            target_line(ours.case.problem, "programs compiled by new data = 0", str(new_data), "-", new_data == 0)
        )
    return lines


def _like(group: Sequence[Row], peer: Row) -> Row:
    """Our first row on the same form of the density as the peer's: samplers are compared and not densities."""
    ours = [row for row in group if row.competitor.library == "probinf" and row.runs]
    by_hand = peer.competitor.library in BY_HAND
    return next((row for row in ours if row.competitor.variant.endswith("/density") == by_hand), ours[0])


def median_gain(ours: Row, other: Row, clock: str = "wall") -> float:
    """The median over rounds of our ESS per second over the other's."""
    values = [[ess_per_second(run, clock) for run in row.runs] for row in (other, ours)]
    return statistics.median(pair_ratios(*values)) if all(values[0]) else float("inf")


def agreement_table(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: the largest z score of a mean and of a variance of each row against the other libraries."""
    lines = [
        "",
        "## Do they sample the same law?",
        "",
        "Largest z score over the compared scalars, of posterior means and of variances, against the pool of the other "
        f"libraries weighted by precision; over {Z_LIMIT:g} is flagged. A wrong sampler pulls the pool, so that others "
        "are flagged beside it; standard errors mean little where R-hat is above 1.05.",
        "",
        "| case | competitor | z of means | z of variances | R-hat | agrees? |",
        "|---|---|---|---|---|---|",
    ]
    header = len(lines)
    for group in groups(rows):
        for row in group:
            found = agreement(row, group)
            if found is None:
                continue
            means, variances = found
            r_hat = max(run.details["max_r_hat"] for run in row.runs)
            verdict = "yes" if max(found) <= Z_LIMIT else "**no**" if r_hat <= 1.05 else "**no** (not converged)"
            case = f"{row.case.problem}, {row.case.num_particles} chains"
            lines.append(
                f"| {case} | {row.competitor.name} | {means:.1f} | {variances:.1f} | {r_hat:.3f} | {verdict} |"
            )
    return lines if len(lines) > header else []


def _per_second(clock: str):
    def cell(summary: Summary) -> str:
        values = [run["details"]["min_ess"] / run[clock] for run in summary["runs"]]
        return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"

    return cell


def _detail(name: str, form: str):
    def cell(summary: Summary) -> str:
        values: dict[str, Any] | None = summary["details"].get(name)
        return format(values["mean"], form) if values else "-"

    return cell


def _compile(summary: Summary) -> str:
    wall, cpu = (summary["details"].get(f"compile_{clock}") for clock in ("wall", "cpu"))
    return f"{wall['mean']:.2f} ({cpu['mean']:.2f})" if wall and cpu else "-"


COLUMNS = (
    Column("min ESS / wall s (min-max)", _per_second("wall")),
    Column("min ESS / CPU s (min-max)", _per_second("cpu")),
    WALL,
    CPU,
    Column("min ESS", _detail("min_ess", ".0f")),
    Column("of", lambda s: s["runs"][-1]["details"]["slowest"]),
    Column("max R-hat", _detail("max_r_hat", ".3f")),
    Column("gradients a draw", _detail("gradients_per_draw", ".1f")),
    Column("divergent", _detail("num_divergent", ".0f")),
    Column("compile wall (CPU) s", _compile),
    Column("programs of a second call", _detail("compiled_again", ".0f")),
    Column("of new data", _detail("compiled_by_new_data", ".0f")),
    PEAK,
)
