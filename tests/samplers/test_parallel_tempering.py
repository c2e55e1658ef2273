"""Parallel tempering: exact laws on finite spaces, round trips, evidence and weights of modes with known answers.

Planted bugs that must be caught: the exchange ratio upside down, every exchange accepted, the temperatures of the
target left out of the ratio, exchanges that move the positions but not what is cached of them.

The finite tests have no Monte Carlo error. The others compare means of independent chains with exact values: |z| > 6.5
for at most 12 numbers a test, with 40 chains or more, has probability below 1e-6.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import norm

from probinf.core import choose, evaluate
from probinf.core._choices import categorical
from probinf.core._status import Status, is_fatal
from probinf.core._target import Target
from probinf.samplers import _parallel_tempering as module
from probinf.samplers._hmc import hmc
from probinf.samplers._mhg import MHGInfo, MHGState, mhg, relocate
from probinf.samplers._parallel_tempering import ParallelTempering, parallel_tempering
from probinf.samplers._random_walk import random_walk
from probinf.samplers._sample import sample
from probinf.samplers._tempering_ladder import tuned_inverse_temperatures
from probinf.samplers._tempering_records import round_trips, tempering_evidence
from probinf.samplers._warmup import warmup
from tests._compilations import COMPILED
from tests.samplers._trans_dimensional import balance_errors, transition_matrix, z_scores

WIDE = 6.5

# --- exact laws on a finite space ---

PRIOR = np.array([0.5, 0.3, 0.2])
LIKELIHOOD = np.array([0.2, 1.7, 3.0])
PROPOSALS = np.array([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4], [0.5, 0.25, 0.25]])
BETAS = np.array([1.0, 0.4, 0.0])


class Candidate(eqx.Module):
    matrix: Any

    def sample(self, key: Any, target: Any, state: Any) -> Any:
        return choose(key, categorical, self.matrix[state.position][None])[0]

    def log_prob(self, target: Any, state: Any, v: Any) -> Any:
        return jnp.log(self.matrix[state.position, v])


def exchange(target: Any, state: Any, v: Any) -> Any:
    return relocate(target, state, v), state.position, jnp.zeros(())


def finite_target(*, prior_draws: bool) -> Target:
    def draw(key: Any) -> Any:
        return choose(key, categorical, jnp.asarray(PRIOR)[None])[0]

    prior, likelihood = jnp.log(jnp.asarray(PRIOR)), jnp.log(jnp.asarray(LIKELIHOOD))
    return Target(lambda x: likelihood[x], lambda x: prior[x], draw if prior_draws else None)


class Replicas(eqx.Module):
    """The kernel on the product space, whose positions are those of all replicas; `start` is the count of steps."""

    kernel: ParallelTempering
    start: int = eqx.field(static=True, default=0)

    def init(self, key: Any, target: Any, positions: Any) -> Any:
        state = self.kernel.init_replicas(key, target, positions)
        return state._replace(position=state.points.position, num_steps=jnp.asarray(self.start, jnp.int32))

    def step(self, key: Any, target: Any, state: Any) -> Any:
        new, info = self.kernel.step(key, target, state)
        return new._replace(position=new.points.position), info


def product_errors(target: Target, start: int, power: float = 1.0) -> tuple[float, float, float]:
    """Errors of rows, invariance and balance on the product of the tempered laws."""
    kernel = parallel_tempering(mhg(Candidate(jnp.asarray(PROPOSALS)), exchange), BETAS)
    states = [jnp.asarray(s, jnp.int32) for s in np.ndindex(3, 3, 3)]
    laws = [PRIOR * LIKELIHOOD ** (power * beta) for beta in BETAS]
    density = np.array([math.prod(law[i] for law, i in zip(laws, s, strict=True)) for s in np.ndindex(3, 3, 3)])
    return balance_errors(transition_matrix(Replicas(kernel, start), target, states), density)


@pytest.mark.parametrize(("start", "prior_draws"), [(0, False), (1, True)])
def test_the_product_of_the_tempered_laws_is_invariant(start: int, prior_draws: bool, x64: None) -> None:
    rows, invariance, _ = product_errors(finite_target(prior_draws=prior_draws), start)
    assert max(rows, invariance) < 1e-12


def test_a_tempered_target_stays_at_its_temperature(x64: None) -> None:
    target = finite_target(prior_draws=True).at_temperature(0.3)
    rows, invariance, _ = product_errors(target, 0, power=0.3)
    assert max(rows, invariance) < 1e-12


def _plant_upside_down(patch: pytest.MonkeyPatch) -> None:
    ratios = module._swap_ratios
    patch.setattr(module, "_swap_ratios", lambda b, ll: (-ratios(b, ll)[0], ratios(b, ll)[1]))


def _plant_accept_all(patch: pytest.MonkeyPatch) -> None:
    ratios = module._swap_ratios
    patch.setattr(module, "_swap_ratios", lambda b, ll: (0 * ratios(b, ll)[0], ratios(b, ll)[1]))


@pytest.mark.parametrize("plant", [_plant_upside_down, _plant_accept_all])
def test_planted_bugs_are_caught(plant: Any, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    two = parallel_tempering(mhg(Candidate(jnp.asarray(PROPOSALS)), exchange), BETAS[:2])
    laws = [PRIOR * LIKELIHOOD**beta for beta in BETAS[:2]]
    states = [jnp.asarray(s, jnp.int32) for s in np.ndindex(3, 3)]
    density = np.array([laws[0][i] * laws[1][j] for i, j in np.ndindex(3, 3)])
    target = finite_target(prior_draws=False)
    assert balance_errors(transition_matrix(Replicas(two), target, states), density)[1] > 1e-3


# --- a skewed target that can be drawn from at every temperature ---

SHAPE, MORE, RATE = 1.5, 9.0, 4.0


def log_prior(x: Any) -> Any:
    """The log of a gamma variable."""
    return SHAPE * x - jnp.exp(x) - math.lgamma(SHAPE)


def log_likelihood(x: Any) -> Any:
    return MORE * x - RATE * jnp.exp(x)


def draw_prior(key: Any) -> Any:
    return jnp.log(jax.random.gamma(key, SHAPE))


GAMMA = Target(log_likelihood, log_prior, draw_prior)
LOG_EVIDENCE = float(gammaln(SHAPE + MORE) - gammaln(SHAPE) - (SHAPE + MORE) * np.log1p(RATE))
LADDER = np.array([1.0, 0.5, 0.2, 0.06, 0.015, 0.0])


class Exact(eqx.Module):
    """Independent draws of every tempered law: machines then do a Markov walk, whose rates are known."""

    def init(self, key: Any, target: Any, position: Any) -> Any:
        return MHGState(evaluate(target, jnp.asarray(position), gradient=False), jnp.uint32(0))

    def step(self, key: Any, target: Any, state: Any) -> Any:
        beta = target.inverse_temperature
        gamma = jax.random.gamma(key, SHAPE + beta * MORE) / (1 + beta * RATE)
        new = relocate(target, state, jnp.log(gamma))
        one, no = jnp.ones(()), jnp.asarray(False)
        return new, MHGInfo(one, ~no, one, 0 * one, no, jnp.uint32(0))


@eqx.filter_jit
def _chains(key: Any, kernel: Any, target: Target, positions: Any, num_steps: int) -> Any:
    num = jax.tree.leaves(positions)[0].shape[0]
    key_init, key_run = jax.random.split(key)
    states = jax.vmap(lambda k, x: kernel.init(k, target, x))(jax.random.split(key_init, num), positions)

    def body(states: Any, i: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key_run, i), num)
        states, info = jax.vmap(lambda k, s: kernel.step(k, target, s))(keys, states)
        return states, (info, states.position)

    return jax.lax.scan(body, states, jnp.arange(num_steps))


def run(key: Any, kernel: Any, target: Target, positions: Any, num_steps: int) -> Any:
    """The last states, and infos and positions of all chains, [chains, steps, ...]."""
    states, (infos, seen) = _chains(key, kernel, target, positions, num_steps)
    return states, jax.tree.map(lambda a: np.swapaxes(np.asarray(a), 0, 1), infos), np.asarray(seen)


NUM_CHAINS, NUM_STEPS = 64, 1000


@pytest.fixture(scope="module")
def exact_run() -> Any:
    kernel = parallel_tempering(Exact(), LADDER)
    return run(jax.random.key(5), kernel, GAMMA, jnp.zeros(NUM_CHAINS), NUM_STEPS)


def test_round_trips_are_as_many_as_theory_says(exact_run: Any) -> None:
    _, infos, _ = exact_run
    rejected = 1 - infos.swap_rates.mean(axis=(0, 1), dtype=np.float64)
    expected = 1 / (2 + 2 * np.sum(rejected / (1 - rejected)))
    rates = round_trips(infos.machines) / NUM_STEPS
    error = rates.std(ddof=1) / math.sqrt(NUM_CHAINS)
    # Machines start outside of their stationary law: at most one trip each is gained or lost, R / NUM_STEPS in all.
    assert abs(rates.mean() - expected) < WIDE * error + LADDER.size / NUM_STEPS
    assert abs(rates.mean() - expected) < 0.1 * expected


def test_swap_rates_are_those_of_independent_draws(exact_run: Any) -> None:
    """By quadrature over both positions."""
    _, infos, _ = exact_run
    grid = np.linspace(-12, 4, 1500)
    logs = MORE * grid - RATE * np.exp(grid)
    laws = [np.exp(SHAPE * grid - np.exp(grid) + beta * logs) for beta in LADDER]
    laws = [law / law.sum() for law in laws]
    expected = []
    for r in range(LADDER.size - 1):
        ratio = np.exp(np.minimum((LADDER[r] - LADDER[r + 1]) * (logs[None, :] - logs[:, None]), 0))
        expected.append(laws[r] @ ratio @ laws[r + 1])
    rates = np.swapaxes(infos.swap_rates, 0, 1)[5:]
    assert np.abs(z_scores(rates, expected)).max() < WIDE


def test_evidence_is_exact_and_within_its_bounds(exact_run: Any) -> None:
    _, infos, _ = exact_run
    found = tempering_evidence(infos.log_likelihood, LADDER)
    assert abs(found.log_evidence - LOG_EVIDENCE) < WIDE * found.standard_error
    assert 0.001 < found.standard_error < 0.02
    assert found.lower < LOG_EVIDENCE < found.upper
    # The stated error is the spread of independent runs.
    single = [tempering_evidence(logs, LADDER) for logs in infos.log_likelihood]
    spread = np.std([e.log_evidence for e in single], ddof=1)
    stated = math.sqrt(np.mean([e.standard_error**2 for e in single]))
    assert 0.6 < stated / spread < 1.6


# --- kernels that have to walk ---

NEAR, FAR, SD, SPREAD = -2.0, 3.0, 0.3, 5.0


def modes(x: Any) -> Any:
    """Two narrow modes far apart, .3 and .7 of the likelihood."""

    def log_normal(centre: float) -> Any:
        return jnp.sum(-0.5 * ((x - centre) / SD) ** 2) - 2 * math.log(SD * math.sqrt(2 * math.pi))

    return jnp.logaddexp(math.log(0.3) + log_normal(NEAR), math.log(0.7) + log_normal(FAR))


def wide_prior(x: Any) -> Any:
    return jnp.sum(-0.5 * (x / SPREAD) ** 2) - 2 * math.log(SPREAD * math.sqrt(2 * math.pi))


MODES = Target(modes, wide_prior, lambda key: SPREAD * jax.random.normal(key, (2,)))
EACH = [math.log(w) + 2 * norm.logpdf(c, 0, math.hypot(SD, SPREAD)) for w, c in ((0.3, NEAR), (0.7, FAR))]
MODE_EVIDENCE = float(np.logaddexp(*EACH))
MODE_WEIGHT = float(np.exp(EACH[1] - MODE_EVIDENCE))
SEVEN = np.array([1.0, 0.4, 0.15, 0.05, 0.015, 0.004, 0.0])
SCALES = [0.4, 0.6, 1.0, 1.6, 3.0, 5.0, 5.0]


def test_weights_of_far_modes_and_their_evidence(key: Any) -> None:
    kernel = parallel_tempering([random_walk(s) for s in SCALES], SEVEN)
    start = jnp.full((40, 2), NEAR)
    states, infos, seen = run(key, kernel, MODES, start, 4000)
    assert not np.any(np.asarray(states.status))
    far = seen[500:, :, 0] > 0.5
    assert np.abs(z_scores(far, MODE_WEIGHT)).max() < WIDE
    assert far.mean(0).std() < 0.2  # every chain has found both
    found = tempering_evidence(infos.log_likelihood[:, 500:], SEVEN)
    assert abs(found.log_evidence - MODE_EVIDENCE) < WIDE * found.standard_error
    assert np.all(np.isnan(infos.acceptance_rates[:, :, -1]))  # drawn from the prior
    assert np.all(infos.acceptance_rates[:, :, :-1] >= 0)
    np.testing.assert_array_equal(np.sort(infos.machines, axis=-1), np.broadcast_to(np.arange(7), (40, 4000, 7)))


@pytest.mark.slow
def test_sample_runs_it_thinned_and_keeps_every_replica(key: Any) -> None:
    kernel = parallel_tempering(hmc(0.3, 3), num_replicas=4)
    draws = sample(key, kernel, GAMMA, num_samples=30, num_warmup=0, num_chains=3, thin=2)
    assert draws.samples.shape == (3, 30)
    assert draws.info["log_likelihood"].shape == (3, 30, 4)
    assert draws.info["swap_rates"].shape == (3, 30, 3)
    np.testing.assert_allclose(
        draws.info["log_likelihood"][:, :, 0], log_likelihood(jnp.asarray(draws.samples)), rtol=1e-4
    )
    np.testing.assert_array_equal(draws.state.num_steps, 60)


# --- temperatures ---


@pytest.mark.slow
def test_tuning_evens_the_rates(exact_run: Any) -> None:
    _, infos, _ = exact_run
    betas = tuned_inverse_temperatures(LADDER, 1 - infos.swap_rates.mean(axis=(0, 1)))
    kernel = parallel_tempering(Exact(), LADDER).with_temperatures(betas)
    _, again, _ = run(jax.random.key(6), kernel, GAMMA, jnp.zeros(NUM_CHAINS), 500)
    before, after = (1 - i.swap_rates.mean(axis=(0, 1)) for i in (infos, again))
    assert after.max() - after.min() < 0.25 * (before.max() - before.min())
    assert after.sum() == pytest.approx(before.sum(), abs=0.15)  # the barrier does not depend on the ladder


@pytest.mark.slow
def test_warmup_tunes_temperatures_and_step_sizes(key: Any) -> None:
    kernel = parallel_tempering(random_walk(1.0), num_replicas=8)
    key_warmup, key_draws = jax.random.split(key)
    start = jnp.full((16, 2), NEAR)
    tuned = warmup(key_warmup, kernel, MODES, num_steps=1000, num_chains=16, initial_position=start)
    betas, scales = np.asarray(tuned.inverse_temperatures, np.float64), np.asarray(tuned.kernel.step_size)
    assert betas[0] == 1
    assert betas[-1] == 0
    assert np.all(np.diff(betas) < 0)
    assert scales.shape == (8,)
    # Step sizes are in units of the matrix, which has one for each temperature: the hot laws are wide.
    widths = scales[:-1] * np.asarray(tuned.kernel.factor)[:-1, 0]
    assert widths[-1] > 3 * widths[1]
    _, infos, _ = run(key_draws, tuned, MODES, start, 2000)
    # Chains of warm-up are few: what they learn differs from run to run by less than this.
    np.testing.assert_allclose(infos.acceptance_rates[:, 200:, :-1].mean(axis=(0, 1)), 0.234, atol=0.1)
    rejected = 1 - infos.swap_rates[:, 200:].mean(axis=(0, 1))
    assert rejected.max() - rejected.min() < 0.2


def test_warmup_of_kernels_with_nothing_to_tune_sets_temperatures(key: Any) -> None:
    kernel = parallel_tempering(Exact(), LADDER)
    tuned = warmup(key, kernel, GAMMA, num_steps=64, num_chains=8, initial_position=jnp.zeros(8))
    assert not np.array_equal(tuned.inverse_temperatures, kernel.inverse_temperatures)
    assert np.all(np.diff(np.asarray(tuned.inverse_temperatures, np.float64)) < 0)


@pytest.mark.slow
def test_sample_warms_it_up(key: Any) -> None:
    kernel = parallel_tempering(random_walk(1.0), num_replicas=4)
    draws = sample(key, kernel, GAMMA, num_samples=5, num_warmup=40, num_chains=4)
    tuned: Any = draws.kernel
    assert np.all(np.diff(np.asarray(tuned.inverse_temperatures, np.float64)) < 0)
    assert not np.array_equal(tuned.inverse_temperatures, kernel.inverse_temperatures)
    # Where the prior was drawn from, no kernel ran, and nothing was learned.
    scales = np.asarray(tuned.kernel.step_size)
    assert np.all(scales[:-1] != 1)
    assert np.all(np.isfinite(scales))


# --- faults and forms ---


def half_square(x: Any) -> Any:
    return -0.5 * x * x


class Edge(eqx.Module):
    """Normal up to 1, and `value` beyond."""

    value: Any

    def __call__(self, x: Any) -> Any:
        return jnp.where(x > 1, self.value, -4 * x * x)


def edge(value: float) -> Target:
    return Target(Edge(jnp.float32(value)), half_square, jax.random.normal)


def test_a_nan_likelihood_is_never_exchanged_and_flagged(key: Any) -> None:
    states, infos, seen = run(key, parallel_tempering(random_walk(1.0), BETAS), edge(np.nan), jnp.zeros(8), 60)
    assert seen.max() <= 1
    assert np.all(np.asarray(states.status) == int(Status.DIVERGENT))
    assert np.any(np.isnan(infos.log_likelihood[..., -1]))  # the prior goes there
    assert np.all(np.isfinite(infos.swap_rates))
    flagged = (infos.status & int(Status.DIVERGENT)) != 0
    np.testing.assert_array_equal(flagged, infos.divergent)
    # Where nothing was NaN nothing was flagged: a NaN is met in a proposal or at the hot end.
    assert not np.all(flagged)


def test_impossible_states_of_the_prior_are_no_fault(key: Any) -> None:
    states, infos, seen = run(key, parallel_tempering(random_walk(1.0), BETAS), edge(-np.inf), jnp.zeros(8), 60)
    assert seen.max() <= 1
    assert not np.any(np.asarray(states.status))
    assert np.any(infos.log_likelihood[..., -1] == -np.inf)


def test_an_infinite_likelihood_freezes_all_replicas(key: Any) -> None:
    kernel, target = parallel_tempering(random_walk(1.0), BETAS), edge(np.inf)
    states, infos, seen = run(key, kernel, target, jnp.zeros(8), 60)
    frozen = np.asarray(is_fatal(states.status))
    assert frozen.all()
    assert np.all(np.asarray(states.status) & int(Status.POSINF_LOG_WEIGHT))
    assert seen.max() <= 1
    assert np.all(np.isfinite(infos.log_density))
    after, info = jax.jit(jax.vmap(lambda s: kernel.step(jax.random.key(1), target, s)))(states)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(states), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.any(np.asarray(info.acceptance_rates[:, :-1]))
    assert not np.any(np.asarray(info.swap_rates))
    assert not np.any(np.asarray(info.status))


def test_bad_starts_and_traced_temperatures_are_flagged() -> None:
    def start(betas: Any, x: Any = 0.0) -> Any:
        kernel = parallel_tempering(random_walk(0.3), betas)
        return kernel.init(jax.random.key(0), edge(-np.inf), jnp.asarray(x)).status

    assert int(jax.jit(start)(jnp.asarray(BETAS), 2.0)) == int(Status.NONFINITE_INIT)
    statuses = jax.jit(jax.vmap(start))(jnp.array([[1.0, 0.5, 0.0], [0.9, 0.5, 0.0], [1.0, jnp.nan, 0.0]]))
    assert [int(s) for s in statuses] == [0, int(Status.NONFINITE_INIT), int(Status.NONFINITE_INIT)]


@pytest.mark.slow
def test_vmap_and_scan_agree() -> None:
    kernel = parallel_tempering(random_walk(1.0), BETAS)

    def one(key: Any, x: Any) -> Any:
        return kernel.step(key, edge(np.nan), kernel.init(jax.random.key(1), edge(np.nan), x))

    def keys() -> Any:
        return jax.random.split(jax.random.key(3), 2)

    starts = jnp.array([0.5, 2.0])
    batched = jax.jit(jax.vmap(one))(keys(), starts)
    _, scanned = jax.lax.scan(lambda c, kx: (c, one(*kx)), None, (keys(), starts))
    for a, b in zip(jax.tree.leaves(batched), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)


def test_dtypes_are_those_of_the_position(x64: None) -> None:
    kernel = parallel_tempering(hmc(0.3, 3), num_replicas=3)
    target = Target(lambda x: -jnp.sum(x**2), lambda x: -jnp.sum(x**2), lambda key: jax.random.normal(key, (2,)))
    for dtype in (jnp.float32, jnp.float64):
        start = jax.ShapeDtypeStruct((2,), dtype)
        state = jax.eval_shape(lambda k, x: kernel.init(k, target, x), jax.random.key(0), start)
        new, info = jax.eval_shape(lambda k, s: kernel.step(k, target, s), jax.random.key(1), state)
        assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, state)
        assert info.log_likelihood.dtype == dtype


def test_other_temperatures_compile_nothing() -> None:
    kernel, target = parallel_tempering(random_walk(1.0), BETAS), edge(np.nan)
    run(jax.random.key(1), kernel, target, jnp.zeros(8), 60)
    other = kernel.with_temperatures(jnp.asarray([1.0, 0.3, 0.0]))
    before = len(COMPILED)
    run(jax.random.key(2), other, edge(-np.inf), jnp.zeros(8), 60)
    assert COMPILED[before:] == []


def test_exchanges_take_what_is_cached_along(monkeypatch: pytest.MonkeyPatch) -> None:
    target, start = edge(-np.inf), jnp.zeros(8)

    def stale(num_steps: int) -> float:
        states, _, _ = run(
            jax.random.key(7), parallel_tempering(random_walk(0.7), np.array([1.0, 0.6, 0.2])), target, start, num_steps
        )
        fresh = jax.vmap(jax.vmap(target.log_likelihood))(states.points.position)
        return float(jnp.max(jnp.abs(fresh - states.points.log_likelihood)))

    assert stale(20) < 1e-5
    # Planted: positions are exchanged, and what is cached of them stays.
    taken = module._taken
    monkeypatch.setattr(module, "_taken", lambda p, i: p._replace(position=taken(p, i).position))
    assert stale(21) > 1e-2  # another number of steps is compiled afresh


def test_arguments_are_checked() -> None:
    walk = random_walk(1.0)

    def start(kernel: Any, target: Target) -> Any:
        return jax.eval_shape(lambda k, x: kernel.init(k, target, x), jax.random.key(0), jnp.zeros(()))

    for bad in ([0.9, 0.5], [1.0, 0.2, 0.5], [1.0, -0.1], [1.0, np.nan], [1.0, 1.0]):
        with pytest.raises(ValueError, match="descend"):
            parallel_tempering(walk, bad)
    with pytest.raises(ValueError, match="at least two"):
        parallel_tempering(walk, [1.0])
    with pytest.raises(ValueError, match="num_replicas"):
        parallel_tempering(walk, num_replicas=1)
    with pytest.raises(ValueError, match="one for each replica"):
        parallel_tempering(walk, [1.0, 0.5, 0.0], num_replicas=4)
    with pytest.raises(ValueError, match="one for each replica"):
        parallel_tempering([walk, walk], [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="several shapes"):
        parallel_tempering([random_walk(1.0, covariance=jnp.ones(n)) for n in (2, 3)])
    with pytest.raises(TypeError, match="several kinds"):
        parallel_tempering([walk, hmc()])
    with pytest.raises(TypeError, match=r"kernel\[1\]"):
        parallel_tempering([walk, 3])
    with pytest.raises(ValueError, match="flat"):
        start(parallel_tempering(walk), Target(jnp.sum))
    with pytest.raises(TypeError, match="MHGState"):
        start(parallel_tempering(parallel_tempering(walk)), GAMMA)


@pytest.mark.no_key_reuse
def test_step_lowers_for_every_platform() -> None:
    kernel = parallel_tempering(hmc(0.3, 3), BETAS)
    state = kernel.init(jax.random.key(0), GAMMA, jnp.zeros(()))
    leaves, structure = jax.tree.flatten(state)

    def step(data: Any, *leaves: Any) -> Any:
        return jax.tree.leaves(
            kernel.step(jax.random.wrap_key_data(data), GAMMA, jax.tree.unflatten(structure, leaves))
        )

    exported = jax.export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(jnp.zeros(2, jnp.uint32), *leaves)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
