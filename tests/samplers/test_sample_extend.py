"""`Draws.extend`: old and new draws, flags and counts that go on, what cannot be extended; trajectories cut short.

Planted bugs that these tests catch (each was tried by editing the code): first divergences counted from the seam; old
draws behind the new ones; an extension that compiles (a key taken out of three by its index).
"""

import copy
import pickle
import signal
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf.core import Draws, InferenceError, InferenceWarning, Moments, Status, Target
from probinf.samplers import _draw, _sample, converged, hmc, nuts, random_walk, sample
from tests._compilations import COMPILED
from tests._posteriors import half_square, regression, skewed_log_density


def key() -> Any:
    """The key of the first run, new each time: the checker of key reuse looks at objects."""
    return jax.random.key(0)


def other() -> Any:
    return jax.random.key(1)


def start(num_chains: int = 3) -> Any:
    rng = np.random.default_rng(0)
    shapes = {"a": (num_chains,), "b": (num_chains, 2)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def run(num_samples: int = 40, **options: Any) -> Draws:
    settings = {"num_warmup": 60, "num_chains": 3, "initial_position": start()} | options
    return sample(key(), hmc(num_steps=4), Target(skewed_log_density), num_samples=num_samples, **settings)


@pytest.fixture(scope="module")
def first() -> Draws:
    return run()


def same(one: Any, two: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, two)


class TestExtend:
    def test_the_new_draws_are_those_of_a_run_from_where_the_old_one_ended(self, first: Draws) -> None:
        more = first.extend(other(), num_samples=30)
        assert more.samples["b"].shape == (3, 70, 2)
        assert more.info["acceptance_rate"].shape == (3, 70)
        same(jax.tree.map(lambda a: a[:, :40], (more.samples, more.info)), (first.samples, first.info))
        position = first.state.position
        target = Target(skewed_log_density)
        options: dict[str, Any] = {"num_warmup": 0, "num_chains": 3, "initial_position": position}
        alone = sample(other(), first.kernel, target, num_samples=30, **options)
        for name in ("a", "b"):
            new = more.samples[name][:, 40:]
            # The first gradient is that of another program: it may be rounded otherwise.
            np.testing.assert_allclose(new[:, :3], alone.samples[name][:, :3], rtol=1e-3, atol=1e-4)
            np.testing.assert_array_equal(more.state.position[name], more.samples[name][:, -1])
        assert more.kernel is first.kernel
        assert more.attrs["extended_at"] == [40]
        assert more.attrs["sampling_seconds"] > first.attrs["sampling_seconds"]
        assert first.num_draws == 40
        assert first.attrs.get("extended_at") is None

    def test_again_and_nothing_is_compiled(self, first: Draws) -> None:
        second, third = other(), jax.random.key(2)
        first.extend(other(), num_samples=3)
        before = len(COMPILED)
        more = first.extend(second, num_samples=300).extend(third, num_samples=5)
        assert len(COMPILED) == before
        assert more.num_draws == 345
        assert more.attrs["extended_at"] == [40, 340]
        same(more.samples["a"][:, 40:43], first.extend(other(), num_samples=3).samples["a"][:, 40:])

    def test_the_first_extension_compiles_nothing_either(self) -> None:
        draws = run(6, num_chains=2, initial_position=start(2))
        new = other()
        before = len(COMPILED)
        draws.extend(new, num_samples=5)
        assert len(COMPILED) == before

    def test_a_checkpoint_of_its_own(self, first: Draws, tmp_path: Path) -> None:
        plain = first.extend(other(), num_samples=30)
        first.extend(other(), num_samples=12, checkpoint=tmp_path)
        same(first.extend(other(), num_samples=30, checkpoint=tmp_path).samples, plain.samples)
        with pytest.raises(ValueError, match="another run"):
            plain.extend(jax.random.key(2), num_samples=40, checkpoint=tmp_path)
        with pytest.raises(ValueError, match="another run"):
            run(50, checkpoint=tmp_path / "a").extend(other(), num_samples=50, checkpoint=tmp_path / "a")

    def test_with_a_rule(self, first: Draws) -> None:
        good = converged(r_hat=None, ess=300, every=50)
        more = first.extend(other(), num_samples=2000, stop=good)
        assert 40 < more.num_draws < 2000
        assert more.num_draws % 50 == 0  # of all draws
        assert more.attrs["stopped"]["num_draws"] == more.num_draws
        assert good(more)
        enough = more.extend(jax.random.key(2), num_samples=2000, stop=good)
        assert enough.num_draws == more.num_draws  # nothing more was needed
        assert "stopped" not in enough.extend(jax.random.key(3), num_samples=2).attrs

    def test_reducers_go_on(self) -> None:
        more = run(reducer=Moments()).extend(other(), num_samples=30)
        moments = more.attrs["reduced"]
        assert int(moments.num_records) == 70
        np.testing.assert_allclose(moments.mean["b"], more.samples["b"].mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments.variance["b"], more.samples["b"].var(1, ddof=1), rtol=1e-4)
        without = run(reducer=Moments(), collect=False).extend(other(), num_samples=30)
        assert without.num_draws == 0
        same(without.attrs["reduced"], moments)


def half_nan(x: Any) -> Any:
    return jnp.where(x[0] > 1.8, jnp.nan, half_square(x))


def test_divergences_go_on() -> None:
    options: dict[str, Any] = {"num_warmup": 0, "num_chains": 2, "initial_position": jnp.zeros((2, 2))}
    draws = sample(key(), hmc(0.3, 4), Target(half_nan), num_samples=2, throw=False, **options)
    assert not draws.status.any()
    for new in jax.random.split(other(), 3):
        with pytest.warns(InferenceWarning) as caught:
            draws = draws.extend(new, num_samples=40)
        divergent = draws.info["divergent"]
        first = int(np.argmax(divergent.any(0)))
        words = f"{divergent.sum()} of {divergent.size} draws ({100 * divergent.mean():.2g} %), first at draw {first})"
        assert words in str(caught[0].message)
        assert "`extend` finished with flags" in str(caught[0].message)
        np.testing.assert_array_equal(draws.status != 0, divergent.any(1))
        assert f"first at draw {first}" in str(draws.summary())


def interrupting(after: int) -> Any:
    """`run_steps` with a clock that presses Ctrl-C, once it was read `after` times."""
    readings, whole = [], _draw.run_steps

    def clock() -> float:
        readings.append(0)
        if len(readings) == after:
            signal.raise_signal(signal.SIGINT)
        return 0.1 * len(readings)

    return lambda *args, **options: whole(*args, **options, clock=clock)


def interrupted(monkeypatch: pytest.MonkeyPatch, module: Any, **options: Any) -> Draws:
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)
        patch.setattr(module, "run_steps", interrupting(8))
        return run(2000, **options)


class TestInterrupted:
    def test_among_the_draws_it_is_whole_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        draws = interrupted(monkeypatch, _draw)
        num = draws.num_draws
        assert 0 < num < 2000
        assert np.all(draws.status == int(Status.INTERRUPTED))
        more = draws.extend(other(), num_samples=25)
        assert more.num_draws == num + 25
        assert not more.status.any()
        same(more.samples["a"][:, :num], run(num).samples["a"])
        with monkeypatch.context() as patch:
            patch.setattr(_draw, "run_steps", interrupting(8))
            with pytest.warns(InferenceWarning, match="INTERRUPTED"):
                again = more.extend(jax.random.key(2), num_samples=2000)
        assert num + 25 < again.num_draws < num + 2025
        assert np.all(again.status == int(Status.INTERRUPTED))

    def test_with_a_rule_it_tells_that_nothing_was_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        draws = interrupted(monkeypatch, _draw, stop=converged(ess=1e6))
        assert draws.attrs["stopped"]["reached"] is False
        assert np.all(draws.status == int(Status.INTERRUPTED))

    def test_in_warm_up_it_cannot_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        draws = interrupted(monkeypatch, _sample, num_warmup=3000)
        assert np.all(draws.status == int(Status.INTERRUPTED))
        with pytest.raises(ValueError, match=r"interrupted in its warm-up.* call `sample` again"):
            draws.extend(other(), num_samples=10)


class TestRefused:
    def test_draws_that_know_no_target(self, first: Draws, tmp_path: Path) -> None:
        loaded = Draws.load(first.save(tmp_path / "draws.nc"))
        made = Draws({"x": np.zeros((2, 5))}, {}, np.zeros(2, np.uint32))
        for draws in (loaded, made, pickle.loads(pickle.dumps(first)), copy.copy(first)):
            with pytest.raises(ValueError, match=r"cannot be extended.*Extend before saving, or call `sample`"):
                draws.extend(other(), num_samples=10)
        same(pickle.loads(pickle.dumps(first)).samples, first.samples)

    def test_a_key_is_used_once(self, first: Draws) -> None:
        with pytest.raises(ValueError, match="`key` is that of an earlier part"):
            first.extend(key(), num_samples=10)
        more = first.extend(other(), num_samples=1)
        for used in (key(), other(), jax.random.key_data(other())):
            with pytest.raises(ValueError, match="`key` is that of an earlier part"):
                more.extend(used, num_samples=10)

    def test_bad_arguments(self, first: Draws) -> None:
        with pytest.raises(ValueError, match="`num_samples` is 0; needed at least 1"):
            first.extend(other(), num_samples=0)
        with pytest.raises(TypeError, match="`extend` runs a loop on the host"):
            jax.vmap(lambda key: first.extend(key, num_samples=3).samples)(jax.random.split(other()))

    def test_a_fatal_chain(self) -> None:
        target = Target(lambda x: jnp.where(x[0] > 1.0, jnp.inf, half_square(x)))
        options: dict[str, Any] = {"num_warmup": 0, "num_chains": 2, "initial_position": jnp.zeros((2, 2))}
        draws = sample(key(), random_walk(1.0), target, num_samples=60, throw=False, **options)
        with pytest.raises(InferenceError, match=r"`extend` failed.\nPOSINF_LOG_WEIGHT") as caught:
            draws.extend(other(), num_samples=10)
        assert caught.value.result is draws
        more = draws.extend(other(), num_samples=10, throw=False)
        assert np.all(more.samples[:, -11:] == more.samples[:, -1:])


@pytest.mark.slow
def test_trajectories_that_were_cut_short_are_told(tmp_path: Path) -> None:
    target, _, _ = regression()
    draws = sample(key(), nuts(0.001, max_depth=3), target, num_samples=20, num_warmup=0, num_chains=2, thin=2)
    np.testing.assert_array_equal(draws.info["reached_max_depth"], True)
    assert "40 of 40 draws come from trajectories that reached max_depth = 3" in str(draws.summary())
    assert draws.to_arviz()["sample_stats"]["reached_max_treedepth"].values.all()
    loaded = Draws.load(draws.save(tmp_path / "draws.nc"))
    assert "40 of 40 draws come from trajectories that reached max_depth:" in str(loaded.summary())
    short = sample(key(), nuts(0.15), target, num_samples=20, num_warmup=0, num_chains=2)
    assert not short.info["reached_max_depth"].any()
    assert "max_depth" not in str(short.summary())
