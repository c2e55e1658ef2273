"""`particle_filter` with its particles spread over 1, 2, 4 and 8 simulated devices.

Ancestors, particles, weights, quantiles, ESS and evidence are the same bits. Only sums over the spread particles that
feed nothing else are added in another order: the filtering means.

Planted bugs, shown to be caught: other random numbers on the devices (another key) change ancestors and evidence; a
gather that knows nothing of devices sends the particles of all to all.
"""

import json
from pathlib import Path

import pytest

from tests._processes import finish_worker, start_worker
from tests.samplers._filter_mesh_worker import NUM_PARTICLES, WIDTH

WORKER = Path(__file__).with_name("_filter_mesh_worker.py")
# float32 sums of 256 terms in another order; measured below 5e-7 relative.
REORDERED = {".mean['x']": 1e-5, ".mean['n']": 1e-5}
MUST_AGREE = [
    ".log_evidence",
    ".log_evidence_path",
    ".ess",
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
    output, errors = finish_worker(start_worker(WORKER, flags="--xla_force_host_platform_device_count=8"), seconds=300)
    assert output, errors
    return json.loads(output)


def assert_same(gaps):
    assert set(gaps) <= set(REORDERED), gaps
    for name, gap in gaps.items():
        assert gap <= REORDERED[name], gaps


@pytest.mark.parametrize("devices", ["1", "2", "4", "8", "replicates", "ahead"])
def test_devices_change_no_bit_of_the_run(found, devices):
    assert set(MUST_AGREE) <= set(found["names"])
    assert_same(found[devices])
    if devices == "1":
        assert found[devices] == {}


def test_the_run_resamples_and_is_spread(found):
    assert found["resampled"] >= 5
    assert found["resampled_ahead"] >= 5
    assert found["devices"] == 8


def test_other_random_numbers_are_caught(found):
    assert {".log_evidence", ".history.ancestors"} <= set(found["other_seed"])
    with pytest.raises(AssertionError):
        assert_same(found["other_seed"])


def whole_particles(sent):
    """The operations that bring all particles to a device."""
    return [operation for shape, operation in sent if f"{NUM_PARTICLES},{WIDTH}]" in shape]


def test_devices_send_weights_and_the_particles_of_neighbours(found):
    assert whole_particles(found["sent"]) == []
    assert [f"f32[{NUM_PARTICLES // 8},{WIDTH}]", "collective-permute"] in found["sent"]
    assert [f"f32[{NUM_PARTICLES}]", "all-gather"] in found["sent"]
    assert whole_particles(found["sent_whole"])


def test_an_exchange_is_a_gather(found):
    assert found["exchanged"] == {count: [] for count in ("1", "2", "3", "8")}
    first, *rest = found["slopes"]
    assert any(first)
    assert all(slope == first for slope in rest)


def test_meshes_that_cannot_be_used(found):
    uneven, text, numbers = found["refusals"]
    assert uneven.startswith("ValueError: `num_particles` is 10, which the 4 devices of `mesh` along 'particles'")
    assert uneven.endswith("take 12, or a smaller mesh")
    assert text.startswith("TypeError: `mesh` is 'cpu'; needed a `jax.sharding.Mesh`, such as `jax.make_mesh(")
    assert numbers.startswith("TypeError: `mesh` is [1, 2]; needed a `jax.sharding.Mesh`")
