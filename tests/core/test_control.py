"""Controls of a run: stopping at fixed counts, looking, holding and ending it from another thread.

Planted bugs that these tests catch (each was tried by editing the code): borders that are not kept, so that the end of
a run depends on the clock; a stopped run told as interrupted; an accumulator that starts anew; a held run that cannot
be ended (its test hangs or fails).
"""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import Ending, Moments, run_steps
from probinf.core._control import MAX_STEPS, Remote


class Walk(eqx.Module):
    slope: jax.Array

    def __call__(self, key, index, x):
        x = self.slope * x + jax.random.gamma(key, 2.0, x.shape, x.dtype)
        return x, {"x": x, "index": index}


STEP = Walk(jnp.asarray(0.9))


def run(key, num_steps=400, **options):
    return run_steps(key, STEP, jnp.ones(3), num_steps, **options)


class Enough:
    """Ends the run at the first multiple of 30 at which the sum of the records is over `most`."""

    def __init__(self, most):
        self.most, self.asked = most, []

    def border(self, num_done):
        return num_done - num_done % 30 + 30

    def __call__(self, present):
        if present.num_done % 30:
            return None
        self.asked.append(present.num_done)
        return Ending.STOPPED if present.records["x"].sum() > self.most else None


MOST = 7500.0  # 3 coordinates with mean 20: some 125 steps


@pytest.fixture
def whole(key):
    return run(key)


class TestStopping:
    def test_at_the_first_look_that_is_enough(self, key, whole):
        sums = np.cumsum(whole.records["x"].sum(1, dtype=np.float64))
        expected = next(n for n in range(30, 400, 30) if sums[n - 1] > MOST)
        stopped = run(key, controls=[Enough(MOST)])
        assert stopped.num_done == expected > 60
        assert (stopped.stopped, stopped.interrupted) == (True, False)
        np.testing.assert_array_equal(stopped.records["x"], whole.records["x"][:expected])
        np.testing.assert_array_equal(stopped.state, whole.records["x"][expected - 1])

    @pytest.mark.parametrize("chunk_size", [1, 7, 1000])
    def test_neither_chunks_nor_the_clock_move_the_end(self, key, chunk_size):
        times = iter(np.cumsum(np.random.default_rng(chunk_size).exponential(0.3, 10_000)))
        plain = run(key, controls=[Enough(MOST)])
        slow = run(key, controls=[Enough(MOST)], chunk_size=chunk_size, clock=lambda: float(next(times)))
        assert slow.num_done == plain.num_done
        np.testing.assert_array_equal(slow.records["x"], plain.records["x"])

    def test_never_enough(self, key, whole):
        never = run(key, controls=[Enough(np.inf)])
        assert (never.num_done, never.stopped, never.interrupted) == (400, False, False)
        np.testing.assert_array_equal(never.records["x"], whole.records["x"])

    def test_resumed_it_stops_at_the_same_step(self, key, tmp_path):
        plain = run(key, controls=[Enough(MOST)])
        run(key, 50, checkpoint=tmp_path)
        rule = Enough(MOST)
        resumed = run(key, controls=[rule], checkpoint=tmp_path)
        assert resumed.num_done == plain.num_done
        assert rule.asked[0] == 60
        np.testing.assert_array_equal(resumed.records["x"], plain.records["x"])
        # What is there is looked at before anything is run: a stopped run is returned at once.
        again = Enough(MOST)
        assert run(key, controls=[again], checkpoint=tmp_path).num_done == plain.num_done
        assert again.asked == [plain.num_done]
        assert run(key, checkpoint=tmp_path).num_done == 400

    def test_what_a_control_sees_stays(self, key, whole):
        seen = []

        class Keeps(Enough):
            def __call__(self, present):
                seen.append(present)
                return None

        run(key, controls=[Keeps(0)], reducer=Moments(), name="walk")
        assert (seen[0].num_done, seen[-1].num_done, seen[0].num_steps, seen[0].name) == (0, 400, 400, "walk")
        for present in seen:
            assert len(present.records["x"]) == present.num_done
            np.testing.assert_array_equal(present.records["x"], whole.records["x"][: present.num_done])
            assert int(present.accumulated[0]) == present.num_done
            if present.num_done:
                np.testing.assert_array_equal(present.state, whole.records["x"][present.num_done - 1])

    def test_an_error_of_a_control_loses_nothing(self, key, tmp_path):
        class Broken(Enough):
            def __call__(self, present):
                if present.num_done == 60:
                    raise RuntimeError("a bug in the rule")

        with pytest.raises(RuntimeError, match="a bug in the rule"):
            run(key, controls=[Broken(0)], checkpoint=tmp_path)
        assert run(key, 60, checkpoint=tmp_path).num_done == 60


def test_a_reducer_goes_on_where_an_earlier_run_ended(key):
    one, two = jax.random.split(key)
    first = run(one, 40, reducer=Moments())
    second = run_steps(two, STEP, first.state, 70, reducer=Moments(), accumulated=first.accumulated)
    x = np.concatenate([first.records["x"], second.records["x"]]).astype(np.float64)
    assert int(second.reduced.num_records) == 110
    np.testing.assert_allclose(second.reduced.mean["x"], x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(second.reduced.variance["x"], x.var(0, ddof=1), rtol=1e-5)


def done(remote):
    assert remote.latest is not None
    return remote.latest[1].num_done


class TestRemote:
    def work(self, key, remote, results, num_steps=100_000):
        thread = threading.Thread(target=lambda: results.append(run(key, num_steps, controls=[remote])), daemon=True)
        thread.start()
        return thread

    def test_held_and_ended(self, key):
        remote, results = Remote(), []
        remote.hold()
        thread = self.work(key, remote, results)
        assert remote.seen.wait(60)
        assert remote.held
        assert done(remote) == 0
        remote.end()
        thread.join(60)
        assert (results[0].num_done, results[0].interrupted) == (0, True)
        remote.hold()  # too late: it would wait for ever
        assert not remote.held

    def test_released_it_has_the_draws_of_a_run_left_alone(self, key, whole):
        remote, results = Remote(), []
        remote.hold()
        thread = self.work(key, remote, results, 400)
        assert remote.seen.wait(60)
        remote.release()
        thread.join(60)
        np.testing.assert_array_equal(results[0].records["x"], whole.records["x"])
        assert not results[0].interrupted
        assert done(remote) == 400
        assert remote.border(7) == MAX_STEPS
