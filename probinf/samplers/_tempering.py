r"""What the runs of tempered samplers share: checked arguments, the default kernel, and the start at the prior."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from probinf.core import Population, PRNGKey, Target, any_bits, is_concrete, spawn, whole_number, with_changes
from probinf.samplers._hmc import hmc
from probinf.samplers._stage import Stage, Tempering
from probinf.samplers._stan_tuner import check_tunable

UNFINISHED = {"MAX_STEPS": "the temperature did not reach one; here the bound is `max_temperatures`"}


class Options(eqx.Module):
    """The sizes of a run, checked; `num_moves` is None where it is adapted."""

    num_particles: int = eqx.field(static=True)
    max_temperatures: int = eqx.field(static=True)
    max_moves: int = eqx.field(static=True)
    num_moves: int | None = eqx.field(static=True)
    waste_free: bool = eqx.field(static=True)


def check_target(target: Target) -> None:
    """Raises for a target that SMC cannot start from or end at."""
    if not isinstance(target, Target):
        raise TypeError(f"`target` is a {type(target).__name__}; needed a `Target`")
    if target.sample_prior is None:
        raise ValueError("`target` has no `sample_prior`, from which SMC starts: pass one to `Target`")
    if is_concrete(target.inverse_temperature) and float(target.inverse_temperature) != 1:
        raise ValueError(
            f"`target` is at inverse temperature {float(target.inverse_temperature)}; needed 1, where SMC ends: pass "
            "`target.at_temperature(1.0)`"
        )


def kernel_or_default(what: str, kernel: Any, draw: Callable[[PRNGKey], PyTree], key: PRNGKey) -> Any:
    """The kernel, or for None HMC with trajectories of a quarter of the period of a Gaussian.

    Called inside the compiled function, since on the host it takes longer than a small run.

    At an acceptance rate of .8 the leapfrog step is about 1.4 d^(-1/4) standard deviations of a Gaussian, so that
    1.1 d^(1/4) steps go a quarter of its period, where a draw is independent of its start.

    Raises:
        TypeError: the kernel cannot be tuned.
    """
    if kernel is not None:
        check_tunable(what, kernel)
        return kernel
    dimension = max(sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(draw, key))), 1)
    return hmc(1.4 * dimension**-0.25, num_steps=max(round(1.1 * dimension**0.25), 1), jitter=False)


def find_options(
    num_particles: int, num_steps: int | str, max_temperatures: int, max_moves: int, *, waste_free: bool = False
) -> Options:
    """The sizes of a run.

    Raises:
        ValueError, TypeError: one is out of range, or no integer.
    """
    num_particles = whole_number("num_particles", num_particles, 2)
    max_temperatures = whole_number("max_temperatures", max_temperatures, 1)
    max_moves = whole_number("max_moves", max_moves, 2)
    if num_steps == "adapt":
        if waste_free:
            raise ValueError("`waste_free=True` needs `num_steps` as an integer, the moves of each chain, such as 3")
        return Options(num_particles, max_temperatures, max_moves, None, False)
    if isinstance(num_steps, str):
        raise ValueError(f'`num_steps` is {num_steps!r}; needed an integer of at least 1, or "adapt"')
    num_steps = whole_number("num_steps", num_steps, 1)
    if waste_free and num_particles % (num_steps + 1):
        raise ValueError(
            f"`num_particles` is {num_particles}; waste-free chains of {num_steps} moves need a multiple of "
            f"{num_steps + 1}"
        )
    return Options(num_particles, max_temperatures, num_steps, num_steps, waste_free)


class _Start(eqx.Module):
    """A draw of the prior as a state of the kernel."""

    kernel: Any
    prior: Target

    def __call__(self, key: PRNGKey) -> PyTree:
        draw_key, init_key = jax.random.split(key)
        return self.kernel.init(init_key, self.prior, self.prior.draw_prior(draw_key))


def draw_start(key: PRNGKey, kernel: Any, target: Target, num_particles: int) -> Population:
    """N draws of the prior as states of the kernel; their flags are the population's."""
    population = spawn(_Start(kernel, target.at_temperature(0.0)), num_particles)(key)
    return with_changes(population, status=population.status | any_bits(population.particles.status))


def first_context(kernel: Any, dimension: int, dtype: Any, max_moves: int) -> Tempering:
    """The context at the prior: temperature 0, no moves, and the kernel's own step size."""
    dense = bool(kernel.dense)
    factor = jnp.eye(dimension, dtype=dtype) if dense else jnp.ones(dimension, dtype)
    empty = jnp.zeros(max_moves, dtype)
    stage = Stage(jnp.zeros((), dtype), factor, empty, jnp.zeros((), jnp.int32))
    return Tempering(stage, jnp.asarray(kernel.step_size).astype(dtype))
