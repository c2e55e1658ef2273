"""cuthbert: its particle filter with systematic resampling from cuthbertlib.

"offline" is `cuthbert.filter`, jitted whole, of whose stacked states only the last evidence is returned, so that the
compiler may drop the rest. "online" is the same `Filter` object driven by one jitted scan over `filter_prepare` and
`filter_combine` that keeps the current state only, for users who need no history; "guided" is that with the locally
optimal proposal. The initial state is x_{-1} before the first observation: both problems start in their stationary
law, so that one more transition changes nothing.
"""

from collections.abc import Callable
from functools import partial

import cuthbert
import jax
from cuthbert.smc import particle_filter
from cuthbertlib.resampling import ess_decorator, systematic

from benchmarks.filters._ar1 import Model, jax_model
from benchmarks.filters._problems import Problem

PACKAGES = ("cuthbert", "cuthbertlib", "numba", "jax", "jaxlib")


def _build(model: Model, dtype, num_particles: int, rule: str, *, guided: bool = False):
    scheme = systematic.resampling

    def propagate(key, x, y):
        noise = jax.random.normal(key, (), dtype)
        return model.propose(x, y, noise) if guided else model.mutate(x, noise)

    def log_potential(before, x, y):
        return model.log_predictive(y, before) if guided else model.log_potential(y, x)

    return particle_filter.build_filter(
        init_sample=lambda key: model.init(jax.random.normal(key, (), dtype)),
        propagate_sample=propagate,
        log_potential=log_potential,
        n_filter_particles=num_particles,
        resampling_fn=scheme if rule == "always" else ess_decorator(scheme, 0.5),
    )


def _offline(key, model: Model, ys, *, num_particles: int, rule: str):
    first, rest = jax.random.split(key)
    built = _build(model, ys.dtype, num_particles, rule)
    states = cuthbert.filter(built, ys, built.init_prepare(key=first), key=rest)
    return states.log_normalizing_constant[-1]


def _online(key, model: Model, ys, *, num_particles: int, rule: str, guided: bool = False):
    first, rest = jax.random.split(key)
    built = _build(model, ys.dtype, num_particles, rule, guided=guided)
    start = built.init_prepare(key=first)._replace(model_inputs=ys[0])

    def step(state, inputs):
        key, y = inputs
        return built.filter_combine(state, built.filter_prepare(y, key=key)), None

    state, _ = jax.lax.scan(step, start, (jax.random.split(rest, ys.shape[0]), ys))
    return state.log_normalizing_constant


RUNNERS = {"offline": _offline, "online": _online, "guided": partial(_online, guided=True)}


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable[[int], float]:
    """A function from seed to log evidence, compiled at its first call."""
    runner, rule = variant.split("/")
    model, ys = jax_model(problem)
    compiled = jax.jit(partial(RUNNERS[runner], num_particles=num_particles, rule=rule))

    def run(seed: int) -> float:
        return float(jax.block_until_ready(compiled(jax.random.key(seed), model, ys)))

    return run
