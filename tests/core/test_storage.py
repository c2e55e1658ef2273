"""Checkpoints: what survives a kill, a crash at any write, damage, a full disk and a wrong resume.

Planted bugs that these tests catch (each was tried by editing the storage): state written before the records; files
written in place; the digest not chained; the digest of a file not compared; the reducer left out of the state; the
lock left out; saved records advanced although the write failed; version, dtype, key or fingerprint not compared.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import _driver, _files, _storage
from probinf.core._driver import run_steps
from probinf.core._reducers import Moments
from probinf.core._storage import StorageWarning, open_store, read_records

WORKER = Path(__file__).with_name("_driver_worker.py")


class Walk(eqx.Module):
    slope: jax.Array
    twist: float = eqx.field(static=True, default=1.0)

    def __call__(self, key, index, state):
        x, carried = state
        carried, use = jax.random.split(carried)
        x = self.slope * x + self.twist * jax.random.gamma(key, 2.0, x.shape, x.dtype)
        return (x, carried), {"x": x, "sign": jax.random.bernoulli(use), "half": x.astype(jnp.bfloat16)}


def walk(folder=None, num_steps=60, *, seed=3, step=None, dtype=jnp.float32, chunk_size=10, **options):
    step = Walk(jnp.asarray(0.9, dtype)) if step is None else step
    start = (jnp.ones(3, dtype), jax.random.key(5))
    return run_steps(
        jax.random.key(seed), step, start, num_steps, checkpoint=folder, chunk_size=chunk_size, reducer=Moments(),
        **options,
    )  # fmt: skip


def plain(leaf):
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same_bits(one, two):
    pairs = zip(*(jax.tree.leaves((r.state, r.records, r.reduced)) for r in (one, two)), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(plain(a), plain(b), strict=True)


@pytest.fixture(scope="module")
def whole():
    return walk()


class TestKill:
    @pytest.mark.parametrize(("chunk", "wait"), [(0, 0.0), (3, 0.017)])
    def test_kill_and_resume_is_bit_equal(self, tmp_path, chunk, wait):
        """SIGKILL at whatever the process does `wait` seconds after it has written that chunk; then resumed here."""
        sys.path.insert(0, str(WORKER.parent))
        try:
            import _driver_worker as worker
        finally:
            sys.path.pop(0)
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(WORKER.parents[2])}
        process = subprocess.Popen([sys.executable, str(WORKER), str(tmp_path), "600", "0.005"], env=environment)
        deadline = time.monotonic() + 60
        while not (tmp_path / f"records-{50 * chunk:010d}.npz").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        done = len(read_records(tmp_path)["['x']"])
        assert 50 * chunk <= done < 600
        # Of `__main__.step` there, of `_driver_worker.step` here.
        fingerprint = json.loads((tmp_path / "manifest.json").read_text())["fingerprint"]
        resumed = worker.run(tmp_path, 600, fingerprint=fingerprint)
        reference = run_steps(jax.random.key(3), worker.step, worker.start(), 600, reducer=Moments())
        assert_same_bits(resumed, reference)


class Crash(BaseException):
    """The machine stops."""


def crashing(at_write, leave_half):
    """A `write_file` that stops the machine at the n-th write and stays dead."""
    count, real = [0], _files.write_file

    def write_file(path, write):
        count[0] += 1
        if count[0] < at_write:
            return real(path, write)
        if leave_half and count[0] == at_write:
            path.with_name(f"{path.name}.tmp").write_bytes(b"PK half a file")
        raise Crash

    return write_file


class TestCrash:
    @pytest.mark.parametrize("leave_half", [False, True])
    @pytest.mark.parametrize("at_write", range(1, 14))
    def test_at_every_write(self, tmp_path, monkeypatch, whole, at_write, leave_half):
        """A run of 6 chunks writes 13 files; after a stop at any of them the resumed run is bit-equal."""
        with monkeypatch.context() as patch:
            for module in (_files, _storage):
                patch.setattr(module, "write_file", crashing(at_write, leave_half))
            with pytest.raises(Crash):
                walk(tmp_path)
        if at_write > 1:
            assert len(read_records(tmp_path).get("['x']", ())) == 10 * ((at_write - 2) // 2)
        assert_same_bits(walk(tmp_path), whole)

    def test_other_chunks_after_the_crash(self, tmp_path, monkeypatch, whole):
        with monkeypatch.context() as patch:
            patch.setattr(_files, "write_file", crashing(6, False))
            with pytest.raises(Crash):
                walk(tmp_path)
        assert_same_bits(walk(tmp_path, chunk_size=7), whole)


class TestResume:
    def test_a_finished_run_is_returned_at_once(self, tmp_path, monkeypatch, whole):
        walk(tmp_path)
        monkeypatch.setattr(_driver, "run_chunk", None)
        assert_same_bits(walk(tmp_path), whole)

    def test_a_finished_run_goes_on(self, tmp_path, whole):
        walk(tmp_path, 25)
        assert_same_bits(walk(tmp_path), whole)

    def test_fewer_steps_than_stored(self, tmp_path):
        walk(tmp_path)
        with pytest.raises(ValueError, match="holds 60 finished steps, more than the num_steps = 59"):
            walk(tmp_path, 59)

    def test_without_records(self, tmp_path, whole):
        walk(tmp_path, 25, collect=False)
        run = walk(tmp_path, collect=False)
        assert run.records is None
        np.testing.assert_array_equal(run.reduced.mean["x"], whole.reduced.mean["x"])
        assert not list(tmp_path.glob("records-*"))

    def test_records_without_arrays(self, tmp_path):
        def run(num_steps, folder=None):
            return run_steps(jax.random.key(0), lambda k, i, x: (x + 1, None), 0, num_steps, checkpoint=folder)

        run(3, tmp_path)
        assert int(run(8, tmp_path).state) == 8

    def test_double_precision(self, tmp_path, x64):
        walk(tmp_path, 25, dtype=jnp.float64)
        resumed = walk(tmp_path, dtype=jnp.float64)
        assert resumed.records["x"].dtype == np.float64
        assert_same_bits(resumed, walk(dtype=jnp.float64))

    def test_the_time_between_writes(self, tmp_path):
        """Without `chunk_size` the folder is written every 5 s, not at every call."""
        times = iter(np.arange(0, 10_000, 0.5))
        run_steps(
            jax.random.key(0), lambda k, i, x: (x, x), jnp.ones(2), 100, checkpoint=tmp_path,
            clock=lambda: float(next(times)),
        )  # fmt: skip
        assert 4 <= len(list(tmp_path.glob("records-*"))) <= 25  # a write "takes" 0.5 s, which stretches the pause

    def test_read_records(self, tmp_path, whole):
        walk(tmp_path)
        stored = read_records(tmp_path)
        assert set(stored) == {"['x']", "['sign']", "['half']"}
        for name in ("x", "sign", "half"):
            np.testing.assert_array_equal(stored[f"['{name}']"], whole.records[name], strict=True)
        with pytest.raises(ValueError, match=r"no checkpoint folder"):
            read_records(tmp_path.parent)


class TestRefused:
    def test_another_key(self, tmp_path):
        walk(tmp_path, 20)
        with pytest.raises(ValueError, match=r"its key is threefry2x32 \[0, 3\], and here it is .*\[0, 4\]"):
            walk(tmp_path, seed=4)

    def test_another_dtype(self, tmp_path, x64):
        walk(tmp_path, 20)
        with pytest.raises(
            ValueError, match=r"its state is .*float32.* and here it is .*float64.*same shapes and dtyp"
        ):
            walk(tmp_path, dtype=jnp.float64)

    def test_another_precision(self, tmp_path):
        walk(tmp_path, 20)
        with jax.enable_x64(True), pytest.raises(ValueError, match="its x64 is False, and here it is True"):
            walk(tmp_path)

    @pytest.mark.parametrize("step", [Walk(jnp.asarray(0.8)), Walk(jnp.asarray(0.9), twist=2.0)])
    def test_other_data_or_settings(self, tmp_path, step):
        walk(tmp_path, 20)
        with pytest.raises(ValueError, match=r"its fingerprint is .*the step, the data or a setting changed"):
            walk(tmp_path, step=step)

    def test_another_config_hash(self, tmp_path):
        walk(tmp_path, 20, fingerprint="one")
        with pytest.raises(ValueError, match="its fingerprint is one, and here it is two"):
            walk(tmp_path, fingerprint="two")

    def test_other_records(self, tmp_path):
        walk(tmp_path, 20)
        with pytest.raises(ValueError, match="its records is 3 arrays, and here it is 0 arrays"):
            walk(tmp_path, collect=False)

    @pytest.mark.parametrize("field", ["format", "probinf", "jax", "platform"])
    def test_another_version(self, tmp_path, field):
        walk(tmp_path, 20)
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: "99"}))
        with pytest.raises(ValueError, match=f"its {field} is 99, and here it is"):
            walk(tmp_path)

    def test_a_refused_run_changes_nothing(self, tmp_path, whole):
        walk(tmp_path, 20)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ValueError, match="another run"):
            walk(tmp_path, seed=4)
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert_same_bits(walk(tmp_path), whole)

    def test_a_second_writer(self, tmp_path):
        with open_store(tmp_path, {}, "first"):
            with pytest.raises(ValueError, match="another run is writing to the checkpoint folder"):
                walk(tmp_path)

    def test_the_lock_is_given_back_after_an_error(self, tmp_path):
        with pytest.raises(TypeError):
            walk(tmp_path, step=lambda k, i, s: (s[0], None))
        walk(tmp_path, 10)


FILES = ["records-0000000000.npz", "records-0000000010.npz", "state.npz", "manifest.json"]


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
    def test_a_truncated_file(self, tmp_path, name, share):
        walk(tmp_path, 20)
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            walk(tmp_path)

    @pytest.mark.parametrize("name", FILES[:3])
    def test_a_flipped_bit(self, tmp_path, name):
        """Wherever it is: either the file is refused, or (a bit that means nothing) the result is unharmed."""
        short = walk(num_steps=20)
        walk(tmp_path, 20)
        path = tmp_path / name
        good = path.read_bytes()
        refused = 0
        for position in np.random.default_rng(0).integers(0, len(good), 40):
            bad = bytearray(good)
            bad[position] ^= 1
            path.write_bytes(bytes(bad))
            try:
                run = walk(tmp_path, 20)
            except ValueError as error:
                refused += "is damaged" in str(error)
            else:
                assert_same_bits(run, short)
        assert refused >= 10

    def test_a_changed_value_with_a_right_checksum(self, tmp_path):
        walk(tmp_path, 20)
        path = tmp_path / FILES[0]
        arrays = _files.read_arrays(path)
        del arrays["digest"]
        arrays["records0002['x']"] = arrays["records0002['x']"] + np.float32(1)
        _files.write_arrays(path, arrays)
        with pytest.raises(ValueError, match="does not follow the files before it"):
            walk(tmp_path)

    @pytest.mark.parametrize("name", FILES[:3])
    def test_a_changed_value_with_the_old_checksum(self, tmp_path, name):
        walk(tmp_path, 20)
        arrays = _files.read_arrays(tmp_path / name)
        changed = next(part for part in arrays if part.startswith(("records0002", "state0000")))
        np.savez(tmp_path / name, **{**arrays, changed: arrays[changed] + np.float32(1)})
        with pytest.raises(ValueError, match="its checksum is wrong"):
            walk(tmp_path)

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, tmp_path, name, whole):
        walk(tmp_path, 20)
        (tmp_path / name).unlink()
        if name == "state.npz":  # as if nothing had been done: the records are written anew
            assert_same_bits(walk(tmp_path), whole)
        else:
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                walk(tmp_path)

    def test_files_of_another_run(self, tmp_path):
        for seed in (3, 4):
            walk(tmp_path / str(seed), 20, seed=seed)
        for name in FILES[:2]:
            foreign = (tmp_path / "4" / name).read_bytes()
            own = (tmp_path / "3" / name).read_bytes()
            (tmp_path / "3" / name).write_bytes(foreign)
            with pytest.raises(ValueError, match="does not follow the files before it"):
                walk(tmp_path / "3")
            (tmp_path / "3" / name).write_bytes(own)
        (tmp_path / "3" / "state.npz").write_bytes((tmp_path / "4" / "state.npz").read_bytes())
        with pytest.raises(ValueError, match="does not belong to the record files"):
            walk(tmp_path / "3")


def full_disk(writes_left, until=10**9):
    """A disk on which `writes_left` more files fit, until somebody makes room before write number `until`."""
    count, real = [0], _files.write_file

    def write_file(path, write):
        count[0] += 1
        if writes_left < count[0] < until:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, write)

    return write_file


class TestFullDisk:
    @pytest.mark.parametrize("writes_left", [0, 1, 4, 5])
    def test_nothing_is_lost(self, tmp_path, monkeypatch, whole, writes_left):
        """The manifest is write 0 here; then two files a chunk."""
        walk(tmp_path, 0)
        with monkeypatch.context() as patch:
            patch.setattr(_files, "write_file", full_disk(writes_left))
            with pytest.warns(StorageWarning) as caught:
                run = walk(tmp_path)
        assert_same_bits(run, whole)
        first, last = (str(entry.message) for entry in caught)
        assert str(tmp_path) in first
        assert "No space left" in first
        assert f"only {10 * (writes_left // 2)} of 60 steps" in last
        assert len(read_records(tmp_path)["['x']"]) == 10 * (writes_left // 2)
        assert_same_bits(walk(tmp_path), whole)

    def test_room_made_in_time(self, tmp_path, monkeypatch, whole):
        walk(tmp_path, 0)
        with monkeypatch.context() as patch:
            patch.setattr(_files, "write_file", full_disk(4, 7))
            with pytest.warns(StorageWarning) as caught:
                walk(tmp_path)
        assert len(caught) == 1
        np.testing.assert_array_equal(read_records(tmp_path)["['x']"], whole.records["x"])
        assert_same_bits(walk(tmp_path), whole)

    def test_full_from_the_start(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_storage, "write_file", full_disk(0))
        with pytest.raises(OSError, match="cannot be begun") as caught:
            walk(tmp_path)
        assert caught.value.filename == str(tmp_path)

    def test_the_folder_is_a_file(self, tmp_path):
        path = tmp_path / "taken"
        path.write_text("")
        with pytest.raises(OSError, match="checkpoint folder cannot be made"):
            walk(path)

    def test_a_real_write_that_fails_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def write(file):
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(OSError, match="No space"):
            _files.write_file(path, write)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
