"""`start_sampling`: looking, pausing, aborting, errors, settings of the thread; always the draws of `sample`.

Planted bug that these tests catch (tried by editing the code): settings of this thread that the other does not have.
"""

import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import Draws, InferenceError, InferenceWarning, Moments, Status, Target
from probinf.samplers import SamplingRun, converged, hmc, random_walk, sample, start_sampling
from tests._compilations import COMPILED
from tests._posteriors import half_square, regression

LONG = 200_000


def key() -> Any:
    """The key of every run, new each time: the checker of key reuse looks at objects."""
    return jax.random.key(0)


def options(**changes: Any) -> dict[str, Any]:
    return {"num_samples": 200, "num_warmup": 60, "num_chains": 3} | changes


def begin(**changes: Any) -> SamplingRun:
    return start_sampling(key(), hmc(num_steps=4), regression()[0], **options(**changes))


def wait_for(run: SamplingRun, condition: Any) -> None:
    while not condition():
        assert not run.done, run.result()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole() -> Draws:
    return sample(key(), hmc(num_steps=4), regression()[0], **options())


class TestSameDraws:
    def test_as_from_sample_and_nothing_is_compiled(self, whole: Draws) -> None:
        begin().result(60)
        new = key()
        before = len(COMPILED)
        run = start_sampling(new, hmc(num_steps=4), regression()[0], **options())
        draws = run.result(60)
        assert len(COMPILED) == before
        np.testing.assert_array_equal(draws.samples, whole.samples)
        np.testing.assert_array_equal(draws.kernel.step_size, whole.kernel.step_size)
        assert run.done
        assert run.progress == ("done", 200, 200, False)
        assert run.draws() is run.abort() is run.result() is draws

    def test_paused_and_looked_at(self, whole: Draws) -> None:
        with begin(num_samples=LONG) as run:
            wait_for(run, lambda: run.progress.phase == "draws" and run.progress.num_done > 10)
            run.pause()
            wait_for(run, lambda: run.draws().num_draws == run.progress.num_done)
            time.sleep(0.05)
            held = run.draws()
            assert run.progress.paused
            with pytest.raises(TimeoutError, match=r"not ended after 0.01 seconds.*it is paused: call `resume\(\)`"):
                run.result(0.01)
            kept = held.samples.copy()
            run.resume()
            wait_for(run, lambda: run.progress.num_done > held.num_draws)
            with pytest.raises(TimeoutError, match=r"ask again, or call `abort\(\)`"):
                run.result(0.01)
            draws = run.abort()
        np.testing.assert_array_equal(held.samples, kept)
        np.testing.assert_array_equal(draws.samples[:, : held.num_draws], held.samples)
        num = min(200, held.num_draws)
        np.testing.assert_array_equal(held.samples[:, :num], whole.samples[:, :num])
        np.testing.assert_array_equal(held.state.position, held.samples[:, -1])
        assert not held.status.any()
        assert held.summary()["mean"].shape == (3,)
        assert np.all(draws.status == int(Status.INTERRUPTED))
        assert held.num_draws <= draws.num_draws < LONG
        more = held.extend(jax.random.key(1), num_samples=5)
        assert more.num_draws == held.num_draws + 5

    def test_with_a_rule_and_a_checkpoint(self, tmp_path: Path, whole: Draws) -> None:
        rule = converged(r_hat=1.1, ess=50, every=20)
        draws = begin(stop=rule, checkpoint=tmp_path).result(60)
        assert draws.attrs["stopped"]["reached"]
        np.testing.assert_array_equal(draws.samples, whole.samples[:, : draws.num_draws])
        np.testing.assert_array_equal(begin(checkpoint=tmp_path).result(60).samples, whole.samples)

    def test_streaming(self) -> None:
        with begin(num_samples=LONG, collect=False, reducer=Moments()) as run:
            wait_for(run, lambda: run.progress.phase == "draws" and run.progress.num_done > 10)
            draws = run.draws()
        assert draws.num_draws == 0
        assert 10 < int(draws.attrs["reduced"].num_records) < LONG


class TestAbort:
    def test_in_warm_up(self) -> None:
        with begin(num_warmup=LONG) as run:
            wait_for(run, lambda: run.progress.num_done > 5)
            assert run.progress.phase == "warmup"
            assert run.progress.num_steps == LONG
            early = run.draws()
            assert early.num_draws == 0
            assert early.status.shape == (3,)
            run.pause()
        assert run.done
        with pytest.warns(InferenceWarning, match="INTERRUPTED"):
            draws = run.result()
        assert draws.num_draws == 0
        assert np.all(draws.status == int(Status.INTERRUPTED))

    def test_what_was_aborted_resumes(self, tmp_path: Path, whole: Draws) -> None:
        with begin(checkpoint=tmp_path, num_samples=LONG) as run:
            wait_for(run, lambda: run.progress.phase == "draws" and run.progress.num_done > 10)
            num = run.abort().num_draws
        draws = begin(checkpoint=tmp_path, num_samples=num + 20).result(60)
        np.testing.assert_array_equal(draws.samples[:, :200], whole.samples[:, : num + 20])


class TestErrors:
    def test_at_once(self) -> None:
        with pytest.raises(TypeError, match="num_sample"):
            start_sampling(key(), hmc(), regression()[0], num_sample=3)
        with pytest.raises(ValueError, match="`num_samples` is 0; needed at least 1"):
            begin(num_samples=0)
        with pytest.raises(TypeError, match="`start_sampling` runs a loop on the host"):
            jax.vmap(lambda key: start_sampling(key, hmc(), regression()[0], **options()))(jax.random.split(key()))

    def test_of_the_thread(self) -> None:
        def broken(draws: Draws) -> bool:
            raise RuntimeError(f"a bug in the rule at {draws.num_draws}")

        run = begin(stop=broken)
        for ask in (run.result, run.abort, run.result):
            with pytest.raises(RuntimeError, match="a bug in the rule at 100"):
                ask()
        assert run.draws().num_draws == 100  # what there is can be looked at
        start = start_sampling(key(), hmc(), regression(float("nan"))[0], **options())
        for ask in (start.result, start.draws):
            with pytest.raises(InferenceError, match="NONFINITE_INIT"):
                ask()

    def test_flags_are_raised_where_the_result_is_asked_for(self) -> None:
        target = Target(lambda x: jnp.where(x[0] > 1.0, jnp.inf, half_square(x)))
        settings = options(num_warmup=0, initial_position=jnp.zeros((3, 2)), num_samples=60)
        run = start_sampling(key(), random_walk(1.0), target, **settings)
        with pytest.raises(InferenceError, match="POSINF_LOG_WEIGHT") as caught:
            run.result()
        assert caught.value.result is run.draws()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert start_sampling(key(), random_walk(1.0), target, throw=False, **settings).result().status.any()


def test_double_precision_of_this_thread_holds_in_the_other(x64: None) -> None:
    target = Target(half_square)
    settings = options(num_warmup=5, num_samples=5, initial_position=jnp.zeros((3, 2), jnp.float64))
    draws = start_sampling(key(), hmc(num_steps=2), target, **settings).result(60)
    assert draws.samples.dtype == np.float64
    np.testing.assert_array_equal(draws.samples, sample(key(), hmc(num_steps=2), target, **settings).samples)
