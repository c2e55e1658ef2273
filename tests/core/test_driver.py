"""The run driver: known answers, chunking, compilation, interrupts, progress, devices.

Planted bugs that these tests catch (each was tried by editing the driver): the key folded with the index within the
chunk; the last chunk run at full length; a record written one place late; the index of a resumed run starting at 0;
a chunk that compiles for every count; a signal handler that is not put back; the display fed only at the end;
Welford's update without compensation (float32 offset); variance with divisor n.
"""

import signal
import threading
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from probinf.core import _driver
from probinf.core._chunk import run_chunk
from probinf.core._driver import run_steps
from probinf.core._reducers import Moments
from probinf.core._storage import read_records
from tests._compilations import COMPILED
from tests._processes import finish_worker, start_worker


class Walk(eqx.Module):
    """A skewed autoregression: x' = a x + gamma noise."""

    slope: jax.Array

    def __call__(self, key, index, x):
        x = self.slope * x + jax.random.gamma(key, 2.0, x.shape, x.dtype)
        return x, {"x": x, "index": index}


def bits(key, index, state):
    """Integers only, so that compiled and uncompiled agree exactly."""
    drawn = jax.random.bits(key, (2,), jnp.uint32)
    return state + drawn, (drawn, index)


def as_tuple(run):
    return jax.tree.leaves((run.state, run.records, run.reduced))


def assert_same_bits(one, two):
    for a, b in zip(as_tuple(one), as_tuple(two), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


class TestKnownAnswers:
    def test_equals_a_python_loop(self, key):
        run = run_steps(key, bits, jnp.zeros(2, jnp.uint32), 23)
        state, drawn = jnp.zeros(2, jnp.uint32), []
        for i in range(23):
            state, (one, _) = bits(jax.random.fold_in(key, i), jnp.int32(i), state)
            drawn.append(one)
        np.testing.assert_array_equal(run.records[0], np.stack(drawn))
        np.testing.assert_array_equal(run.records[1], np.arange(23))
        np.testing.assert_array_equal(run.state, state)
        assert (run.num_done, run.interrupted) == (23, False)

    @pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
    def test_chunks_change_nothing(self, key, chunk_size):
        step = Walk(jnp.asarray(0.9))
        whole = run_steps(key, step, jnp.ones(3), 150, reducer=Moments())
        assert_same_bits(whole, run_steps(key, step, jnp.ones(3), 150, reducer=Moments(), chunk_size=chunk_size))

    def test_the_speed_of_the_machine_changes_nothing(self, key):
        times = iter(np.cumsum(np.random.default_rng(0).exponential(0.3, 10_000)))
        step = Walk(jnp.asarray(0.9))
        slow = run_steps(key, step, jnp.ones(3), 150, clock=lambda: float(next(times)))
        assert_same_bits(slow, run_steps(key, step, jnp.ones(3), 150))

    def test_a_longer_run_begins_like_a_shorter_one(self, key):
        step = Walk(jnp.asarray(0.9))
        short, long = (run_steps(key, step, jnp.ones(3), n) for n in (40, 90))
        np.testing.assert_array_equal(short.records["x"], long.records["x"][:40])

    def test_no_steps(self, key):
        run = run_steps(key, Walk(jnp.asarray(0.9)), jnp.ones(3), 0, reducer=Moments())
        np.testing.assert_array_equal(run.state, np.ones(3))
        assert run.records["x"].shape == (0, 3)
        assert np.isnan(run.reduced.mean["x"]).all()

    def test_numbers_and_functions_in_the_state(self, key):
        def step(key, index, state):
            return {"total": state["total"] + 1, "f": state["f"]}, state["f"](state["total"])

        run = run_steps(key, step, {"total": 0, "f": jnp.negative}, 4)
        np.testing.assert_array_equal(run.records, [0, -1, -2, -3])
        assert run.state["f"] is jnp.negative

    def test_no_records(self, key):
        run = run_steps(key, lambda k, i, x: (x + 1, None), 0, 5)
        assert run.records is None
        assert int(run.state) == 5

    def test_double_precision(self, key, x64):
        run = run_steps(key, Walk(jnp.asarray(0.9)), jnp.ones(3), 20, reducer=Moments())
        assert {run.state.dtype, run.records["x"].dtype, run.reduced.mean["x"].dtype} == {np.dtype("float64")}
        half = run_steps(key, Walk(jnp.asarray(0.9, jnp.float32)), jnp.ones(3, jnp.float32), 20)
        assert {half.state.dtype, half.records["x"].dtype} == {np.dtype("float32")}

    def test_records_larger_than_the_buffer(self, key):
        run = run_steps(key, lambda k, i, x: (x, x + i.astype(x.dtype)), jnp.zeros((3000, 2000)), 3)
        np.testing.assert_array_equal(run.records[:, 7, 9], [0, 1, 2])


class TestReducer:
    def test_moments_are_those_of_the_records(self, key):
        run = run_steps(key, Walk(jnp.asarray(0.9)), jnp.ones(3), 5000, reducer=Moments())
        x = run.records["x"].astype(np.float64)
        assert int(run.reduced.num_records) == 5000
        np.testing.assert_allclose(run.reduced.mean["x"], x.mean(0), rtol=3e-7)
        np.testing.assert_allclose(run.reduced.variance["x"], x.var(0, ddof=1), rtol=2e-6)
        np.testing.assert_allclose(run.reduced.mean["index"], 4999 / 2, rtol=3e-7)

    def test_an_offset_in_float32_does_no_harm(self, key):
        def step(key, index, state):
            return state, 1e4 + jax.random.normal(key, (2,), jnp.float32)

        run = run_steps(key, step, jnp.zeros(()), 50_000, reducer=Moments())
        x = run.records.astype(np.float64)
        np.testing.assert_allclose(run.reduced.mean, x.mean(0), rtol=1.2e-7)
        np.testing.assert_allclose(run.reduced.variance, x.var(0, ddof=1), rtol=1e-5)

    def test_without_collecting_nothing_is_kept(self, key):
        step = Walk(jnp.asarray(0.9))
        run = run_steps(key, step, jnp.ones(3), 500, reducer=Moments(), collect=False)
        kept = run_steps(key, step, jnp.ones(3), 500, reducer=Moments())
        assert run.records is None
        np.testing.assert_array_equal(run.reduced.variance["x"], kept.reduced.variance["x"])

    def test_one_record_has_no_variance_and_nan_stays(self, key):
        one = run_steps(key, lambda k, i, x: (x, x), jnp.ones(2), 1, reducer=Moments())
        np.testing.assert_array_equal(one.reduced.mean, [1, 1])
        assert np.isnan(one.reduced.variance).all()
        some = run_steps(key, lambda k, i, x: (x, jnp.where(i == 2, jnp.nan, x)), jnp.ones(2), 9, reducer=Moments())
        assert np.isnan(some.reduced.mean).all()


class TestCompilation:
    def test_a_second_run_compiles_nothing(self, key):
        run_steps(key, Walk(jnp.asarray(0.9)), jnp.ones(5), 300, reducer=Moments())
        other, begin = jax.random.key(99), jnp.full(5, 2.0, jnp.float32)
        slope = jnp.asarray(0.5)
        before = len(COMPILED)
        run = run_steps(other, Walk(slope), begin, 411, reducer=Moments(), chunk_size=100)
        assert len(COMPILED) == before
        assert run.num_done == 411

    def test_committed_data_compile_once_too(self, key):
        step = Walk(jax.device_put(jnp.asarray(0.9), jax.devices()[0]))
        run_steps(key, step, jnp.ones(6), 2)
        before = len(COMPILED)
        run_steps(key, step, jnp.ones(6), 40)
        assert len(COMPILED) == before

    def test_a_step_is_traced_once(self, key):
        traced = []

        def step(key, index, x):
            traced.append(index)
            return x, x

        run_steps(key, step, jnp.ones(2), 30, reducer=Moments())
        assert len(traced) == 1

    def test_data_are_arguments_not_constants(self, key):
        step = Walk(jnp.ones(500_000))
        zero = jnp.zeros((), jnp.int32)

        def call(step, state):
            return run_chunk(key, step, None, zero, zero, state, None, True, None)

        jaxpr, _, _ = eqx.filter_make_jaxpr(call)(step, jnp.ones(500_000))
        assert sum(np.size(const) for const in jaxpr.consts if eqx.is_array(const)) < 1000

    def test_lowers_for_every_platform(self, key):
        def call(slope, state):
            count = jnp.zeros((), jnp.int32)
            chunk = run_chunk(key, Walk(slope), Moments(), count, count, state, MOMENTS, True, None)
            return eqx.filter(chunk, eqx.is_array)

        shapes = {"x": jax.ShapeDtypeStruct((4,), jnp.float32), "index": jax.ShapeDtypeStruct((), jnp.int32)}
        MOMENTS = Moments().init(shapes)
        exported = jax.export.export(jax.jit(call), platforms=["cpu", "cuda", "tpu"])(jnp.asarray(0.9), jnp.ones(4))
        assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


class TestBadInput:
    @pytest.mark.parametrize("num_steps", [-1, 2**31])
    def test_number_of_steps_out_of_range(self, key, num_steps):
        with pytest.raises(ValueError, match=rf"`num_steps` is {num_steps}; needed at (least|most)"):
            run_steps(key, bits, jnp.zeros(2, jnp.uint32), num_steps)

    def test_several_processes(self, key, monkeypatch):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="runs in one process"):
            run_steps(key, bits, jnp.zeros(2, jnp.uint32), 3)

    def test_chunk_size_zero(self, key):
        with pytest.raises(ValueError, match="`chunk_size` is 0; needed at least 1"):
            run_steps(key, bits, jnp.zeros(2, jnp.uint32), 3, chunk_size=0)

    def test_a_state_that_changes(self, key):
        with pytest.raises(TypeError, match=r"was float32\(2,\) and came back as float32\(2, 1\)"):
            run_steps(key, lambda k, i, x: (x[:, None], x), jnp.ones(2), 3)
        with pytest.raises(TypeError, match="was int32"):
            run_steps(key, lambda k, i, x: (x.astype(jnp.float32), x), jnp.ones((), jnp.int32), 3)
        with pytest.raises(TypeError, match="structure"):
            run_steps(key, lambda k, i, x: ((x, x), x), jnp.ones(2), 3)

    def test_keys_are_no_records(self, key):
        with pytest.raises(TypeError, match="key_data"):
            run_steps(key, lambda k, i, x: (x, k), jnp.ones(2), 3)


def interrupting(after, times=1):
    """A clock that presses Ctrl-C `times` times, once `after` readings were taken."""
    readings = []

    def clock():
        readings.append(0)
        if after < len(readings) <= after + times:
            signal.raise_signal(signal.SIGINT)
        return 0.1 * len(readings)

    return clock


class TestInterrupt:
    def test_what_is_done_comes_back(self, key, tmp_path):
        step = Walk(jnp.asarray(0.9))
        run = run_steps(key, step, jnp.ones(3), 10_000, clock=interrupting(20), checkpoint=tmp_path, reducer=Moments())
        whole = run_steps(key, step, jnp.ones(3), 10_000, reducer=Moments())
        assert run.interrupted
        assert 0 < run.num_done < 10_000
        np.testing.assert_array_equal(run.records["x"], whole.records["x"][: run.num_done])
        assert int(run.reduced.num_records) == run.num_done == len(read_records(tmp_path)["['x']"])
        assert_same_bits(whole, run_steps(key, step, jnp.ones(3), 10_000, checkpoint=tmp_path, reducer=Moments()))

    def test_before_the_first_step(self, key):
        run = run_steps(key, bits, jnp.zeros(2, jnp.uint32), 10, clock=interrupting(0))
        assert run.interrupted
        assert len(run.records[0]) == run.num_done <= 1

    def test_the_second_one_raises_and_loses_nothing(self, key, tmp_path):
        step = Walk(jnp.asarray(0.9))
        with pytest.raises(KeyboardInterrupt):
            run_steps(key, step, jnp.ones(3), 10_000, clock=interrupting(20, 2), checkpoint=tmp_path)
        done = len(read_records(tmp_path)["['x']"])
        assert done > 0
        resumed = run_steps(key, step, jnp.ones(3), done + 10, checkpoint=tmp_path)
        assert_same_bits(resumed, run_steps(key, step, jnp.ones(3), done + 10))

    def test_the_handler_is_put_back(self, key):
        run_steps(key, bits, jnp.zeros(2, jnp.uint32), 30)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        run_steps(key, bits, jnp.zeros(2, jnp.uint32), 30, clock=interrupting(3))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_handler_of_the_user_is_left_alone(self, key):
        seen = []
        before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        try:
            run = run_steps(key, bits, jnp.zeros(2, jnp.uint32), 30, clock=interrupting(3))
        finally:
            signal.signal(signal.SIGINT, before)
        assert seen == [signal.SIGINT]
        assert not run.interrupted

    def test_an_exception_from_elsewhere_counts_as_the_first(self, key):
        def describe(state, records):
            raise KeyboardInterrupt

        times = iter(range(0, 10_000, 10))
        run = run_steps(
            key, bits, jnp.zeros(2, jnp.uint32), 30, progress=True, describe=describe, clock=lambda: float(next(times))
        )
        assert run.interrupted
        assert len(run.records[0]) == run.num_done > 0

    def test_an_error_loses_nothing(self, key, tmp_path):
        def describe(state, records):
            raise RuntimeError("a bug in the text")

        with pytest.raises(RuntimeError, match="a bug"):
            run_steps(
                key, bits, jnp.zeros(2, jnp.uint32), 30, progress=True, describe=describe, checkpoint=tmp_path,
                clock=lambda: 0.0,
            )  # fmt: skip
        assert len(read_records(tmp_path)["[0]"]) == 30

    def test_runs_in_another_thread(self, key):
        results = []

        def work():
            results.append(run_steps(key, bits, jnp.zeros(2, jnp.uint32), 30))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert results[0].num_done == 30


class TestProgress:
    @pytest.mark.parametrize("seconds", [0.001, 0.3, 3.0])
    def test_at_least_every_five_seconds(self, key, capsys, seconds):
        """Each step takes `seconds` of a simulated clock, and eight times that from step 600 on."""
        time = [0.0]

        def tick(index):
            time[0] += seconds * (8 if index >= 600 and seconds < 1 else 1)

        def step(key, index, x):
            io_callback(tick, None, index, ordered=True)
            return x, None

        shown = [0.0]
        num_steps = {0.001: 2500, 0.3: 700, 3.0: 20}[seconds]
        run_steps(
            key, step, jnp.zeros(()), num_steps, progress=True, clock=lambda: time[0], name="slow job",
            describe=lambda state, records: shown.append(time[0]) or f"at {time[0]:.3f}",
        )  # fmt: skip
        assert max(np.diff([*shown, time[0]])) <= 5.0
        text = capsys.readouterr().err
        assert f"slow job: {num_steps}/{num_steps} (100 %)" in text
        assert f"at {shown[-1]:.3f}" in text

    def test_off_it_costs_nothing(self, key, monkeypatch, capsys):
        monkeypatch.setattr(_driver, "progress_display", None)
        run_steps(key, bits, jnp.zeros(2, jnp.uint32), 30, describe=lambda state, records: str(1 / 0))
        assert capsys.readouterr() == ("", "")

    def test_a_bar_on_a_terminal(self, key, monkeypatch, capsys):
        monkeypatch.setenv("FORCE_COLOR", "1")
        run_steps(key, bits, jnp.zeros(2, jnp.uint32), 30, progress=True, describe=lambda s, r: f"{len(r[0])} new")
        text = capsys.readouterr().err
        assert "30/30" in text
        assert " new" in text


def test_one_two_and_eight_devices_give_the_same_draws():
    worker = Path(__file__).with_name("_driver_mesh_worker.py")
    output, errors = finish_worker(start_worker(worker, flags="--xla_force_host_platform_device_count=8"))
    assert output.split() == ["same", "kept", "resumed", "no-gather"], output + errors
