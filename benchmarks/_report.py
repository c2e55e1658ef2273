"""From rows to `results/NAME-DEVICE-DATE.json` and the table of the same name in Markdown."""

import json
import math
import statistics
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks._harness import Row, pair_ratios

HEADER = (
    "| library: variant | wall s (min-max) | CPU s | wall / ours | CPU / ours | wall / floor "
    "| log Z error, mean (rmse) | compile wall (CPU) s | peak MB |\n|---|---|---|---|---|---|---|---|---|"
)


def floor_of(rows: Sequence[Row]) -> Row | None:
    """The fastest bare scan by median wall seconds, among rows of one case and rule."""
    bare = [row for row in rows if row.competitor.library == "bare" and row.runs]
    return min(bare, key=lambda row: statistics.median(row.wall), default=None)


def ours_of(rows: Sequence[Row]) -> Row | None:
    """Our row among rows of one case and rule."""
    return next((row for row in rows if row.competitor.library == "probinf" and row.runs), None)


def summarise(row: Row, ours: Row | None, floor: Row | None) -> dict[str, Any]:
    """One row as plain numbers: medians, extremes, ratios pair by pair, errors, compile time."""
    summary: dict[str, Any] = {
        **row.case._asdict(),
        "library": row.competitor.library,
        "variant": row.competitor.variant,
        "rule": row.competitor.rule,
        "versions": row.versions,
        "fault": row.fault,
    }
    if not row.runs:
        return summary
    squares = [error * error for error in row.errors]
    return {
        **summary,
        "exact_log_evidence": row.exact,
        "wall": spread(row.wall),
        "cpu": spread(row.cpu),
        "compile_wall": row.compile_wall,
        "compile_cpu": row.compile_cpu,
        "error_mean": statistics.fmean(row.errors),
        "error_rmse": math.sqrt(statistics.fmean(squares)),
        "peak_rss_mb": max(run.peak_rss_mb for run in row.runs),
        "wall_over_ours": spread(pair_ratios(ours.wall, row.wall)) if ours else None,
        "cpu_over_ours": spread(pair_ratios(ours.cpu, row.cpu)) if ours else None,
        "wall_over_floor": spread(pair_ratios(floor.wall, row.wall)) if floor else None,
        "cpu_over_floor": spread(pair_ratios(floor.cpu, row.cpu)) if floor else None,
        "is_floor": row is floor,
        "runs": [run._asdict() for run in row.runs],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by case and resampling rule, in order of first appearance."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault((row.case, row.competitor.rule), []).append(row)
    return list(found.values())


def markdown(rows: Sequence[Row], about: dict[str, Any], more: Sequence[str] = ()) -> str:
    """The readable report: machine, command, versions, `more` lines, one table a case and rule."""
    lines = [f"# {about['title']}", ""]
    lines += [f"- {key}: {value}" for key, value in about.items() if key != "title"]
    lines += [f"- {library}: {text}" for library, text in _versions(rows).items()]
    lines += [
        "",
        "Medians over interleaved rounds. Ratios are taken within a round, then their median; above 1, ours is faster "
        "(`/ ours`) or the bare scan is (`/ floor`). The floor (**bold**) is the fastest bare scan under the same "
        "resampling rule. Compile is the first call of a fresh process less a later one, no persistent cache.",
    ]
    lines += more
    for group in groups(rows):
        case, rule = group[0].case, group[0].competitor.rule
        title = f"## {case.problem}, T = {case.num_steps}, N = {case.num_particles}, resampling {rule}"
        lines += ["", title, "", HEADER]
        ours, floor = ours_of(group), floor_of(group)
        lines += [_line(summarise(row, ours, floor)) for row in group]
    return "\n".join(lines) + "\n"


def write(name: str, rows: Sequence[Row], about: dict[str, Any], folder: Path, more: Sequence[str] = ()) -> Path:
    """Writes the JSON and the Markdown file; returns the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    device = next((row.device for row in rows if row.device and row.competitor.library == "bare"), "cpu")
    slug = "".join(c if c.isalnum() else "-" for c in device.lower())
    stem = f"{name}-{slug}-{date.today().isoformat()}"
    summaries = [summarise(row, ours_of(group), floor_of(group)) for group in groups(rows) for row in group]
    (folder / f"{stem}.json").write_text(json.dumps({"about": about, "rows": summaries}, indent=1) + "\n")
    path = folder / f"{stem}.md"
    path.write_text(markdown(rows, about, more))
    return path


def _versions(rows: Sequence[Row]) -> dict[str, str]:
    found = {}
    for row in rows:
        if row.versions:
            found[row.competitor.library] = ", ".join(f"{name} {number}" for name, number in row.versions.items())
    return found


def _line(summary: dict[str, Any]) -> str:
    name = f"{summary['library']}: {summary['variant']}"
    if "wall" not in summary:
        return f"| {name} | failed: {summary['fault']} |" + " |" * 7
    wall, cpu = summary["wall"], summary["cpu"]
    cells = [
        f"**{name}**" if summary["is_floor"] else name,
        f"{wall['median']:.3g} ({wall['min']:.3g}-{wall['max']:.3g})",
        f"{cpu['median']:.3g}",
        _ratio(summary["wall_over_ours"]),
        _ratio(summary["cpu_over_ours"]),
        _ratio(summary["wall_over_floor"]),
        f"{summary['error_mean']:+.2f} ({summary['error_rmse']:.2f})",
        f"{summary['compile_wall']:.2f} ({summary['compile_cpu']:.2f})",
        f"{summary['peak_rss_mb']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _ratio(values: dict[str, float] | None) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})" if values else "-"
