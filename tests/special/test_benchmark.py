"""`python -m benchmarks bessel`: its adapters, its targets, and values that differ between libraries."""

import numpy as np
import pytest

from benchmarks._harness import Case, Competitor, Row, Run
from benchmarks._report import Outcome, markdown
from benchmarks.bessel import _probinf, _scipy
from benchmarks.bessel._problems import NAMES, make_problem, pairs
from benchmarks.bessel._targets import COLUMNS, compared, target_lines


@pytest.mark.parametrize("name", NAMES)
def test_adapters_evaluate_the_same_pairs(name):
    problem = make_problem(name)
    v, x = pairs(problem, 200, "float32")
    assert v.dtype == x.dtype == np.float32
    ours = np.array(_probinf.prepare("float32", problem, 200)(0)[1]()["values"])
    # Beyond the range of the exponential of SciPy's results nothing can be compared.
    theirs = _scipy.prepare("float32", problem, 200)(0)[1]()
    values = np.array(theirs["values"])
    finite = np.isfinite(values)
    assert theirs["non_finite"] == pytest.approx(1 - finite.mean())
    assert 0.2 < finite.mean() < 0.9
    np.testing.assert_allclose(ours[finite], values[finite], rtol=2e-6, atol=2e-6 * np.hypot(v, x)[finite].max())


def test_unknown_problems_are_refused():
    with pytest.raises(ValueError, match="`name` is 'log_jv'"):
        make_problem("log_jv")


def rows(planted: float = 0.0) -> list[Row]:
    """Three libraries in two precisions, SciPy's values off by `planted`."""
    case = Case("log_iv", 1, 1000, "seed")
    values = np.linspace(-3, 3, 512)
    found = []
    for library, seconds in (("probinf", 1.0), ("scipy", 2.0), ("tfp", 50.0)):
        for dtype in ("float64", "float32"):
            wall = seconds / (4 if dtype == "float32" and library == "probinf" else 1)
            shown = values + (planted if library == "scipy" else 0)
            details = {"non_finite": 0.0, "values": shown.tolist()}
            runs = tuple(Run(wall, 2 * wall, 0.0, 1.0, dict(details)) for _ in range(2))
            found.append(Row(case, Competitor(library, dtype, "", "", "", dtype), {}, "cpu", 0.0, runs[:1], runs))
    return found


def test_targets_hold_ours_against_each_peer():
    found = compared(rows())
    lines = target_lines(found)
    assert sum(line.endswith("| yes |") for line in lines) == 3
    assert any("scipy:float64 / ours >= 1.5 | 2.00 | 2.00 | yes" in line for line in lines)
    assert any("float64 / float32 >= 2 | 4.00" in line for line in lines)
    assert "values" not in found[0].runs[0].details
    assert "1e+03" in markdown(Outcome("t", found, COLUMNS, {}))


def test_planted_wrong_values_are_shown():
    differences = [row.runs[0].details["difference"] for row in compared(rows(planted=0.5))]
    assert differences[:2] == differences[4:] == [0, 0]
    assert min(differences[2:4]) > 1e-7
