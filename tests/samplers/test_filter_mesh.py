"""`particle_filter` with its particles spread over 1, 2 and 8 simulated devices.

Ancestors, particles, weights, quantiles and evidence are the same bits. Only sums over the spread particles that feed
nothing else are added in another order: the filtering means, the reported ESS and the evidence variance.

Planted bug, shown to be caught: other random numbers on the devices (another key) change ancestors and evidence.
"""

import json
from pathlib import Path

import pytest

from tests._processes import finish_worker, start_worker

WORKER = Path(__file__).with_name("_filter_mesh_worker.py")
# float32 sums of 256 terms in another order; measured below 5e-7 relative.
REORDERED = {".mean['x']": 1e-5, ".mean['n']": 1e-5, ".ess": 1e-5, ".log_evidence_variance": 1e-4}
MUST_AGREE = [
    ".log_evidence",
    ".log_evidence_path",
    ".history.ancestors",
    ".history.log_weights",
    ".history.particles['x']",
    ".history.particles['n']",
    ".quantiles['x']",
    ".population.particles['x']",
    ".population.eve",
    ".resampled",
    ".status",
]


@pytest.fixture(scope="module")
def found():
    output, errors = finish_worker(start_worker(WORKER, flags="--xla_force_host_platform_device_count=8"))
    assert output, errors
    return json.loads(output)


def assert_same(gaps):
    assert set(gaps) <= set(REORDERED), gaps
    for name, gap in gaps.items():
        assert gap <= REORDERED[name], gaps


@pytest.mark.parametrize("devices", ["1", "2", "8", "replicates"])
def test_devices_change_no_bit_of_the_run(found, devices):
    assert set(MUST_AGREE) <= set(found["names"])
    assert_same(found[devices])
    if devices == "1":
        assert found[devices] == {}


def test_the_run_resamples_and_is_spread(found):
    assert found["resampled"] >= 5
    assert found["devices"] == 8


def test_other_random_numbers_are_caught(found):
    assert {".log_evidence", ".history.ancestors"} <= set(found["other_seed"])
    with pytest.raises(AssertionError):
        assert_same(found["other_seed"])
