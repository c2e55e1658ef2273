"""`particle_filter` in two processes of `jax.distributed` on loopback, against one process without a mesh.

Every process makes the same call. Ancestors, particles, weights, quantiles, ESS and evidence are the same bits; each
process can read everything but the particles of the other. The processes meet through gloo.

Planted bug, shown to be caught: processes with another key than the single one differ in ancestors and evidence.
"""

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from tests._processes import finish_worker, start_worker
from tests.samplers._filter_mesh_worker import arrays, gaps, run
from tests.samplers.test_filter_mesh import MUST_AGREE, assert_same

WORKER = Path(__file__).with_name("_filter_process_worker.py")
PARTICLES = [
    ".population.particles['n']",
    ".population.particles['x']",
    ".history.particles['n']",
    ".history.particles['x']",
]

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    file = tmp_path_factory.mktemp("single") / "run.npz"
    np.savez(file, **arrays(run(None)))  # pyright: ignore[reportArgumentType]
    return file


@pytest.fixture(scope="module", params=[1, 4])
def found(request, single):
    """What two processes with so many devices each have printed."""
    port, flags = free_port(), f"--xla_force_host_platform_device_count={request.param}"
    workers = [start_worker(WORKER, number, 2, port, single, flags=flags) for number in range(2)]
    try:
        outputs = [finish_worker(worker, seconds=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for (output, errors), worker in zip(outputs, workers, strict=True):
        assert worker.returncode == 0, errors
        assert output, errors
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]  # gloo writes lines of its own
    assert all(one["devices"] == [2, request.param, 2 * request.param] for one in found)
    return found


def test_two_processes_change_no_bit_of_the_run(found):
    for one in found:
        assert_same(one["gaps"])
        assert set(MUST_AGREE) <= set(one["held"] + one["spread"])


def test_everything_but_particles_is_whole_in_each_process(found):
    for one in found:
        assert sorted(one["spread"]) == sorted(PARTICLES)
        assert "log evidence" in one["summary"]
    assert found[0]["summary"] == found[1]["summary"]
    assert found[0]["log_evidence"] == found[1]["log_evidence"] == float(run(None).log_evidence)


def test_a_fatal_fault_raises_in_each_process(found):
    for one in found:
        step, num_nan, text = one["failed"]
        assert step == 5
        assert num_nan == 256
        assert "NAN_LOG_WEIGHT" in text


def test_another_key_is_caught(single):
    with np.load(single) as expected:
        different = gaps(expected, arrays(run(None, seed=4)))
    assert {".log_evidence", ".history.ancestors"} <= set(different)
    with pytest.raises(AssertionError):
        assert_same(different)
