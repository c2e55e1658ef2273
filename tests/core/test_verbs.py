"""The laws of the verbs, each checked by exact enumeration and shown to catch a planted bug.

Planted bugs, by test: spawn (draws from another law), extend (weights with the old particle; forgets the weights
it had), propagate (forgets to move one particle), reweight (adds the weight in place of its log), resample (no
evidence banked; scheme in proportion to the square root of the weights; look-ahead not divided out), move
(accepts everything), adapt (touches the weights), sequence (wrong order), iterate (schedule off by one).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probinf as pb
from probinf.core import categorical, fresh_population
from probinf.samplers import ALL_SCHEMES, random_walk, systematic
from probinf.validity import enumerate_algorithm
from tests._finite import Finite, exact_evidence, measure, skewed_model
from tests._slow import slow_after

pytestmark = pytest.mark.usefixtures("x64")


def some_population():
    population = fresh_population(jnp.array([0, 1, 1], jnp.int32))
    return eqx.tree_at(
        lambda p: (p.log_weights, p.log_scale), population, (jnp.log(jnp.array([0.5, 0.9, 0.2])), jnp.array(0.3))
    )


def expected_measure(transformer, step=None, population=None):
    population = some_population() if population is None else population

    def run(key):
        # A coin that changes nothing lets transformers without a choice be enumerated too.
        pb.choose(key, categorical, jnp.ones((1, 1)))
        return measure(transformer(key, population, step)[0])

    return np.asarray(enumerate_algorithm(run).expectation(lambda value: value))


def assert_law(transformer, expected, step=None, population=None):
    np.testing.assert_allclose(expected_measure(transformer, step, population), expected, rtol=1e-12, atol=1e-14)


def assert_broken(transformer, expected, step=None, population=None):
    with pytest.raises(AssertionError):
        assert_law(transformer, expected, step, population)


def draw_initial(key):
    return pb.choose(key, categorical, jnp.array([[0.6, 0.4]]))[0]


def flip(key, step, x):
    return pb.choose(key, categorical, jnp.array([[0.8, 0.2], [0.35, 0.65]])[x][None])[0]


def test_law_of_spawn():
    def run(sampler):
        return enumerate_algorithm(lambda key: measure(pb.spawn(sampler, 3)(key))).expectation(lambda m: m)

    np.testing.assert_allclose(run(draw_initial), [0.6, 0.4], rtol=1e-12)
    np.testing.assert_allclose(run(skewed_model(1)), [0.6 * 0.9, 0.4 * 0.2], rtol=1e-12)
    wrong = run(lambda key: pb.choose(key, categorical, jnp.array([[0.5, 0.5]]))[0])
    assert not np.allclose(wrong, [0.6, 0.4], rtol=1e-12)


class _ExtendOld(eqx.Module):
    model: Finite

    def __call__(self, key, population, step):
        moved = self.model.mutate(key, step, population.particles)
        log_g = self.model.log_potential(step, population.particles, population.particles)
        return eqx.tree_at(
            lambda p: (p.particles, p.log_weights), population, (moved, population.log_weights + log_g)
        ), None


class _ExtendForgetful(eqx.Module):
    model: Finite

    def __call__(self, key, population, step):
        moved = self.model.mutate(key, step, population.particles)
        log_g = self.model.log_potential(step, population.particles, moved)
        return eqx.tree_at(lambda p: (p.particles, p.log_weights), population, (moved, log_g)), None


def test_law_of_extend():
    model = skewed_model(3)
    kernel = np.asarray(model.transition * model.potentials[2])
    expected = np.asarray(measure(some_population())) @ kernel
    assert_law(pb.extend(model), expected, step=2)
    assert_broken(_ExtendOld(model), expected, step=2)
    assert_broken(_ExtendForgetful(model), expected, step=2)


def test_law_of_propagate():
    expected = np.asarray(measure(some_population())) @ np.array([[0.8, 0.2], [0.35, 0.65]])
    assert_law(pb.propagate(flip), expected)

    def lazy(key, population, step):
        moved, info = pb.propagate(flip)(key, population, step)
        return eqx.tree_at(lambda p: p.particles, moved, moved.particles.at[1].set(population.particles[1])), info

    assert_broken(lazy, expected)


def test_law_of_reweight():
    g = np.array([0.3, 2.0])
    expected = np.asarray(measure(some_population())) * g
    assert_law(pb.reweight(lambda step, x: jnp.log(jnp.asarray(g))[x]), expected)
    assert_broken(pb.reweight(lambda step, x: jnp.asarray(g)[x]), expected)


@pytest.mark.parametrize("when", [None, pb.ess_below(0.9), pb.ess_below(0.1)], ids=["always", "below", "not_below"])
@pytest.mark.parametrize("name", ALL_SCHEMES)
def test_law_of_resample(name, when):
    expected = np.asarray(measure(some_population()))
    assert_law(pb.resample(ALL_SCHEMES[name], when=when), expected)

    def forgets_evidence(key, population, step):
        resampled, info = pb.resample(ALL_SCHEMES[name], when=None)(key, population, step)
        return eqx.tree_at(lambda p: p.log_scale, resampled, population.log_scale), info

    assert_broken(forgets_evidence, expected)
    assert_broken(pb.resample(lambda key, w, pinned: ALL_SCHEMES[name](key, jnp.sqrt(w))), expected)


@pytest.mark.parametrize("name", ALL_SCHEMES)
def test_law_of_resample_with_look_ahead(name):
    expected = np.asarray(measure(some_population()))

    def look_ahead(step, x):
        return jnp.log(jnp.array([0.4, 3.0]))[x]

    verb = pb.resample(ALL_SCHEMES[name], look_ahead=look_ahead)
    assert_law(verb, expected)

    def not_divided(key, population, step):
        resampled, info = verb(key, population, step)
        return eqx.tree_at(lambda p: p.log_weights, resampled, jnp.zeros(3)), info

    assert_broken(not_divided, expected)


class _State(NamedTuple):
    position: jax.Array
    status: jax.Array


class _Info(NamedTuple):
    acceptance_rate: jax.Array


class _Metropolis(eqx.Module):
    """Proposes the other state; a planted bug accepts everything."""

    bug: bool = False

    def init(self, key, target, position):
        return _State(position, jnp.uint32(0))

    def step(self, key, target, state):
        other = 1 - state.position
        ratio = jnp.exp(target.log_density(other) - target.log_density(state.position))
        chance = jnp.ones(()) if self.bug else jnp.minimum(ratio, 1)
        accept = pb.choose(key, categorical, jnp.stack([1 - chance, chance])[None])[0]
        return _State(jnp.where(accept == 1, other, state.position), state.status), _Info(chance)


def test_law_of_move():
    target = pb.Target(log_likelihood=lambda x: jnp.log(jnp.array([0.7, 0.3]))[x])
    # Twice the target as a measure: three particles with the weights of their states.
    population = fresh_population(jnp.array([0, 1, 1], jnp.int32))
    population = eqx.tree_at(lambda p: p.log_weights, population, jnp.log(jnp.array([1.4, 0.3, 0.3]) * 3))
    for num_steps in (1, 2):
        assert_law(pb.move(_Metropolis(), target, num_steps), [1.4, 0.6], population=population)
        assert_law(
            pb.move(lambda s, p: _Metropolis(), lambda s, p: target, num_steps), [1.4, 0.6], population=population
        )
    assert_broken(pb.move(_Metropolis(bug=True), target), [1.4, 0.6], population=population)


def test_move_reports_the_faults_of_living_particles():
    # The log density is NaN on the left, where particle 0 starts.
    target = pb.Target(log_likelihood=lambda x: jnp.where(x < 0, jnp.nan, -(x**2)))
    population = fresh_population(jnp.array([-1.0, 1.0, 2.0]))
    verb = pb.move(random_walk(0.1), target)
    moved, _ = verb(jax.random.key(0), population)
    assert int(moved.status) & pb.Status.NONFINITE_INIT
    dead = eqx.tree_at(lambda p: p.log_weights, population, jnp.array([-jnp.inf, 0.0, 0.0]))
    moved, _ = verb(jax.random.key(0), dead)
    assert int(moved.status) == 0


def test_law_of_adapt_observe_and_place():
    expected = np.asarray(measure(some_population()))
    changed, _ = pb.adapt(lambda step, p: {"temperature": p.ess})(jax.random.key(0), some_population())
    assert changed.context["temperature"] == some_population().ess
    assert_law(pb.adapt(lambda step, p: p.ess), expected)
    assert_law(pb.observe(lambda p: p.ess), expected)
    assert_law(pb.core.place(jax.make_mesh((1,), ("particles",))), expected)
    assert_broken(lambda key, p, step: (eqx.tree_at(lambda q: q.log_weights, p, p.log_weights * 2), None), expected)


def test_law_of_sequence():
    g = jnp.log(jnp.array([0.3, 2.0]))
    moved = np.asarray(measure(some_population())) @ np.array([[0.8, 0.2], [0.35, 0.65]])
    parts = (pb.propagate(flip), pb.reweight(lambda step, x: g[x]))
    assert_law(pb.sequence(*parts), moved * np.exp(g))
    assert_broken(pb.sequence(*parts[::-1]), moved * np.exp(g))


def test_law_of_iterate():
    model = skewed_model(3)
    expected = np.asarray(measure(some_population()))
    for t in (1, 2):
        expected = expected @ np.asarray(model.transition * model.potentials[t])
    assert_law(pb.iterate(pb.extend(model), over=jnp.arange(1, 3)), expected)
    assert_broken(pb.iterate(pb.extend(model), over=jnp.arange(0, 2)), expected)


SIZES = [(n, t, () if (n, t) in ((2, 1), (2, 3), (3, 2)) else pytest.mark.slow) for n in (2, 3) for t in (1, 2, 3)]


@pytest.mark.parametrize("ess_threshold", [1.0, 0.8])
@pytest.mark.parametrize(("num_particles", "num_steps"), [pytest.param(n, t, marks=marks) for n, t, marks in SIZES])
@pytest.mark.parametrize("name", ALL_SCHEMES)
def test_evidence_is_unbiased(name, num_particles, num_steps, ess_threshold):
    model = skewed_model(num_steps)

    def run(key):
        from probinf.samplers import particle_filter

        result = particle_filter(key, model, num_particles=num_particles, resampling=name, ess_threshold=ess_threshold)
        return result.log_evidence

    law = enumerate_algorithm(run)
    np.testing.assert_allclose(jnp.sum(law.probabilities), 1, rtol=1e-9)
    np.testing.assert_allclose(law.expectation(jnp.exp), exact_evidence(model), rtol=1e-9)


def test_evidence_bias_is_caught_when_only_the_last_weights_count():
    # Turing#718: the evidence is read off the final weights and what resampling banked is lost.
    model = skewed_model(3)
    step = pb.sequence(pb.resample(systematic, when=pb.ess_below(0.8)), pb.extend(model))

    def run(key):
        population = pb.spawn(model, 2)(key)
        population, _ = pb.iterate(step, over=jnp.arange(1, 3))(key, population)
        return jnp.exp(population.log_evidence), jnp.mean(jnp.exp(population.log_weights))

    law = enumerate_algorithm(run)
    np.testing.assert_allclose(law.expectation(lambda v: v[0]), exact_evidence(model), rtol=1e-9)
    assert abs(law.expectation(lambda v: v[1]) / exact_evidence(model) - 1) > 1e-3


def conditional_smc_error(scheme, num_particles):
    """max |pi K - pi|, K: run with the reference path pinned, then draw a path."""
    model = skewed_model(2, path_dependent=False)
    paths = np.array([[a, b] for a in range(2) for b in range(2)], np.int32)
    mass = np.array(
        [
            float(model.initial[a] * model.potentials[0, 0, a] * model.transition[a, b] * model.potentials[1, a, b])
            for a, b in paths
        ]
    )

    def row(path):
        def run(key):
            keys = jax.random.split(key, 3)
            population = pb.spawn(model, num_particles, reference=path[0])(keys[0])
            first = population.particles
            step = pb.sequence(pb.resample(scheme, pinned=True), pb.extend(model, reference=path))
            population, (resampling, _) = step(keys[1], population, 1)
            both = jnp.stack([first, population.particles])
            return pb.trace_back(keys[2], population.log_weights, both, resampling.ancestors[None])[:, 0]

        return enumerate_algorithm(run).expectation(lambda p: jnp.all(p[None] == paths, axis=1))

    matrix = np.asarray(jax.vmap(row)(jnp.asarray(paths)))
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-9)
    return np.max(np.abs(mass @ matrix - mass) / mass.sum())


@pytest.mark.parametrize("name", ALL_SCHEMES)
@pytest.mark.parametrize("num_particles", slow_after(1, [3, 2]))
def test_conditional_smc_leaves_the_path_law_invariant(name, num_particles):
    assert conditional_smc_error(ALL_SCHEMES[name], num_particles) < 1e-9


@pytest.mark.parametrize("name", ["systematic", "stratified"])
def test_conditional_smc_with_an_overwritten_slot_is_caught(name):
    def overwritten(key, weights, pinned):
        return ALL_SCHEMES[name](key, weights).at[0].set(0)

    assert conditional_smc_error(overwritten, 3) > 1e-3
