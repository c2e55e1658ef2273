"""`probinf generate`: what is printed, where, with which exit code, and what becomes of bad requests and of Ctrl-C.

Most tests run a stand-in for the method, which reports steps and ends as it is told; one runs the real filter.
"""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from probinf import llm
from probinf.cli import _generate_display as display
from probinf.cli import _generate_request as requests
from probinf.cli import app
from probinf.core import InferenceError, Status
from probinf.llm import Generations, StepReport
from tests.llm._folders import write_model
from tests.llm._runs import run, texts

ENDS: list[BaseException] = []
CALLS: list[dict[str, Any]] = []
NUM_STEPS = 4


def stand_in(
    key, lm, prompt, *, num_particles, max_steps, step, scorer=None, potential=None, temperature=1.0, stop=None,
    base="proposal", throw=True, on_step=None,
):  # fmt: skip
    """Reports a few steps of a run, then returns it, or ends in the way that `ENDS` says."""
    CALLS.append({name: value for name, value in locals().items() if name != "CALLS"})
    found = run(slots=num_particles, steps=NUM_STEPS, stay=0.9, prompt=prompt)
    for t in range(1, NUM_STEPS + 1):
        if t == 3 and ENDS:
            raise ENDS.pop()
        if on_step is not None:
            on_step(StepReport(t, max_steps, 6.5, False, 1, 20 * t, 0, 0.1 * t, "12;3[bold]", lambda: found))
    return found


def returns(found):
    """A stand-in that returns this."""
    return functools.wraps(stand_in)(lambda *arguments, **options: found)


def needs_more(key, lm, prompt, *, num_particles, max_steps, step, throw=True):
    """A method that neither takes a scorer nor tells what it does."""
    CALLS.append({"method": "needs_more"})
    return texts(weights=np.arange(1, num_particles + 1))


def guided(key, lm, prompt, *, num_particles, max_steps, step, twist, progress=False, throw=True):
    """A method that needs a twist, and goes by iterations."""
    CALLS.append({"twist": twist, "progress": progress})
    if ENDS:
        raise ENDS.pop()
    return texts(weights=np.arange(1, num_particles + 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "chains-tiny")


@pytest.fixture
def call(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(requests, "METHODS", {"particle-filter": stand_in, "needs-more": needs_more, "guided": guided})
    monkeypatch.chdir(tmp_path)
    CALLS.clear()
    ENDS.clear()

    def invoke(*arguments, stdin=None):
        words = [str(argument) for argument in arguments]
        return CliRunner().invoke(app, ["generate", *words, "--model", str(folder)], input=stdin)

    return invoke


class TestTable:
    def test_the_posterior_goes_to_stdout_and_the_progress_to_stderr(self, call):
        result = call("7+5*3>", "--particles", 8)
        assert result.exit_code == 0
        assert "Answers" in result.stdout
        assert "log evidence" in result.stdout
        assert "ESS 6.5" not in result.stdout
        assert CALLS[0]["prompt"] == "7+5*3>"
        assert CALLS[0]["num_particles"] == 8

    def test_probabilities_are_those_of_the_result(self, call, monkeypatch):
        found = texts(weights=[1, 2, 1], answers=["3", "4", None], finished=[True, True, False])
        monkeypatch.setitem(requests.METHODS, "particle-filter", returns(found))
        result = call("1>", "--answer", "[0-9]")
        rows = [re.split(r"\s*│\s*", line.strip(" │")) for line in result.stdout.splitlines() if "0." in line]
        assert [row[:3] for row in rows[:3]] == [["4", "0.500", "1"], ["3", "0.250", "1"], ["(none)", "0.250", "1"]]

    def test_many_answers_are_cut(self, call):
        table = call("1>", "--particles", 400, "--answer", ".+").stdout
        assert len([line for line in table.splitlines() if line.startswith("│")]) == 20
        assert re.search(r"^and [0-9]+ more$", table, re.MULTILINE)

    def test_markup_in_texts_is_text(self, call, monkeypatch):
        found = texts(weights=[1], decode=lambda ids: "[bold]x[/bold] [")
        monkeypatch.setitem(requests.METHODS, "particle-filter", returns(found))
        assert "[bold]x[/bold] [" in call("1>", "--answer", "x").stdout

    def test_the_answer_of_a_chains_model_is_its_last_result(self, call):
        assert "│answer" in call("1>").stdout.replace("┃", "│")


class TestSelect:
    found = texts(weights=[3, 1], scores=[0.1, 0.9], answers=["3", "4"])

    def test_one_text_is_chosen_where_it_is_asked_for(self, call, monkeypatch):
        monkeypatch.setitem(requests.METHODS, "particle-filter", returns(self.found))
        assert "argmax" not in call("1>").stdout
        assert re.search(r"^argmax  4   4;$", call("1>", "--select", "argmax").stdout, re.MULTILINE)
        assert re.search(r"^weighted  3   3;$", call("1>", "--select", "weighted").stdout, re.MULTILINE)
        assert call("1>", "--select", "sample").stdout == call("1>", "--select", "sample").stdout

    def test_methods_of_one_text_choose_it_unasked(self, call, monkeypatch):
        monkeypatch.setitem(requests.METHODS, "best-of-n", returns(self.found))
        told = json.loads(call("1>", "--method", "best-of-n", "--json").stdout)["selected"]
        assert told == {"rule": "argmax", "index": 1, "text": "4;", "answer": "4", "value": 0.9}

    def test_scores_are_aggregated_as_asked(self, call, monkeypatch):
        found = texts(weights=[1, 1], scores=[[0.1, 0.9], [0.5, 0.6]], answers=["3", "4"])
        monkeypatch.setitem(requests.METHODS, "particle-filter", returns(found))
        assert "argmax  3" in call("1>", "--select", "argmax").stdout
        assert "argmax  4" in call("1>", "--select", "argmax", "--aggregate", "prod").stdout
        assert "no use for `--aggregate`" in call("1>", "--aggregate", "prod").stderr
        assert "must be one of last, min" in call("1>", "--select", "argmax", "--aggregate", "max").stderr

    def test_small_shares_are_not_zero(self, call, monkeypatch):
        monkeypatch.setitem(requests.METHODS, "particle-filter", returns(texts(weights=[1e6, 1], answers=["3", "4"])))
        shown = call("1>").stdout
        assert ">0.999" in shown
        assert "<0.001" in shown

    def test_without_scores(self, call):
        result = call("1>", "--select", "best")
        assert result.exit_code == 2
        assert "`--select` must be one of argmax, sample, majority, weighted" in result.stderr


class TestJson:
    def test_it_is_json_and_nothing_else(self, call):
        result = call("1>", "--json", "--particles", 8)
        found = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert sum(row["probability"] for row in found["posterior"]) == pytest.approx(1)
        assert [row["weight"] for row in found["texts"]] == sorted((r["weight"] for r in found["texts"]), reverse=True)
        assert found["prompt"] == "1>"
        assert found["status"] == []
        assert found["log_evidence_se"] is None
        assert found["standard_error_note"]

    def test_flags_are_named(self, call, monkeypatch):
        flagged = run(status=int(Status.NAN_LOG_WEIGHT), num_failed=2, causes={"None": 2})
        monkeypatch.setitem(requests.METHODS, "particle-filter", returns(flagged))
        result = call("1>", "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["status"] == ["NAN_LOG_WEIGHT"]
        assert "2 log weights were NaN, None (2 times)" in result.stderr


class TestInput:
    def test_a_pipe(self, call):
        assert call(stdin="1+1>\n").exit_code == 0
        assert CALLS[-1]["prompt"] == "1+1>"
        assert call("-", stdin="2+2>\r\n").exit_code == 0
        assert CALLS[-1]["prompt"] == "2+2>"

    def test_nothing_at_all(self, call, monkeypatch):
        assert "is empty" in call(stdin="").stderr
        monkeypatch.setattr(requests, "sys", type("S", (), {"stdin": type("T", (), {"isatty": lambda self: True})()}))
        result = call()
        assert result.exit_code == 2
        assert "the prompt is missing" in result.stderr

    def test_options_reach_the_method(self, call, folder):
        call("1>", "--temperature", 0.5, "--max-steps", 7, "--seed", 3, "--scorer", folder, "--potential", "judge")
        told = CALLS[-1]
        assert (told["temperature"], told["max_steps"], told["potential"]) == (0.5, 7, "judge")
        assert isinstance(told["scorer"], llm.LM)
        assert jax.random.key_data(told["key"])[-1] == 3
        assert told["throw"] is False

    def test_arguments_behind_a_typed_dictionary_count(self):
        assert {"num_particles", "scorer", "top_k", "on_step"} <= requests.arguments_of(llm.best_of_n)
        assert "ess_threshold" not in requests.arguments_of(llm.best_of_n)

    def test_a_function_can_be_the_scorer(self, call):
        call("1>", "--scorer", "json:loads")
        assert CALLS[-1]["scorer"] is json.loads

    def test_a_model_or_a_function_can_be_the_twist(self, call, folder):
        call("1>", "--method", "guided", "--twist", "json:loads")
        assert CALLS[-1] == {"twist": json.loads, "progress": True}
        call("1>", "--method", "guided", "--twist", folder, "--quiet")
        assert isinstance(CALLS[-1]["twist"], llm.LM)
        assert not CALLS[-1]["progress"]

    def test_stops_and_base(self, call):
        call("1>", "--stop", r"\n\n", "--stop", "<eos>", "--base", "model")
        assert (CALLS[-1]["stop"], CALLS[-1]["base"]) == (["\n\n", "<eos>"], "model")
        call("1>")
        assert (CALLS[-1]["stop"], CALLS[-1]["base"]) == (None, "proposal")

    def test_defaults_are_those_of_the_methods(self):
        assert requests.default_of("resampling") == "systematic; multinomial for particle-gibbs and parallel-tempering"
        assert requests.default_of("ess_threshold") == "0.5; every step for waste-free"
        assert requests.default_of("width") == "4"
        assert requests.default_of("base") == "proposal"

    @pytest.mark.parametrize(
        ("words", "mode"),
        [
            (";", llm.delimiter(";")),
            (r"\n\n", llm.delimiter("\n\n")),
            ("block:16", llm.block(16)),
        ],
    )
    def test_steps(self, call, words, mode):
        assert requests.step_mode(words) == mode
        call("1>", "--step", words)
        assert CALLS[-1]["step"] == mode

    def test_answers(self):
        assert requests.answer_reader("[0-9]+")("a 12 b 345 c") == "345"
        assert requests.answer_reader("= ([0-9])")("= 1, = 2") == "2"
        assert requests.answer_reader("x")("y") is None


class TestBadRequests:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["1>", "--method", "best"], "`--method` must be one of particle-filter, needs-more, guided; got 'best'"),
            (["1>", "--seed", "-1"], "`--seed` must lie between 0"),
            (["1>", "--step", "block:many"], "needed a number of tokens after the colon"),
            (["1>", "--step", ""], "`--step` is empty"),
            (["1>", "--answer", "("], "is no regular expression"),
            (["1>", "--scorer", "json:nothing"], "json has no 'nothing'"),
            (["1>", "--scorer", "math:pi"], "needed a function of prompt and text"),
            (["1>", "--scorer", "absent"], "there is no model 'absent'"),
            (["1>", "--out", "absent/run.npz"], "make absent first"),
            (["1>", "--plot", "tree.txt"], "must end in one of"),
            (["1>", "--top-k", "3"], "has no use for `--top-k`: leave it out"),
            (["1>", "--method", "needs-more", "--scorer", "x"], "has no use for `--scorer`"),
            (["1>", "--method", "guided"], "the method guided needs `--twist`"),
            (["1>", "--method", "guided", "--twist", "math:pi"], "`--twist` math:pi is 3.14"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_exit_code_two_and_a_mend(self, call, arguments, words):
        result = call(*arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert result.stdout == ""
        assert CALLS == []

    def test_what_the_method_refuses(self, call):
        ENDS.append(ValueError("`prompt` is longer than the context: shorten it"))
        result = call("1>")
        assert result.exit_code == 2
        assert "shorten it" in result.stderr

    def test_an_unknown_model(self, monkeypatch):
        result = CliRunner().invoke(app, ["generate", "1>", "--model", "absent"])
        assert result.exit_code == 2
        assert "there is no model 'absent'" in result.stderr


class TestFailures:
    def test_a_failed_run_exits_with_one(self, call):
        ENDS.append(InferenceError("POSINF_LOG_WEIGHT: mend it"))
        result = call("1>")
        assert result.exit_code == 1
        assert "mend it" in result.stderr

    def test_a_fatal_status_prints_no_posterior(self, call, monkeypatch):
        broken = run(status=int(Status.POSINF_LOG_WEIGHT))
        monkeypatch.setitem(requests.METHODS, "particle-filter", returns(broken))
        result = call("1>", "--out", "run.npz")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "POSINF_LOG_WEIGHT" in result.stderr
        assert Generations.load("run.npz").status == broken.status

    def test_no_text_with_a_weight(self, call, monkeypatch):
        dead = texts(weights=[0, 0], answers=["7", "7"], status=int(Status.ALL_WEIGHTS_ZERO), first_bad_step=0)
        monkeypatch.setitem(requests.METHODS, "particle-filter", returns(dead))
        result = call("1>")
        assert result.exit_code == 1
        assert "the longest text so far is '7;'" in result.stderr
        assert "no text has any weight" in result.stderr


class TestCtrlC:
    def test_what_there_is_is_printed(self, call):
        ENDS.append(KeyboardInterrupt())
        result = call("1>", "--json", "--out", "run.npz")
        assert result.exit_code == 130
        assert json.loads(result.stdout)["status"] == ["INTERRUPTED"]
        assert "interrupted in step" in result.stderr
        assert Generations.load("run.npz").status == Status.INTERRUPTED

    def test_a_method_that_notices_itself(self, call, monkeypatch):
        found = run(status=int(Status.INTERRUPTED))
        monkeypatch.setitem(requests.METHODS, "particle-filter", returns(found))
        result = call("1>")
        assert result.exit_code == 130
        assert "Answers" in result.stdout

    def test_one_program_is_lost_and_says_so(self, call):
        ENDS.append(KeyboardInterrupt())
        result = call("1>", "--quiet")
        assert result.exit_code == 130
        assert "particle-filter ran as one program, of which nothing is kept: without --quiet" in result.stderr
        assert result.stdout == ""

    def test_a_chain_without_a_pass_that_is_kept(self, call):
        ENDS.append(KeyboardInterrupt("after 3 passes"))
        result = call("1>", "--method", "guided", "--twist", "json:loads")
        assert result.exit_code == 130
        assert result.stderr.strip() == "interrupted: after 3 passes"


class TestFiles:
    def test_result_and_genealogy(self, call, tmp_path):
        result = call("1>", "--out", "run.npz", "--plot", "tree.svg", "--quiet")
        assert result.exit_code == 0
        assert "<svg" in (tmp_path / "tree.svg").read_text()
        assert Generations.load(tmp_path / "run.npz").prompt == "1>"
        assert "result: run.npz" in result.stderr

    def test_a_full_disk_loses_nothing_that_was_printed(self, call, monkeypatch):
        def full(*arguments, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        result = call("1>", "--out", "run.npz")
        assert result.exit_code == 1
        assert "Answers" in result.stdout
        assert "No space left" in result.stderr


class TestDisplay:
    report = StepReport(2, 40, 6.5, False, 3, 1200, 0, 0.5, "12;3[bold]\nx", lambda: run())

    def test_on_a_terminal_it_moves(self, monkeypatch, capfd):
        monkeypatch.setattr(display, "Console", lambda **options: Console(force_terminal=True, width=100, **options))
        with display.watching("particle-filter", 40) as watcher:
            watcher(self.report._replace(step=1, tokens_used=800, seconds=0.4))
            watcher(self.report)
        shown = capfd.readouterr().err
        assert "2/40" in shown
        assert "ESS 6.5, 3 ended" in shown
        assert "4,000 tokens/s" in shown  # since the first report, which had to wait for a compilation
        assert "12;3[bold]⏎x" in shown

    def test_in_a_log_there_are_lines(self, monkeypatch, capfd):
        ticks = iter(range(0, 100, 3))
        monkeypatch.setattr(display.time, "perf_counter", lambda: float(next(ticks)))
        with display.watching("particle-filter", 40) as watcher:
            watcher(self.report)
        shown = capfd.readouterr().err
        assert "particle-filter: 2/40" in shown
        assert "best: 12;3[bold]⏎x" in shown
        assert "\x1b" not in shown


@pytest.mark.slow
def test_the_real_filter_watched_or_not(folder, tmp_path, monkeypatch):
    """The same seed prints the same posterior, in a loop on the host and in one program; Ctrl-C in the former."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = ["generate", "7+5>", "--model", str(folder), "--particles", "4", "--max-steps", "3", "--step", "block:2"]
    words += ["--json", "--answer", "[0-9]"]
    watched, quiet = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--quiet"]))
    assert watched.exit_code == quiet.exit_code == 0, watched.output
    left, right = (json.loads(result.stdout) for result in (watched, quiet))
    assert left["posterior"] == right["posterior"]
    assert left["texts"] == right["texts"]
    assert left["method"] == "particle_filter"

    def stop(self, report):
        self.last = report
        raise KeyboardInterrupt

    monkeypatch.setattr(display.Watcher, "__call__", stop)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 130
    assert json.loads(result.stdout)["status"] == ["INTERRUPTED"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_in_a_process_of_its_own(folder, tmp_path):
    """A judge that sleeps makes sure that the run is not over before the signal comes."""
    (tmp_path / "sleepy.py").write_text(
        "import time\n\ndef judge(prompt, text):\n    time.sleep(0.2)\n    return 0.5\n"
    )
    words = ["generate", "7+5>", "--model", str(folder), "--step", "block:1", "--max-steps", "80", "--json"]
    command = [sys.executable, "-m", "probinf.cli", *words, "--scorer", "sleepy:judge"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "particle-filter: " in first
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "interrupted in step" in errors
    found = json.loads(output)
    assert found["status"] == ["INTERRUPTED"]
    assert sum(row["probability"] for row in found["posterior"]) == pytest.approx(1)
