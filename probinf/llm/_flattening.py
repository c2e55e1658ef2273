r"""Resampling by flattened weights, which keeps the target: `resample_flat`, and three rules of how flat.

Particles are drawn in proportion to $W_i \psi_i$, banked is the mean of $w \psi$, and copies keep the weight $1/\psi$:
whatever $\psi > 0$ is, even a function of the whole population, the expected measure stays as it was (`resample`). So
what goes on is more diverse where $\psi$ is small for heavy particles, and the final weights are those of
$p \prod_t G_t$.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from probinf.core import Population, PRNGKey, ResampleInfo, resample, weigh, with_changes
from probinf.llm._settled import settled

POWERS = 33  # grid of inverse temperatures of `reach_ess`


class Flat(NamedTuple):
    """What a rule says.

    Attributes:
        log_psi: of every particle.
        due: whether to resample at all.
        power: the inverse temperature that the weights, or the potentials, are drawn with.
    """

    log_psi: Float[Array, " n"]
    due: Bool[Array, ""]
    power: Float[Array, ""]


class Flattening(Protocol):
    """A rule, `(step, population, log_total) -> Flat`.

    It sees N texts of `step` steps, and the sum of their log potentials, 0 where it is not finite.
    """

    def __call__(self, step: Int[Array, ""], population: Population, log_total: Float[Array, " n"]) -> Flat:
        """How to draw."""
        ...


class Potentials(NamedTuple):
    """What `resample_flat` remembers, by slot.

    Attributes:
        log_total: [N], sum of the log potentials of each text.
        log_mass: [N], sum of its corrections for a mask or a proposal, which no power is applied to.
        power: the last one; 1 where the population was not resampled.
    """

    log_total: Float[Array, " n"]
    log_mass: Float[Array, " n"]
    power: Float[Array, ""]


def no_potentials(num_particles: int) -> Potentials:
    """The first context of a population under `resample_flat`."""
    zeros = jnp.zeros(num_particles)
    return Potentials(zeros, zeros, jnp.ones_like(zeros[0]))


def record_power(population: Population) -> dict[str, Array]:
    """For `run_task(record=)`: the inverse temperature drawn with on the way to each step."""
    return {"inverse_temperature": population.context.power}


class resample_flat(eqx.Module):
    """Resamples by flattened weights, if the rule says so. Law: the identity in expectation.

    The population's context is a `Potentials`, `no_potentials(N)` to begin with.

    Attributes:
        rule: a `Flattening`.
        scheme: a resampling scheme.
    """

    rule: Any
    scheme: Callable[..., Int[Array, " n"]]

    def __call__(self, key: PRNGKey, population: Population, step: Any = None) -> tuple[Population, ResampleInfo]:
        """Resamples before step `step`, from the second on."""
        rows, known = population.particles, population.context
        corrections = rows.log_mass.astype(known.log_mass.dtype)
        more = rows.log_increment.astype(known.log_total.dtype) - (corrections - known.log_mass)
        total = known.log_total + jnp.where(jnp.isnan(more), -jnp.inf, more)
        # A particle of weight zero is never drawn, whatever its psi.
        log_total = jnp.where(jnp.isfinite(total), total, 0).astype(population.log_weights.dtype)
        flat = self.rule(jnp.asarray(step, jnp.int32) - 1, population, log_total)
        # Ancestors that are settled, so that what is remembered by slot stays where it belongs.
        drawing = resample(
            settled(self.scheme), when=lambda drawn: flat.due, look_ahead=lambda step, particles: flat.log_psi
        )
        drawn, info = drawing(key, population, step)
        power = jnp.where(info.resampled, flat.power, 1).astype(known.power.dtype)
        kept = Potentials(total[info.ancestors], corrections[info.ancestors], power)
        return with_changes(drawn, context=kept), info


class at_temperatures(eqx.Module):
    r"""Draws for $p \prod_{s \le t} G_s^{\lambda_t}$, whose weights are the population's times $L_t^{\lambda_t - 1}$.

    Attributes:
        inverse_temperatures: [T], $\lambda_t$ after step t = 1 .. T.
        threshold: resamples when the ESS of the weights drawn by is below this fraction of N.
    """

    inverse_temperatures: Float[Array, " t"]
    threshold: Float[Array, ""]

    def __call__(self, step: Int[Array, ""], population: Population, log_total: Float[Array, " n"]) -> Flat:
        """The rule."""
        dtype = population.log_weights.dtype
        power = self.inverse_temperatures[step - 1].astype(dtype)
        log_psi = (power - 1) * log_total
        drawn = weigh(population.log_weights + log_psi)
        return Flat(log_psi, drawn.ess < self.threshold.astype(dtype) * population.num_particles, power)


class reach_ess(eqx.Module):
    r"""As `at_temperatures`, with the largest $\lambda_t$ at which the ESS drawn with reaches a target.

    Of a grid of $\lambda$ in [0, 1]; where none reaches it, the one of largest ESS.

    Attributes:
        target_ess: fraction of N, in (0, 1]. Resamples when the population's own ESS is below it.
    """

    target_ess: Float[Array, ""]

    def __call__(self, step: Int[Array, ""], population: Population, log_total: Float[Array, " n"]) -> Flat:
        """The rule."""
        del step
        dtype = population.log_weights.dtype
        wanted = self.target_ess.astype(dtype) * population.num_particles
        powers = jnp.linspace(0, 1, POWERS, dtype=dtype)
        ess = jax.vmap(lambda power: weigh(population.log_weights + (power - 1) * log_total).ess)(powers)
        enough = ess >= wanted
        chosen = jnp.where(jnp.any(enough), POWERS - 1 - jnp.argmax(enough[::-1]), jnp.argmax(ess))
        power = powers[chosen]
        return Flat((power - 1) * log_total, population.ess < wanted, power)


class entropic(eqx.Module):
    r"""Draws by $w^{1/\tau}$, with the temperature $\tau \ge 1$ of the entropic particle filter early in a run.

    With t of T steps made, $E$ the ESS and $H$ the entropy of the weights divided by log N, $\tau$ is while
    t/T < `until`, and 1 from there on:

        "ess"      max(1, (N / E) (1 - t/T))
        "entropy"  1 / (H + (1 - H) t/T)
        "base"     max(1, 2 - t/T)

    Attributes:
        threshold: resamples when the ESS is below this fraction of N.
        until: fraction of the steps during which weights are flattened.
        num_steps: T.
        schedule: "ess", "entropy" or "base".
    """

    threshold: Float[Array, ""]
    until: Float[Array, ""]
    num_steps: int = eqx.field(static=True)
    schedule: str = eqx.field(static=True)

    def temperature(self, step: Int[Array, ""], population: Population) -> Float[Array, ""]:
        """The temperature tau."""
        dtype, count = population.log_weights.dtype, population.num_particles
        time = jnp.asarray(step).astype(dtype) / self.num_steps
        weighed = weigh(population.log_weights)
        if self.schedule == "ess":
            found = (count / jnp.maximum(weighed.ess, 1)) * (1 - time)
        elif self.schedule == "base":
            found = 2 - time
        else:
            weights = weighed.normalised()
            terms = jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, weights, 1)), 0)
            share = -jnp.sum(terms) / jnp.log(jnp.asarray(max(count, 2), dtype))
            # Entropy 0 at the start is a temperature without bound: any ancestor of positive weight is as good.
            found = 1 / jnp.maximum(share + (1 - share) * time, jnp.finfo(dtype).eps)
        return jnp.where(time < self.until.astype(dtype), jnp.maximum(found, 1), jnp.ones_like(found))

    def __call__(self, step: Int[Array, ""], population: Population, log_total: Float[Array, " n"]) -> Flat:
        """The rule."""
        del log_total
        log_weights = population.log_weights
        power = 1 / self.temperature(step, population)
        log_psi = (power - 1) * jnp.where(log_weights > -jnp.inf, log_weights, 0)
        due = population.ess < self.threshold.astype(log_weights.dtype) * population.num_particles
        return Flat(log_psi, due, power)
