"""Reports: self-contained, escaped, honest about claims that fail, and a function of the folder alone.

Planted bugs: markup in every text, a lost figure, a cut file, a claim that does not hold.
"""

import json
import re
from html.parser import HTMLParser

import pytest

from probinf.experiments import Table, collect_reports, run_experiment, write_report
from probinf.experiments._report import _table
from tests.experiments._fake import installed

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Checker(HTMLParser):
    """Collects what a page asks for, its ids, and whether its tags match."""

    def __init__(self):
        super().__init__()
        self.open, self.asked, self.ids, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "data", "srcset"} and not (value or "").startswith("#"):
                self.asked.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def check(page):
    checker = Checker()
    checker.feed(page.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker


@pytest.fixture
def report(monkeypatch, tmp_path):
    with installed(monkeypatch):
        return run_experiment("fake", out=tmp_path / "results" / "fake").report


def test_a_page_asks_for_nothing_from_outside(report):
    checker = check(report)
    assert checker.asked == []
    assert {"link", "script", "img", "iframe"}.isdisjoint(checker.tags)
    style = re.search(r"<style>(.*?)</style>", report.read_text(), re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "prefers-color-scheme: dark" in style[1]


def test_the_first_table_is_the_claims(report):
    table = re.search(r"<table.*?</table>", report.read_text(), re.DOTALL)
    assert table
    heads = re.findall(r"<th>(.*?)</th>", table[0])
    assert heads == ["claim", "paper", "ours", "how measured", "holds?"]
    assert "0 &lt;exact&gt;" in table[0]
    assert "✓ holds" in table[0]


def test_texts_are_escaped_and_figures_stand_inside(report):
    page = report.read_text()
    assert "A &lt;caption&gt;." in page
    assert 'aria-label="An &quot;alt&quot; text."' in page
    assert "a &amp; b" in page
    assert page.count("<svg ") == 1
    assert "5&nbsp;%" in page


def test_seed_versions_configuration_and_time_close_the_page(report):
    ending = report.read_text().split("How this was run")[1]
    for word in ("--seed 0", "size = 3", "jaxlib", "numpyro", "devices", "first 0."):
        assert word in ending


def test_a_report_is_made_again_from_its_folder(report):
    before = report.read_text()
    report.unlink()
    assert write_report(report.parent) == report
    assert report.read_text() == before


def test_a_lost_figure_is_told(report):
    (report.parent / "figures" / "first.svg").unlink()
    write_report(report.parent)
    assert "The figure figures/first.svg is missing" in report.read_text()


def test_a_cut_file_is_refused_with_the_mend(report):
    (report.parent / "parts" / "second.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot be read.*--overwrite"):
        write_report(report.parent)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        write_report(tmp_path)
    for empty in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="no finished run lies in"):
            collect_reports(empty)


class TestCollect:
    def test_all_runs_on_one_page_with_ids_of_their_own(self, report, monkeypatch):
        results = report.parents[1]
        with installed(monkeypatch, truth=2.0):
            run_experiment("fake", out=results / "again", seed=1)
        page = collect_reports(results)
        checker = check(page)
        assert page == results / "report.html"
        assert checker.asked == []
        anchors = [name for name in checker.ids if "clip" in name or re.fullmatch(r"r\d+-[pm]\w{10}", name)]
        assert len(anchors) == len(set(anchors))
        text = page.read_text()
        assert "1 of 2 claims hold" in text
        assert "fake (again)" in text
        assert text.count("<svg ") == 2

    def test_a_run_keeps_its_own_report(self, report):
        before = report.read_text()
        assert collect_reports(report.parent).name == "all.html"
        assert report.read_text() == before

    def test_the_page_follows_the_folder(self, report):
        file = report.parent / "metrics.json"
        data = json.loads(file.read_text())
        data["claims"][0]["holds"] = False
        file.write_text(json.dumps(data))
        assert "0 of 1 claims hold" in collect_reports(report.parents[1]).read_text()


def test_numbers_are_flush_right_with_a_true_minus():
    rows = (("a-b", "-1.50", "-"), ("c", "1,200.25", "3 %"))
    html = _table(Table("", ("name", "value", "share"), rows))
    assert '<td class="right">&minus;1.50</td>' in html
    assert '<td class="right">-</td>' in html
    assert "<td>a-b</td>" in html
    assert html.count('class="right"') == 6
