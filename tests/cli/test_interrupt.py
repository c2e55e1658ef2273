"""Ctrl-C in the middle of the real tour, then the same command again: the numbers are those of a run left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 600


def start(out):
    command = [sys.executable, "-m", "probinf.cli", "run", "tour", "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, errors = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, output, errors


def metrics(out):
    return json.loads((out / "metrics.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("tour") / "tour"
    code, output, errors = finish(start(out))
    assert code == 0, errors
    assert output.splitlines()[-1] == str(out / "report.html")
    return metrics(out)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize(
    ("sign", "done"),
    [("checkpoints/regression/draws/manifest.json", "none"), ("parts/regression.json", "regression")],
    ids=["among the draws", "between the parts"],
)
def test_interrupted_then_resumed(undisturbed, tmp_path, sign, done):
    out = tmp_path / "tour"
    process = start(out)
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (out / sign).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, output, errors = finish(process)
    assert code == 130, errors
    assert output == ""
    assert f"Finished parts: {done};" in errors
    assert not (out / "metrics.json").exists()

    code, output, errors = finish(start(out))
    assert code == 0, errors
    assert ("regression: already done" in errors) == (done == "regression")
    assert metrics(out) == undisturbed
