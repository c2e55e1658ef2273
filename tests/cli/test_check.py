"""`probinf check`: kernels by name, exit codes, and what is said of bad names."""

from pathlib import Path

import jax
import pytest
from typer.testing import CliRunner

from probinf.cli import _app, app
from probinf.cli._check import load
from probinf.validity import Check, Report

SOURCE = """
import jax
import jax.numpy as jnp
from probinf import Target, samplers

walk = samplers.random_walk(1.0)
target = Target(lambda x: -0.5 * jnp.sum(x * x))


def draw(key):
    return jax.random.normal(key, (2,))


def wide(key):
    return 1.3 * draw(key)


def make():
    return samplers.random_walk(0.8)


number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_kernels.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def call(*arguments: str):
    return CliRunner().invoke(app, ["check", *arguments])


def test_a_sound_kernel_exits_with_zero(folder: Path) -> None:
    result = call("my_kernels:walk", "--target", "my_kernels:target", "--draw", "my_kernels:draw")
    assert result.exit_code == 0, result.output
    assert "balance" in result.stdout
    assert "passed" in result.stdout


def test_wrong_draws_exit_with_one(folder: Path) -> None:
    result = call("my_kernels:make", "--target", "my_kernels:target", "--draw", "my_kernels:wide")
    assert result.exit_code == 1
    assert "failed: my_kernels:make" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["my_kernels"], "needed `module:name`"),
        (["no_such_module:walk"], "no module 'no_such_module'"),
        (["my_kernels:run"], "has no 'run'"),
        (["my_kernels:number"], "needed one, or a function"),
        (["my_kernels:walk", "--draw", "my_kernels:draw"], "pass both"),
    ],
)
def test_what_cannot_be_done_exits_with_two(folder: Path, arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr.replace("\n", " ")


def test_all_blocks_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = (Report((Check("law", "x", found, 1.0, 1e-7, "any"),)) for found in (0.5, 2.0))
    monkeypatch.setattr(_app, "CERTIFICATES", {"one": None, "two": None})
    monkeypatch.setattr(_app, "certify", lambda name: good)
    sound = call()
    monkeypatch.setattr(_app, "certify", lambda name: bad if name == "two" else good)
    broken = call()
    assert sound.exit_code == 0
    assert "2 certificates; at most 2e-07" in sound.stdout
    assert broken.exit_code == 1
    assert "failed: two" in broken.stderr


def test_names_with_dots() -> None:
    assert load("kernel", "jax:numpy.sin") is jax.numpy.sin
