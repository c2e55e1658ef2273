"""`sample` killed or interrupted in a process of its own, then resumed in another: the draws of a run left alone.

Where it is killed is drawn from a seed: after which write, and how many milliseconds later. The runs have a stop rule,
which ends all of them at the same draw.

Planted bugs: one draw off by one unit in the last place (`test_a_changed_draw_is_caught`). That a run stores nothing
or everything before it is stopped is excluded by assertions.
"""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from probinf.core import Status, read_records
from probinf.core._files import read_arrays
from tests._processes import finish_worker, start_worker

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

WORKER = Path(__file__).with_name("_sample_worker.py")
NUM_WARMUP, NUM_SAMPLES, CHUNK = 120, 200, 10  # the rule ends the run at 200 draws, of at most 1000
SECONDS = 0.01  # a reading of the clock; a chunk takes several


def load(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def assert_same_bits(one, two):
    assert set(one) == set(two)
    for name, array in one.items():
        np.testing.assert_array_equal(array.reshape(-1).view(np.uint8), two[name].reshape(-1).view(np.uint8), name)


def steps_in(folder):
    """Steps that are safe in a checkpoint folder."""
    path = folder / "state.npz"
    return int(read_arrays(path)["index"]) if path.exists() else 0


class Stop(NamedTuple):
    """When a run is stopped: `wait` seconds after `steps` steps of a part are stored."""

    part: str
    steps: int
    wait: float
    number: int


def planned(seed, part, number):
    rng = np.random.default_rng([20_240_229, seed])
    return Stop(part, CHUNK * int(rng.integers(1, 5)), rng.uniform(0, 0.1), number)


STOPS = {
    "killed_in_warmup": planned(0, "warmup", signal.SIGKILL),
    "killed_in_draws": planned(1, "draws", signal.SIGKILL),
    "interrupted_in_warmup": planned(2, "warmup", signal.SIGINT),
    "interrupted_in_draws": planned(3, "draws", signal.SIGINT),
}
LENGTH = {"warmup": NUM_WARMUP, "draws": NUM_SAMPLES}


class Stopped(NamedTuple):
    """What the stopped process left: its exit code, what `sample` returned, the safe steps, the stored draws."""

    code: int
    errors: str
    returned: dict[str, np.ndarray] | None
    steps: dict[str, int]
    stored: np.ndarray | None


def run_and_stop(folder, stop):
    out = folder.with_suffix(".part.npz")
    process = start_worker(WORKER, SECONDS, folder, out)
    deadline = time.monotonic() + 100
    while steps_in(folder / stop.part) < stop.steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(stop.wait)
    process.send_signal(stop.number)
    _, errors = finish_worker(process)
    draws = folder / "draws"
    stored = read_records(draws)["['samples']['a']"] if draws.exists() else None
    safe = {part: steps_in(folder / part) for part in LENGTH}
    return Stopped(process.returncode, errors, load(out) if out.exists() else None, safe, stored)


class Runs(NamedTuple):
    """An uninterrupted run, what each stopped run left, and what its resumption in a new process gave."""

    whole: dict[str, np.ndarray]
    stopped: dict[str, Stopped]
    resumed: dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    with ThreadPoolExecutor(2) as pool:
        stopped = list(pool.map(lambda name: run_and_stop(root / name, STOPS[name]), STOPS))
    pairs = [("none", root / "whole.npz")] + [(root / name, root / f"{name}.npz") for name in STOPS]
    process = start_worker(WORKER, 0, *(argument for pair in pairs for argument in pair))
    _, errors = finish_worker(process)
    assert process.returncode == 0, errors
    whole, *resumed = (load(out) for _, out in pairs)
    return Runs(whole, dict(zip(STOPS, stopped, strict=True)), dict(zip(STOPS, resumed, strict=True)))


def test_the_uninterrupted_run(runs):
    assert not runs.whole["status"].any()
    assert runs.whole["reached"]
    assert runs.whole["000"].shape == (3, NUM_SAMPLES)
    assert runs.whole["001"].shape == (3, NUM_SAMPLES, 2)
    assert len(np.unique(runs.whole["000"])) > NUM_SAMPLES


@pytest.mark.parametrize("name", STOPS)
def test_resumed_in_a_new_process_it_is_bit_equal(runs, name):
    stop, left = STOPS[name], runs.stopped[name]
    assert stop.steps <= left.steps[stop.part] < LENGTH[stop.part]  # it was stopped in the middle
    assert (left.stored is None) == (stop.part == "warmup")
    assert_same_bits(runs.resumed[name], runs.whole)


@pytest.mark.parametrize("name", ["killed_in_warmup", "killed_in_draws"])
def test_it_was_killed(runs, name):
    assert runs.stopped[name].code == -signal.SIGKILL
    assert runs.stopped[name].returned is None


def test_interrupted_among_the_draws(runs):
    left = runs.stopped["interrupted_in_draws"]
    assert left.code == 0, left.errors
    np.testing.assert_array_equal(left.returned["status"], np.full(3, int(Status.INTERRUPTED), np.uint32))
    for name in ("000", "001"):
        assert left.returned[name].shape[1] == left.steps["draws"]
        np.testing.assert_array_equal(left.returned[name], runs.whole[name][:, : left.steps["draws"]])
    np.testing.assert_array_equal(left.stored, left.returned["000"].T)


def test_interrupted_among_the_warm_up(runs):
    left = runs.stopped["interrupted_in_warmup"]
    assert left.code == 0, left.errors
    np.testing.assert_array_equal(left.returned["status"], np.full(3, int(Status.INTERRUPTED), np.uint32))
    assert not left.returned["reached"]
    assert left.returned["000"].shape == (3, 0)  # no draws from a kernel that is not tuned
    assert left.steps["draws"] == 0


def test_a_changed_draw_is_caught(runs):
    changed = runs.whole | {"000": runs.whole["000"].copy()}
    changed["000"][1, 77] = np.nextafter(changed["000"][1, 77], np.float32(np.inf))
    with pytest.raises(AssertionError):
        assert_same_bits(changed, runs.whole)
