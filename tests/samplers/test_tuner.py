"""Tuners: one of one's own, combined kernels tuned part by part, and chains that are left out.

Planted bugs that must be caught: a step that no chain made counted as one where all was rejected
(`test_a_transition_of_no_chain_...`), parts that learn from each other's rates or sites
(`test_a_cycle_is_tuned_part_by_part`), a failed chain in a sum (`test_a_failed_chain_...`).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from probinf.core._status import is_fatal
from probinf.core._target import Target
from probinf.samplers._combine import Cycle, Mixture, TunableRepeated, cycle, mixture, repeat
from probinf.samplers._combined_tuner import CombinedTuner, parts_of
from probinf.samplers._find_tuner import find_tuner
from probinf.samplers._hmc import hmc
from probinf.samplers._initial import init_chains
from probinf.samplers._mhg import MHGInfo, MHGState
from probinf.samplers._nuts import nuts
from probinf.samplers._on_sites import on_sites
from probinf.samplers._random_walk import RandomWalk, random_walk
from probinf.samplers._sample import sample
from probinf.samplers._stan_tuner import stan_tuner
from probinf.samplers._tuner import HasTuner, Transition, Tuner, pooled_mean
from probinf.samplers._warmup import prepare_warmup, warmup
from tests._compilations import COMPILED

SCALES = jnp.array([0.1, 1.0, 10.0])
WIDE = 30.0


def log_density(x: Any) -> Any:
    return -0.5 * jnp.sum((x["a"] / SCALES) ** 2) - 0.5 * jnp.sum((x["b"] / WIDE) ** 2)


TARGET = Target(log_density)


def starts(num_chains: int) -> dict[str, Array]:
    return {"a": jnp.full((num_chains, 3), 0.1), "b": jnp.ones((num_chains, 2))}


class Still(eqx.Module):
    """Stays where it is, and has a number that nothing may tune."""

    number: Array

    def init(self, key: Any, target: Target, position: Any) -> MHGState:
        return random_walk().init(key, target, position)

    def step(self, key: Any, target: Target, state: MHGState) -> tuple[MHGState, MHGInfo]:
        info = random_walk().step(key, target, state)[1]
        return state, info._replace(acceptance_rate=jnp.zeros_like(info.acceptance_rate), status=jnp.uint32(0))


class HalfState(NamedTuple):
    log_scale: Array
    due: Array


class Half(eqx.Module):
    """The example of `_tuner`."""

    walk: RandomWalk

    def begin(self, positions: Any) -> HalfState:
        del positions
        return HalfState(jnp.log(self.walk.scale), jnp.zeros((), bool))

    def prepare(self, key: Any, trial: Any, state: HalfState) -> HalfState:
        del key, trial
        return state

    def kernel(self, state: HalfState) -> RandomWalk:
        return eqx.tree_at(lambda walk: walk.scale, self.walk, jnp.exp(state.log_scale))

    def update(self, transition: Transition, state: HalfState) -> HalfState:
        rate = pooled_mean(transition.infos.acceptance_rate, transition.use)
        step = transition.index.astype(rate.dtype) + 1
        return HalfState(state.log_scale + (rate - 0.5) / jnp.sqrt(step), state.due)

    def result(self, state: HalfState) -> RandomWalk:
        return self.kernel(state)


class HalfWalk(RandomWalk):
    def tuner(self, num_steps: int, target_accept: float | None) -> Half:
        del num_steps, target_accept
        return Half(self)


def test_a_tuner_of_ones_own() -> None:
    """On N(0, 1) a random walk of scale s is accepted with probability 2/pi arctan(2/s), which is 1/2 at s = 2.

    The last gains are 1/sqrt(1000), so the scale has a relative standard deviation of about .03.
    """
    kernel = HalfWalk(jnp.float32(0.1))
    assert isinstance(kernel, HasTuner)
    assert isinstance(kernel.tuner(1, None), Tuner)
    target = Target(lambda x: -0.5 * jnp.sum(x * x))
    tuned = warmup(jax.random.key(0), kernel, target, num_chains=8, initial_position=jnp.zeros((8, 1)))
    assert float(tuned.scale) == pytest.approx(2.0, rel=0.25)


def test_pooled_mean_counts_what_is_used() -> None:
    values, use = jnp.array([0.5, jnp.nan, 0.25, jnp.nan]), jnp.array([True, True, True, False])
    assert float(pooled_mean(values, use)) == pytest.approx(0.25)
    assert float(pooled_mean(values, jnp.zeros(4, bool))) == 0


def test_a_cycle_is_tuned_part_by_part() -> None:
    """Scales within a fifth (8 chains x 200 draws and more), rates near those that each part aims at."""
    still = Still(jnp.float32(7.0))
    kernel = cycle(on_sites(nuts(), ["a"]), on_sites(random_walk(), ["b"]), still)
    draws = sample(
        jax.random.key(0), kernel, TARGET, num_samples=200, num_warmup=600, num_chains=8, initial_position=starts(8)
    )
    tuned = draws.kernel
    assert isinstance(tuned, Cycle)
    assert jax.tree.structure(tuned.kernels[2]) == jax.tree.structure(still)
    assert float(tuned.kernels[2].number) == 7
    np.testing.assert_allclose(tuned.kernels[0].kernel.factor, SCALES, rtol=0.2)
    np.testing.assert_allclose(np.asarray(tuned.kernels[1].kernel.factor), WIDE, rtol=0.3)
    rates = np.asarray(draws.info["acceptance_rates"]).mean(axis=(0, 1))
    assert 0.65 < rates[0] < 0.95
    assert 0.15 < rates[1] < 0.4


@pytest.mark.slow
def test_a_mixture_of_repeats_is_tuned() -> None:
    kernel = mixture([repeat(hmc(0.1, 4), 2), on_sites(random_walk(), ["b"])], [0.75, 0.25])
    tuned = warmup(jax.random.key(1), kernel, TARGET, num_steps=600, num_chains=8, initial_position=starts(8))
    assert isinstance(tuned, Mixture)
    assert isinstance(tuned.kernels[0], TunableRepeated)
    np.testing.assert_array_equal(tuned.probabilities, kernel.probabilities)
    np.testing.assert_allclose(np.asarray(tuned.kernels[0].factor), [*SCALES, WIDE, WIDE], rtol=0.25)
    np.testing.assert_allclose(tuned.kernels[1].kernel.factor, WIDE, rtol=0.3)


def test_a_repeated_combination_is_tuned_and_other_lengths_compile_nothing() -> None:
    kernel = repeat(cycle(on_sites(random_walk(), ["a"]), on_sites(random_walk(), ["b"])), 2)

    def run(num_steps: int, target_accept: float | None) -> Any:
        return warmup(
            jax.random.key(2), kernel, TARGET, num_steps=num_steps, num_chains=8, initial_position=starts(8),
            target_accept=target_accept,
        )  # fmt: skip

    tuned = run(500, None)
    np.testing.assert_allclose(np.asarray(tuned.kernel.kernels[1].kernel.factor), WIDE, rtol=0.3)
    before = len(COMPILED)
    other = run(30, 0.4)
    assert len(COMPILED) == before
    assert float(other.kernel.kernels[1].kernel.scale) != float(tuned.kernel.kernels[1].kernel.scale)


def test_a_transition_of_no_chain_teaches_nothing() -> None:
    tuner = stan_tuner(hmc(), 100, None)
    positions = jnp.ones((2, 3))
    state = tuner.begin(positions)

    class Rate(NamedTuple):
        acceptance_rate: Array

    def after(use: bool) -> Any:
        mask = jnp.full(2, use)
        made = Transition(jnp.int32(40), Rate(jnp.ones(2)), positions, positions, mask, jnp.ones((), bool))
        return tuner.update(made, state)

    for old, new in zip(jax.tree.leaves(state.averaging), jax.tree.leaves(after(False).averaging), strict=True):
        np.testing.assert_array_equal(old, new)
    assert int(after(False).moments.num) == 0
    assert int(after(True).moments.num) == 2
    assert float(after(True).averaging.num) == 1


@pytest.mark.slow
def test_a_failed_chain_is_left_out_of_what_parts_learn() -> None:
    kernel = cycle(on_sites(random_walk(), ["a"]), on_sites(random_walk(), ["b"]))
    target = Target(lambda x: jnp.where(x["b"][0] > 500, jnp.nan, log_density(x)))
    positions = jax.tree.map(lambda a: a.at[2].set(1000.0), starts(3))

    def learned(num_chains: int) -> Any:
        chains = init_chains(jax.random.key(0), kernel, target, jax.tree.map(lambda a: a[:num_chains], positions))
        step, state = prepare_warmup(kernel, target, chains, 1000, None, None)
        run = eqx.filter_jit(step)
        for index in range(3):
            state, _ = run(jax.random.key(10 + index), jnp.int32(index + 75), state)
        return state

    whole, without = learned(3), learned(2)
    assert np.asarray(is_fatal(whole.chains.status)).tolist() == [False, False, True]
    for one, two in zip(jax.tree.leaves(whole.learned), jax.tree.leaves(without.learned), strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_has_nothing_to_tune_is_told_by_warmup_and_run_by_sample() -> None:
    still = Still(jnp.float32(7.0))
    for kernel in (still, cycle(still, still), on_sites(still, ["a"]), RandomWalk):
        assert find_tuner(kernel, 10, None) is None
        with pytest.raises(TypeError, match="nothing to tune"):
            warmup(jax.random.key(0), kernel, TARGET, initial_position=starts(4))
    draws = sample(jax.random.key(0), still, TARGET, num_samples=2, num_warmup=3, num_chains=2,
                   initial_position=starts(2))  # fmt: skip
    np.testing.assert_array_equal(np.asarray(draws.samples["b"]), 1.0)


def test_parts_with_nothing_to_tune_have_no_tuner() -> None:
    kernel = cycle(Still(jnp.float32(7.0)), random_walk())
    tuner = find_tuner(kernel, 10, None)
    assert isinstance(tuner, CombinedTuner)
    assert [part is None for part in tuner.tuners] == [True, False]
    assert parts_of(kernel) == kernel.kernels
