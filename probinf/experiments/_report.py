"""The report writer: one self-contained page for a run, and one for all runs of a folder.

A page is made only from what lies in the run's folder (`metrics.json`, `parts/`, `figures/`), so it can be made again
at any time. It asks for nothing from outside: style and figures are inside it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from probinf.experiments._figures import themed
from probinf.experiments._page import Figure, Section, Table, decode
from probinf.experiments._workspace import METRICS, REPORT, write_text

_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?(?: (?:%|s))?")
_BLANK = {"", "-", "NaN"}


class Run(NamedTuple):
    """A finished run as read from its folder."""

    folder: Path
    summary: Mapping[str, Any]
    sections: tuple[Section, ...]


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        ValueError: it holds no finished run, or one that cannot be read.
    """
    file = folder / METRICS
    if not file.is_file():
        raise ValueError(f"`{folder}` holds no finished run (no {METRICS}): make one with `probinf run NAME --out`")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        parts = [json.loads((folder / "parts" / f"{name}.json").read_text("utf-8")) for name in summary["seconds"]]
    except (json.JSONDecodeError, FileNotFoundError, KeyError) as error:
        raise ValueError(f"the run in `{folder}` cannot be read ({error}): run it again with `--overwrite`") from error
    return Run(folder, summary, tuple(decode(part).section for part in parts))


def write_report(folder: Path) -> Path:
    """Writes `report.html` of the run in `folder`, and returns its path."""
    run = read_run(folder)
    title = f"probinf: {run.summary['experiment']}"
    header = _header("probinf experiment", run.summary["experiment"], run.summary["claim"], _facts(run.summary))
    body = [header, "<h2>Claims</h2>", _claims(run.summary["claims"])]
    body += [_section(run.folder, section, level=2) for section in run.sections]
    body += ["<h2>How this was run</h2>", _how(run.summary), _footer()]
    return _write(folder / REPORT, title, body)


def collect_reports(folder: Path) -> Path:
    """Writes one page with the claims and figures of every finished run below `folder`, and returns its path.

    The page is `folder/report.html`, or `folder/all.html` where `folder` is itself a run and keeps its own report.

    Raises:
        ValueError: no finished run is there.
    """
    files = sorted(folder.glob(f"**/{METRICS}")) if folder.is_dir() else []
    runs = [read_run(file.parent) for file in files]
    if not runs:
        raise ValueError(f"no finished run lies in `{folder}`: make one with `probinf run tour`")
    claims = [claim for run in runs for claim in run.summary["claims"]]
    facts = [_verdict(_all_hold(claims), _tally(claims)), f"<span>runs <strong>{len(runs)}</strong></span>"]
    lead = "Every claim of every run found in this folder, then each run in full."
    body = [_header("probinf", "Experiments", lead, facts), "<h2>Overview</h2>", _overview(runs, folder)]
    for number, run in enumerate(runs):
        body += [f'<h2 id="run-{number}">{escape(_place(run, folder))}</h2>', f"<p>{escape(run.summary['claim'])}</p>"]
        body += [f'<div class="facts">{"".join(_facts(run.summary))}</div>', _claims(run.summary["claims"])]
        # Ids of one figure's clip paths and glyphs must not meet those of the same figure of another run.
        body += [_section(run.folder, section, level=3, prefix=f"r{number}-") for section in run.sections]
        body += ["<h3>How this was run</h3>", _how(run.summary)]
    name = "all.html" if (folder / METRICS).is_file() else REPORT
    return _write(folder / name, "probinf: experiments", [*body, _footer()])


def _text(text: str) -> str:
    """Plain text as HTML; a unit stays on the line of its number."""
    return escape(text).replace(" %", "&nbsp;%").replace("± ", "±&nbsp;")


def _write(file: Path, title: str, body: Iterable[str]) -> Path:
    template = resources.files("probinf.experiments") / "template"
    page = Template((template / "report.html").read_text("utf-8"))
    style = (template / "report.css").read_text("utf-8")
    write_text(file, page.substitute(title=escape(title), style=style, body="\n".join(body)))
    return file


def _header(kicker: str, title: str, lead: str, facts: Iterable[str]) -> str:
    return (
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        f'<div class="facts">{"".join(facts)}</div></header>'
    )


def _footer() -> str:
    return "<footer>Every number on this page was measured by the run it describes.</footer>"


def _facts(summary: Mapping[str, Any]) -> list[str]:
    seconds = sum(summary["seconds"].values())
    named = {
        "scale": summary["scale"],
        "seed": summary["config"]["seed"],
        "time": f"{seconds:.0f} s",
        "device": summary["environment"]["devices"],
        "finished": summary["finished"][:16].replace("T", " ") + " UTC",
    }
    facts = [_verdict(_all_hold(summary["claims"]), _tally(summary["claims"]))]
    return facts + [f"<span>{name} <strong>{escape(str(value))}</strong></span>" for name, value in named.items()]


def _all_hold(claims: Sequence[Mapping[str, Any]]) -> bool:
    return all(claim["holds"] for claim in claims)


def _tally(claims: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(claim['holds'] for claim in claims)} of {len(claims)} claims hold"


def _verdict(holds: bool, text: str) -> str:
    return f'<span class="verdict {"yes" if holds else "no"}">{"✓" if holds else "✗"} {escape(text)}</span>'


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("claim", "paper", "ours", "how measured", "holds?"))
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{_text(claim[name])}</td>" for name in ("text", "paper", "ours", "measured"))
        + f"<td>{_verdict(claim['holds'], 'holds' if claim['holds'] else 'does not hold')}</td></tr>"
        for claim in claims
    )
    note = (
        "z is a difference from the exact answer in standard errors, and its bound is what the largest of the z of a "
        "claim exceeds by chance once in a million runs."
    )
    table = f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return _scroll(table) + f'<p class="caption">{note}</p>'


def _overview(runs: Sequence[Run], folder: Path) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("run", "what it shows", "scale", "seed", "time", "claims"))
    rows = "".join(
        f'<tr><td><a href="#run-{number}">{escape(_place(run, folder))}</a></td><td>{escape(run.summary["claim"])}</td>'
        f"<td>{escape(run.summary['scale'])}</td><td>{run.summary['config']['seed']}</td>"
        f'<td class="right">{sum(run.summary["seconds"].values()):.0f} s</td>'
        f"<td>{_verdict(_all_hold(run.summary['claims']), _tally(run.summary['claims']))}</td></tr>"
        for number, run in enumerate(runs)
    )
    return _scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")


def _place(run: Run, folder: Path) -> str:
    name, place = run.summary["experiment"], run.folder.relative_to(folder).as_posix()
    return name if place in {name, "."} else f"{name} ({place})"


def _section(folder: Path, section: Section, *, level: int, prefix: str = "") -> str:
    paragraphs = "".join(f"<p>{_text(text)}</p>" for text in section.paragraphs)
    items = "".join(
        _figure(folder, item, prefix) if isinstance(item, Figure) else _table(item) for item in section.items
    )
    return f"<section><h{level}>{escape(section.title)}</h{level}>{paragraphs}{items}</section>"


def _figure(folder: Path, figure: Figure, prefix: str) -> str:
    file = folder / figure.file
    if not file.is_file():
        drawing = f"<p>The figure {escape(figure.file)} is missing from the folder of the run.</p>"
    else:
        drawing = themed(file.read_text(encoding="utf-8"), label=escape(figure.alt, quote=True))
        drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", drawing)
    return f'<figure><div class="drawing">{drawing}</div><figcaption>{_text(figure.caption)}</figcaption></figure>'


def _table(table: Table) -> str:
    right = [_numeric([row[column] for row in table.rows]) for column in range(len(table.columns))]
    classes = [' class="right"' if flush else "" for flush in right]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(table.columns, classes, strict=True))
    rows = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{_cell(cell, kind)}</td>" for cell, kind in zip(row, classes, strict=True))
        + "</tr>"
        for row in table.rows
    )
    caption = f'<p class="caption">{_text(table.caption)}</p>'
    return _scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>") + caption


def _cell(cell: str, kind: str) -> str:
    """A number gets a true minus sign, as wide as a plus; a lone hyphen stands for no number."""
    text = escape(cell)
    return f"&minus;{text[1:]}" if kind and text.startswith("-") and len(text) > 1 else text


def _numeric(cells: Sequence[str]) -> bool:
    return bool(cells) and all(cell in _BLANK or _NUMBER.fullmatch(cell) for cell in cells)


def _how(summary: Mapping[str, Any]) -> str:
    seconds = summary["seconds"]
    times = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    config = ", ".join(f"{name} = {value}" for name, value in summary["config"].items())
    command = f"probinf run {summary['experiment']} --scale {summary['scale']} --seed {summary['config']['seed']}"
    lines = {"command": command, "configuration": config, "time": times, "finished": summary["finished"]}
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in (lines | summary["environment"]).items()
    )
    return _scroll(f'<table class="plain"><tbody>{rows}</tbody></table>')


def _scroll(table: str) -> str:
    return f'<div class="scroll">{table}</div>'
