"""Runs that end by a rule: `converged`, functions of the draws, and when they are asked.

Planted bugs that these tests catch (each was tried by editing the code): the tail ESS left out; NaN counted as
fulfilled; parameters that never change keep a run from stopping; "reached" told of a run that only ended.

Diagnostics of fixed draws, so nothing here can fail by chance.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import Draws, Moments
from probinf.samplers import _draw, converged, hmc, sample
from probinf.samplers._stopping import next_look
from tests._posteriors import regression

RNG = np.random.default_rng(0)
GOOD = RNG.gamma(2.0, size=(4, 300))  # ESS about 1200, sd 1.4
SHIFTED = GOOD + np.array([0.0, 0, 0, 1])[:, None]


def of(**samples: Any) -> Draws:
    return Draws(samples, {}, np.zeros(4, np.uint32))


def heavy() -> np.ndarray:
    """Each chain has its own spread: the bulk is fine and the tails are not."""
    sticky = np.repeat(RNG.gamma(2.0, size=(4, 6)), 50, axis=1)
    return GOOD + np.where(RNG.random((4, 300)) < 0.5, sticky * 3, 0)


class TestConverged:
    def test_each_condition(self) -> None:
        table = of(x=GOOD).summary()
        ess, mcse = min(table["ess_bulk"][0], table["ess_tail"][0]), table["mcse"][0]
        assert converged()(of(x=GOOD))
        assert converged(ess=ess)(of(x=GOOD))
        assert not converged(ess=ess * 1.001)(of(x=GOOD))
        assert converged(mcse=mcse)(of(x=GOOD))
        assert not converged(mcse=mcse * 0.999)(of(x=GOOD))
        assert not converged(ess=None)(of(x=SHIFTED))
        assert converged(r_hat=None, ess=None, mcse=1.0)(of(x=SHIFTED))

    def test_the_worst_parameter_decides(self) -> None:
        assert not converged()(of(x=GOOD, y=np.stack([GOOD, SHIFTED], -1)))
        both = of(x=GOOD, y=np.stack([GOOD, SHIFTED], -1))
        assert converged(names=["x", "y[0]"])(both)
        assert not converged(names=["x", "y"])(both)

    def test_tails_count(self) -> None:
        draws = of(x=heavy())
        table = draws.summary()
        bulk, tail = table["ess_bulk"][0], table["ess_tail"][0]
        assert tail < 0.8 * bulk
        assert not converged(r_hat=None, ess=(bulk + tail) / 2)(draws)

    @pytest.mark.parametrize("bad", ["nan", "stuck", "few"])
    def test_what_cannot_be_told_is_not_fulfilled(self, bad: str) -> None:
        x = GOOD[:, :3].copy() if bad == "few" else GOOD.copy()
        if bad == "nan":
            x[2, 7] = np.nan
        elif bad == "stuck":
            x[2] = 1.5
        y = GOOD[:, : x.shape[1]]
        for rule in (converged(), converged(None, None, 10.0), converged(r_hat=10.0, ess=None)):
            assert not rule(of(x=x, y=y))

    def test_what_never_changes_is_left_out(self) -> None:
        assert converged()(of(x=GOOD, one=np.full((4, 300), 0.1)))
        assert not converged()(of(one=np.full((4, 300), 0.1)))  # nothing is left
        assert not converged()(of(x=GOOD, each=np.repeat(np.arange(4.0)[:, None], 300, 1)))

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="no condition"):
            converged(None, None)
        wrong: list[dict[str, Any]] = [{"r_hat": 1.0}, {"ess": 0}, {"mcse": -1.0}, {"mcse": float("nan")}]
        for changes in wrong:
            with pytest.raises(ValueError, match=f"`{next(iter(changes))}` is .*; needed a number over"):
                converged(**changes)
        with pytest.raises(ValueError, match="`every` is 3; needed at least 4"):
            converged(every=3)
        with pytest.raises(ValueError, match="`names` of `converged` holds 'z', but the draws have x"):
            converged(names=["z"])(of(x=GOOD))
        assert repr(converged(mcse=0.1, every=50)) == "converged(r_hat=1.01, ess=400, mcse=0.1, every=50)"


def test_looks() -> None:
    looks = [100]
    while looks[-1] < 4000:
        looks.append(next_look(looks[-1], 100))
    assert looks == [100, 200, 300, 400, 500, 600, 800, 1000, 1200, 1500, 1800, 2200, 2700, 3300, 4000]
    for done in range(4000):  # wherever a run stands, it looks next where a run left alone would
        assert next_look(done, 100) == next(look for look in looks if look > done)


def start(num_chains: int = 4) -> Any:
    return jnp.asarray(np.random.default_rng(5).normal(size=(num_chains, 3)), jnp.float32)


def run(stop: Any = None, num_samples: int = 2000, **options: Any) -> Draws:
    settings = {"num_chains": 4, "num_warmup": 0, "initial_position": start()} | options
    kernel, target = hmc(0.15, 5), regression()[0]
    return sample(jax.random.key(0), kernel, target, num_samples=num_samples, stop=stop, **settings)


@pytest.fixture(scope="module")
def whole() -> Draws:
    return run()


RULE = converged(r_hat=1.05, ess=500, every=50)


def prefix(draws: Draws, num: int) -> Draws:
    cut = jax.tree.map(lambda a: a[:, :num], (draws.samples, draws.info))
    return Draws(*cut, status=draws.status)


class TestSample:
    def test_it_stops_at_the_first_look_that_is_good_enough(self, whole: Draws) -> None:
        draws = run(RULE)
        num = draws.num_draws
        looks = [50]
        while looks[-1] < num:
            looks.append(next_look(looks[-1], 50))
        assert looks[-1] == num
        assert len(looks) > 2
        assert [RULE(prefix(whole, look)) for look in looks] == [False] * (len(looks) - 1) + [True]
        np.testing.assert_array_equal(draws.samples, whole.samples[:, :num])
        np.testing.assert_array_equal(draws.info["log_density"], whole.info["log_density"][:, :num])
        assert draws.attrs["stopped"] == {
            "rule": "converged(r_hat=1.05, ess=500, every=50)", "reached": True, "num_draws": num,
        }  # fmt: skip
        assert not draws.status.any()
        assert f"every=50): stopped after {num} draws a chain" in str(draws.summary())
        assert draws.summary()["r_hat"].max() <= 1.05

    def test_neither_clock_nor_resume_move_the_end(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = run(RULE)
        run(num_samples=plain.num_draws - 7, checkpoint=tmp_path)
        resumed = run(RULE, checkpoint=tmp_path)
        again = run(RULE, checkpoint=tmp_path)
        times, whole_run = iter(np.cumsum(RNG.exponential(0.2, 100_000))), _draw.run_steps
        with monkeypatch.context() as patch:
            patch.setattr(_draw, "run_steps", lambda *a, **k: whole_run(*a, **k, clock=lambda: float(next(times))))
            slow = run(RULE)
        for other in (resumed, again, slow):
            np.testing.assert_array_equal(other.samples, plain.samples)
            assert other.attrs["stopped"] == plain.attrs["stopped"]
        # A stopped run can go on: with a rule that asks for more, or with none.
        assert run(converged(ess=1000), checkpoint=tmp_path).num_draws > plain.num_draws
        assert run(checkpoint=tmp_path).num_draws == 2000

    def test_not_reached(self) -> None:
        draws = run(converged(ess=1e6), num_samples=120)
        assert draws.num_draws == 120
        assert not draws.status.any()
        assert draws.attrs["stopped"] == {
            "rule": "converged(r_hat=1.01, ess=1000000.0)",
            "reached": False,
            "num_draws": 120,
        }
        assert "not reached in 120 draws a chain" in str(draws.summary())
        assert "stopped" not in run(num_samples=5).attrs

    def test_the_last_draws_are_looked_at_too(self) -> None:
        draws = run(converged(ess=20, r_hat=None), num_samples=99)
        assert draws.attrs["stopped"]["reached"]

    def test_a_function_of_the_draws(self, whole: Draws) -> None:
        seen = []

        def enough(draws: Draws) -> bool:
            seen.append(draws)
            return draws.num_draws >= 300

        draws = run(enough)
        assert [one.num_draws for one in seen] == [100, 200, 300]
        assert draws.num_draws == 300
        assert draws.attrs["stopped"]["rule"].endswith("enough")
        np.testing.assert_array_equal(seen[1].samples, whole.samples[:, :200])
        np.testing.assert_array_equal(seen[1].state.position, whole.samples[:, 199])
        assert seen[1].attrs["thin"] == 1

    def test_rules_that_can_never_hold(self) -> None:
        with pytest.raises(ValueError, match=r"`stop` looks at the draws, which `collect=False` does not keep"):
            run(RULE, collect=False, reducer=Moments())
        with pytest.raises(ValueError, match="r_hat, which one chain does not have"):
            run(RULE, num_chains=1, initial_position=start(1))
        with pytest.raises(ValueError, match=r"holds 'beta', but the draws have x\[0\], x\[1\], x\[2\]"):
            run(converged(names=["beta"]))
        with pytest.raises(TypeError, match=r"`stop` is 3, but must be a rule such as `converged\(\)`"):
            _draw.check_stop(3, run(num_samples=1))
