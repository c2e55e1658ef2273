"""The command line: what is printed, where, and with which exit code."""

import re

import pytest
from typer.testing import CliRunner

from probinf.cli import _app as cli
from probinf.cli import app
from probinf.cli._doctor import Check
from tests.experiments._fake import INTERRUPT_AT, installed


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def fake(monkeypatch, tmp_path):
    with installed(monkeypatch):
        monkeypatch.chdir(tmp_path)
        yield tmp_path


def test_list_names_every_experiment():
    result = call("list")
    assert result.exit_code == 0
    assert "tour" in result.stdout
    assert "probinf run NAME" in result.stdout


def test_without_a_command_the_help_is_shown():
    result = call()
    assert all(command in result.output for command in ("list", "run", "report", "doctor"))


class TestRun:
    def test_the_last_line_is_the_path_of_the_report(self, fake):
        result = call("run", "fake")
        assert result.exit_code == 0
        assert result.stdout.splitlines()[-1] == "results/fake/report.html"
        assert (fake / "results" / "fake" / "report.html").is_file()

    def test_a_long_path_is_not_wrapped(self, fake):
        out = fake / ("a" * 100) / ("b" * 100)
        assert call("run", "fake", "--out", out).stdout.splitlines()[-1] == str(out / "report.html")

    def test_an_unknown_name_exits_with_two_and_a_suggestion(self):
        result = call("run", "toor")
        assert result.exit_code == 2
        assert "did you mean 'tour'?" in result.stderr
        assert result.stdout == ""

    @pytest.mark.parametrize(
        ("options", "word"), [(["--scale", "huge"], "`scale` must be one of"), (["--seed", "-3"], "`seed` must lie")]
    )
    def test_a_bad_option_exits_with_two(self, fake, options, word):
        result = call("run", "fake", *options)
        assert result.exit_code == 2
        assert word in result.stderr
        assert not (fake / "results").exists()

    def test_the_same_command_again_takes_what_is_there(self, fake):
        first = call("run", "fake")
        second = call("run", "fake")
        assert second.exit_code == 0
        assert "taken from disk: first, second" in second.stderr
        assert first.stdout == second.stdout

    def test_another_seed_is_refused_with_two_ways_out(self, fake):
        call("run", "fake")
        result = call("run", "fake", "--seed", 1)
        assert result.exit_code == 2
        assert "--out" in result.stderr
        assert "--overwrite" in result.stderr
        assert call("run", "fake", "--seed", 1, "--overwrite").exit_code == 0

    def test_a_broken_claim_exits_with_one_but_still_ends_with_the_report(self, monkeypatch, tmp_path):
        with installed(monkeypatch, truth=2.0):
            result = call("run", "fake", "--out", tmp_path / "f")
        assert result.exit_code == 1
        assert "1 of 1 claims do not hold" in result.stderr
        assert result.stdout.splitlines()[-1] == str(tmp_path / "f" / "report.html")

    def test_ctrl_c_says_what_is_done_and_how_to_go_on(self, fake):
        INTERRUPT_AT.append("second")
        result = call("run", "fake", "--seed", 4)
        assert result.exit_code == 130
        assert "Finished parts: first" in result.stderr
        command = re.search(r"Go on with: probinf (.*)", result.stderr)
        assert command
        INTERRUPT_AT.clear()
        again = call(*command[1].split())
        assert again.exit_code == 0
        assert "taken from disk: first" in again.stderr


class TestReport:
    def test_all_runs_of_the_default_folder(self, fake):
        call("run", "fake")
        result = call("report")
        assert result.exit_code == 0
        assert result.stdout == "results/report.html\n"

    def test_nothing_there_exits_with_two(self, fake):
        result = call("report")
        assert result.exit_code == 2
        assert "probinf run tour" in result.stderr


class TestDoctor:
    def test_a_failed_check_exits_with_one(self, monkeypatch):
        failed = Check("arithmetic", False, "2 + 2 = 5 [sic]")
        monkeypatch.setattr(cli, "checks", lambda: iter([failed]))
        result = call("doctor")
        assert result.exit_code == 1
        assert "2 + 2 = 5 [sic]" in result.stdout
        assert "cannot be relied on" in result.stderr

    def test_versions_devices_and_cache_are_shown(self, monkeypatch):
        monkeypatch.setattr(cli, "checks", lambda: iter([Check("a", True, "fine")]))
        result = call("doctor")
        assert result.exit_code == 0
        names = ("python", "jax", "jaxlib", "equinox", "numpyro", "arviz", "numpy", "devices", "float64", "cache")
        assert all(name in result.stdout for name in names)
        assert "All is well" in result.stdout
