r"""The floor: a bootstrap filter written by hand as one bare `jax.lax.scan`, with no library around it.

Gordon, Salmond, Smith (1993), systematic resampling (Carpenter, Clifford, Fearnhead 1999). Several honest ways to
write it are measured, because none is fastest everywhere: how ancestors are found, when to resample, and what a
step carries and records. The fastest of them under the same resampling rule is the floor of the tables.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.filters._ar1 import Model, jax_model
from benchmarks.filters._problems import Problem


def by_search(key, weights):
    """Ancestors by binary search of the even grid in the cumulative weights; weights need not sum to 1."""
    n = weights.shape[0]
    cumulative = jnp.cumsum(weights)
    points = (jnp.arange(n, dtype=weights.dtype) + jax.random.uniform(key, (), weights.dtype)) / n
    found = jnp.searchsorted(cumulative, points * cumulative[-1], side="right")
    return jnp.minimum(found, n - 1)


def by_count(key, weights):
    """Ancestors in O(N): the first slot of each offspring range is scattered, a running sum fills the ranges."""
    n = weights.shape[0]
    cumulative = jnp.cumsum(weights)
    offset = jax.random.uniform(key, (), weights.dtype)
    ends = jnp.ceil(cumulative * (n / cumulative[-1]) - offset).astype(jnp.int32)
    marks = jnp.zeros(n + 1, jnp.int32).at[jnp.clip(ends, 0, n)].add(1, mode="promise_in_bounds")
    return jnp.minimum(jnp.cumsum(marks[:n]), n - 1)


SCHEMES = {"search": by_search, "count": by_count}
CARRIES = ("plain", "eve", "full")
RULES = ("always", "ess<.5")
VARIANTS = {f"{scheme}/{carry}/{rule}": rule for rule in RULES for carry in CARRIES for scheme in SCHEMES}
QUICK = tuple(f"{scheme}/{carry}/{rule}" for rule in RULES for carry in CARRIES[:2] for scheme in SCHEMES)
PACKAGES = ("jax", "jaxlib")


def bare_filter(key, model: Model, ys, *, num_particles: int, scheme: Callable, carry: str, rule: str):
    """The filter: log evidence [], then per step ESS and mean (None unless `carry` is "full").

    Args:
        key: PRNG key.
        model: parameters.
        ys: observations [T].
        num_particles: N.
        scheme: `(key, weights) -> ancestors`.
        carry: "plain" moves the particles alone; "eve" gathers a second array, the ancestor at time 0; "full" also
            records the ESS and the weighted mean of every step.
        rule: "always", or "ess<.5" (through `lax.cond`).
    """
    first, rest = jax.random.split(key)
    shape, dtype = (num_particles,), ys.dtype
    x = model.init(jax.random.normal(first, shape, dtype))
    cargo = (x,) if carry == "plain" else (x, jnp.arange(num_particles))
    log_weights = model.log_potential(ys[0], x)

    def gather(key, weights, cargo):
        ancestors = scheme(key, weights)
        return tuple(leaf.at[ancestors].get(mode="promise_in_bounds") for leaf in cargo)

    def weigh(log_weights):
        largest = jnp.max(log_weights)
        weights = jnp.exp(log_weights - largest)
        total = jnp.sum(weights)
        return weights, total, largest + jnp.log(total / num_particles)

    def record(cargo, weights, total):
        if carry != "full":
            return None
        return total * total / jnp.sum(weights * weights), jnp.dot(weights, cargo[0]) / total

    def step(state, inputs):
        key, y = inputs
        cargo, log_weights, banked = state
        choose, move = jax.random.split(key)
        weights, total, log_mean = weigh(log_weights)
        recorded = record(cargo, weights, total)

        def resample(_):
            return gather(choose, weights, cargo), jnp.zeros_like(log_weights), banked + log_mean

        if rule == "always":
            cargo, log_weights, banked = resample(None)
        else:
            squares = jnp.sum(weights * weights)
            low = total * total < 0.5 * num_particles * squares
            cargo, log_weights, banked = lax.cond(low, resample, lambda _: (cargo, log_weights, banked), None)
        x = model.mutate(cargo[0], jax.random.normal(move, shape, dtype))
        return ((x, *cargo[1:]), log_weights + model.log_potential(y, x), banked), recorded

    keys = jax.random.split(rest, ys.shape[0] - 1)
    state = (cargo, log_weights, jnp.zeros((), dtype))
    (cargo, log_weights, banked), records = lax.scan(step, state, (keys, ys[1:]))
    weights, total, log_mean = weigh(log_weights)
    # The eve indices are returned, else the compiler would drop the array whose cost is to be measured.
    return banked + log_mean, records, (record(cargo, weights, total), cargo[1:])


def prepare(variant: str, problem: Problem, num_particles: int) -> Callable[[int], float]:
    """A function from seed to log evidence, compiled at its first call."""
    scheme, carry, rule = variant.split("/")
    model, ys = jax_model(problem)
    options = dict(num_particles=num_particles, scheme=SCHEMES[scheme], carry=carry, rule=rule)
    compiled = jax.jit(partial(bare_filter, **options))

    def run(seed: int) -> float:
        return float(jax.block_until_ready(compiled(jax.random.key(seed), model, ys))[0])

    return run
