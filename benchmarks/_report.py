"""From rows to `results/NAME-DEVICE-DATE.json` and the table of the same name in Markdown."""

import json
import statistics
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._harness import Row, pair_ratios

Summary = dict[str, Any]


class Column(NamedTuple):
    """A column of the tables: its title, and its text from the summary of a row."""

    title: str
    cell: Callable[[Summary], str]


class Outcome(NamedTuple):
    """What a benchmark hands to the report.

    Attributes:
        title: the report's.
        rows: what was measured.
        columns: of the tables, after the name.
        notes: lines for the header, `name: text`.
        more: Markdown lines between header and tables, such as the targets.
    """

    title: str
    rows: list[Row]
    columns: Sequence[Column]
    notes: dict[str, str]
    more: Sequence[str] = ()


def ratio(values: dict[str, float] | None) -> str:
    """A spread as text."""
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})" if values else "-"


WALL = Column("wall s (min-max)", lambda s: "{median:.3g} ({min:.3g}-{max:.3g})".format(**s["wall"]))
CPU = Column("CPU s", lambda s: f"{s['cpu']['median']:.3g}")
WALL_OVER_OURS = Column("wall / ours", lambda s: ratio(s["wall_over_ours"]))
CPU_OVER_OURS = Column("CPU / ours", lambda s: ratio(s["cpu_over_ours"]))
WALL_OVER_FLOOR = Column("wall / floor", lambda s: ratio(s["wall_over_floor"]))
ERROR = Column("log Z error, mean (rmse)", lambda s: f"{s['error_mean']:+.2f} ({s['error_rmse']:.2f})")
COMPILE = Column("compile wall (CPU) s", lambda s: f"{s['compile_wall']:.2f} ({s['compile_cpu']:.2f})")
PEAK = Column("peak MB", lambda s: f"{s['peak_rss_mb']:.0f}")
COLUMNS = (WALL, CPU, WALL_OVER_OURS, CPU_OVER_OURS, WALL_OVER_FLOOR, ERROR, COMPILE, PEAK)


def floor_of(rows: Sequence[Row]) -> Row | None:
    """The fastest bare scan by median wall seconds, among rows of one group."""
    bare = [row for row in rows if row.competitor.library == "bare" and row.runs]
    return min(bare, key=lambda row: statistics.median(row.wall), default=None)


def ours_of(rows: Sequence[Row]) -> Row | None:
    """Our first row that ran, among rows of one group."""
    return next((row for row in rows if row.competitor.library == "probinf" and row.runs), None)


def summarise(row: Row, ours: Row | None, floor: Row | None) -> Summary:
    """One row as plain numbers: medians, extremes, ratios pair by pair, errors, compile time."""
    summary: Summary = {
        **row.case._asdict(),
        "library": row.competitor.library,
        "variant": row.competitor.variant,
        "algorithm": row.competitor.algorithm,
        "rule": row.competitor.rule,
        "versions": row.versions,
        "fault": row.fault,
    }
    if not row.runs:
        return summary
    numbers = [run.details for run in row.runs]
    names = [name for name, value in numbers[0].items() if isinstance(value, int | float)]
    return {
        **summary,
        "exact_log_evidence": row.exact,
        "wall": spread(row.wall),
        "cpu": spread(row.cpu),
        "compile_wall": row.compile_wall,
        "compile_cpu": row.compile_cpu,
        "error_mean": statistics.fmean(row.errors),
        "error_rmse": row.rmse,
        "peak_rss_mb": max(run.peak_rss_mb for run in row.runs),
        "wall_over_ours": spread(pair_ratios(ours.wall, row.wall)) if ours else None,
        "cpu_over_ours": spread(pair_ratios(ours.cpu, row.cpu)) if ours else None,
        "wall_over_floor": spread(pair_ratios(floor.wall, row.wall)) if floor else None,
        "cpu_over_floor": spread(pair_ratios(floor.cpu, row.cpu)) if floor else None,
        "is_floor": row is floor,
        "details": {name: _moments([one[name] for one in numbers]) for name in names},
        "firsts": [run._asdict() for run in row.firsts],
        "runs": [run._asdict() for run in row.runs],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by case, algorithm and resampling rule, in order of first appearance."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault((row.case, row.competitor.algorithm, row.competitor.rule), []).append(row)
    return list(found.values())


def group_name(row: Row) -> str:
    """Case, algorithm and rule of a row, for titles."""
    rule = f", resampling {row.competitor.rule}" if row.competitor.rule else ""
    return f"{row.case}, {row.competitor.algorithm}{rule}"


def target_table(lines: Sequence[str]) -> list[str]:
    """Lines of `target_line` under their header."""
    return ["", "## Targets", "", "| case | target | wall | CPU | holds (wall)? |", "|---|---|---|---|---|", *lines]


def target_line(case: str, target: str, wall: Any, cpu: Any, holds: bool) -> str:
    """One promise against what was measured; numbers get two digits, anything else is shown as it is."""
    cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in (wall, cpu)]
    return f"| {case} | {target} | {cells[0]} | {cells[1]} | {'yes' if holds else '**no**'} |"


def markdown(outcome: Outcome) -> str:
    """The readable report: machine, command, versions, `more` lines, one table a group."""
    columns = outcome.columns
    lines = [f"# {outcome.title}", ""]
    lines += [f"- {key}: {value}" for key, value in outcome.notes.items()]
    lines += [f"- {library}: {text}" for library, text in _versions(outcome.rows).items()]
    intro = [
        "Medians over interleaved rounds. Ratios are taken within a round, then their median; above 1, ours is faster.",
        "Compile is the first call of a fresh process less a later one, no persistent cache.",
    ]
    if any(row.competitor.library == "bare" for row in outcome.rows):
        intro.append("The floor (**bold**) is the fastest bare scan under the same resampling rule.")
    lines += ["", " ".join(intro), *outcome.more]
    header = "| library: variant | " + " | ".join(column.title for column in columns) + " |"
    for group in groups(outcome.rows):
        lines += ["", f"## {group_name(group[0])}", "", header, "|---" * (1 + len(columns)) + "|"]
        ours, floor = ours_of(group), floor_of(group)
        lines += [_line(summarise(row, ours, floor), columns) for row in group]
    return "\n".join(lines) + "\n"


def write(name: str, outcome: Outcome, folder: Path) -> Path:
    """Writes the JSON and the Markdown file; returns the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    device = next((row.device for row in outcome.rows if row.device and row.competitor.library != "particles"), "cpu")
    slug = "".join(c if c.isalnum() else "-" for c in device.lower())
    stem = f"{name}-{slug}-{date.today().isoformat()}"
    summaries = [summarise(row, ours_of(group), floor_of(group)) for group in groups(outcome.rows) for row in group]
    about = {"title": outcome.title, **outcome.notes}
    (folder / f"{stem}.json").write_text(json.dumps({"about": about, "rows": summaries}, indent=1) + "\n")
    path = folder / f"{stem}.md"
    path.write_text(markdown(outcome))
    return path


def _moments(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "rms": statistics.fmean(value * value for value in values) ** 0.5}


def _versions(rows: Sequence[Row]) -> dict[str, str]:
    found = {}
    for row in rows:
        if row.versions:
            found[row.competitor.library] = ", ".join(f"{name} {number}" for name, number in row.versions.items())
    return found


def _line(summary: Summary, columns: Sequence[Column]) -> str:
    name = f"{summary['library']}: {summary['variant']}"
    if "wall" not in summary:
        return f"| {name} | failed: {summary['fault']} |" + " |" * (len(columns) - 1)
    cells = [f"**{name}**" if summary["is_floor"] else name, *(column.cell(summary) for column in columns)]
    return "| " + " | ".join(cells) + " |"
