"""The Python blocks of README.md and of the tutorials run, page by page, and do what their text says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted(ROOT.glob("docs/tutorials/*.md"))

# A user's session has none of the strict settings.
pytestmark = pytest.mark.numpyro


def run_blocks(page: Path) -> dict[str, Any]:
    """The names that the blocks of a page leave behind."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks, f"{page} has no python block"
    names: dict[str, Any] = {}
    for source in blocks:
        exec(compile(source, str(page), "exec"), names)
    return names


@pytest.mark.smoke
def test_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(ROOT / "README.md")
    out, draws, population = names["out"], names["draws"], names["population"]
    assert int(out.status) == 0
    lower, middle, upper = np.moveaxis(np.asarray(out.quantiles), 1, 0)
    assert np.all(lower < middle)
    assert np.all(middle < upper)
    assert np.all(np.asarray(draws.status) == 0)
    assert (tmp_path / "draws.nc").exists()
    # Both estimates of the log evidence have a standard error below 0.1.
    assert abs(population.log_evidence - out.log_evidence) < 0.7
    assert capsys.readouterr().out.strip()


LONG = ("samplers", "mcmc", "models", "validity", "language-models")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow, id=page.stem) if page.stem in LONG else page for page in TUTORIALS],
    ids=lambda page: page.stem,
)
def test_tutorial_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)
    assert capsys.readouterr().out.strip()
