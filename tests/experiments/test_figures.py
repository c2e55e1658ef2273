"""Figures: the same bytes each time, themed for a page, no global state."""

import re
import sys

from probinf.experiments import canvas
from probinf.experiments._figures import BLUE, INK, themed, to_svg


def drawing(name="a"):
    with canvas(columns=2) as (figure, (left, right)):
        left.plot([1, 2], [3, 4], color=BLUE, label="line")
        left.legend()
        right.set(title="Title", xlabel="label")
        return to_svg(figure, name=name)


def test_a_figure_is_the_same_bytes_each_time():
    assert drawing() == drawing()


def test_ids_of_clip_paths_differ_between_figures():
    def ids(svg):
        return set(re.findall(r"url\(#(\w+)\)", svg))

    assert ids(drawing("a"))
    assert not ids(drawing("a")) & ids(drawing("b"))


def test_colours_and_fonts_become_those_of_the_page():
    svg = drawing()
    assert BLUE in svg
    page = themed(svg, label="what it shows")
    assert BLUE not in page
    assert INK not in page
    assert "var(--blue)" in page
    assert "var(--ink)" in page
    assert "DejaVu" not in page
    assert "<style" not in page
    assert page.startswith('<svg role="img" aria-label="what it shows"')
    assert ">Title<" in page


def test_pyplot_is_not_needed():
    drawing()
    figures = sys.modules["matplotlib.pyplot"].get_fignums() if "matplotlib.pyplot" in sys.modules else []
    assert figures == []
