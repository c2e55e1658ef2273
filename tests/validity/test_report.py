"""Reports: what passes, what never does, and what the table says."""

import math

import pytest

from probinf.validity import Check, Report

GOOD = Check("invariance", "skewed", 1.0, 5.0, 1e-7, "a shift of .1 sd")
BAD = Check("balance", "skewed", 1e-3, 1e-8, 0.0, "1e-8")


def test_a_report_passes_if_all_checks_do() -> None:
    assert Report((GOOD, GOOD)).passed
    assert not Report((GOOD, BAD)).passed
    assert Report((GOOD, BAD)).failures == (BAD,)


def test_nothing_checked_is_not_passed() -> None:
    assert not Report(()).passed


@pytest.mark.parametrize("found", [math.nan, math.inf])
def test_what_could_not_be_computed_never_passes(found: float) -> None:
    assert not Check("law", "x", found, 1.0, 0.0, "any").passed


def test_rates_add_up() -> None:
    both = Report((GOOD,), "first") + Report((GOOD, BAD), "second")
    assert both.false_alarm_rate == pytest.approx(2e-7)
    assert both.title == "first"
    assert both.checks == (GOOD, GOOD, BAD)


def test_table_names_laws_and_verdict() -> None:
    table = Report((GOOD, BAD), "my kernel").table
    for text in ("my kernel", "invariance", "balance", "0.001", "1 of 2 failed", "✗"):
        assert text in table


def test_check_raises_with_the_table() -> None:
    assert Report((GOOD,)).check().passed
    with pytest.raises(AssertionError, match="balance"):
        Report((BAD,)).check()
