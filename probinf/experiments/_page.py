"""What a part of an experiment hands to the report: sections of text, tables and figures, as plain data.

Everything here turns into JSON and back (`encode`, `decode`), so that a report is a function of its folder: it can be
written again, or collected with others, without running anything.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Figure(NamedTuple):
    """A figure on disk: `file` is an SVG inside the run's folder, `alt` says what it shows to who cannot see it."""

    file: str
    caption: str
    alt: str


class Table(NamedTuple):
    """A table of ready-made strings; a column whose entries are all numbers is set flush right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Section(NamedTuple):
    """A heading, paragraphs of plain text, then figures and tables in the order given."""

    title: str
    paragraphs: tuple[str, ...]
    items: tuple[Figure | Table, ...]


class Part(NamedTuple):
    """One resumable piece of an experiment: what it measured, and how it is shown.

    Attributes:
        metrics: name -> number, string, or list or mapping of such; arrays become lists, NaN and inf become null.
        section: its place in the report.
    """

    metrics: Mapping[str, Any]
    section: Section


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays as lists, numbers that are not finite as None, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence):
        return [plain(inner) for inner in value]
    return plain(np.asarray(value).tolist())


def encode(part: Part) -> dict[str, Any]:
    """A `Part` as JSON data."""
    section = part.section
    items = [{"kind": type(item).__name__.lower(), **item._asdict()} for item in section.items]
    return plain(
        {
            "metrics": part.metrics,
            "section": {"title": section.title, "paragraphs": section.paragraphs, "items": items},
        }
    )


def decode(data: Mapping[str, Any]) -> Part:
    """The inverse of `encode`, up to `plain`."""
    section = data["section"]
    items = tuple(_item(item) for item in section["items"])
    return Part(data["metrics"], Section(section["title"], tuple(section["paragraphs"]), items))


def _item(data: Mapping[str, Any]) -> Figure | Table:
    if data["kind"] == "figure":
        return Figure(data["file"], data["caption"], data["alt"])
    return Table(data["caption"], tuple(data["columns"]), tuple(tuple(row) for row in data["rows"]))
