r"""`sgld`, `preconditioned_sgld`, `sghmc`: Langevin dynamics with estimated gradients and without rejection. BIASED.

With an unbiased estimate $\hat g$ of $\nabla\log\pi$, step size $\epsilon$, temperature T and $z \sim N(0, I)$:

- `sgld` (Welling, Teh 2011): $x \mathrel{+}= \epsilon \hat g + \sqrt{2 \epsilon T}\, z$;
- `preconditioned_sgld` (Li, Chen, Carlson, Carin 2016): $V \leftarrow \alpha V + (1 - \alpha) \hat g^2$,
  $G = 1 / (\lambda + \sqrt V)$, $x \mathrel{+}= \epsilon G \hat g + \sqrt{2 \epsilon T G}\, z$;
- `sghmc` (Chen, Fox, Guestrin 2014): $v \leftarrow (1 - \epsilon\gamma) v + \epsilon \hat g +
  \sqrt{2 \gamma \epsilon T}\, z$, $x \mathrel{+}= \epsilon v$.

Their stationary law is $\pi^{1/T}$ only as $\epsilon \to 0$. On $N(0, s^2)$, with a gradient noise of variance $\nu$,
the variances are, of `sgld` and of `sghmc` (with $a = 1 - \epsilon\gamma$),

$$s^2 \frac{T + \epsilon\nu/2}{1 - \epsilon / 2s^2}, \qquad
s^2 \frac{T + \epsilon\nu/2\gamma}{1 - \epsilon^2 / 2(1 + a)s^2}:$$

the step adds to them, and so does the batch, whose noise no T takes away.
"""

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from probinf.core import Status, Target, evaluate, flag, is_concrete, is_fatal, standard_normal
from probinf.core._fast_key import fast_key, plain_key
from probinf.core._kernel import point_gradient, point_log_density
from probinf.core._types import Position, PRNGKey
from probinf.samplers._factor import as_float, require_positive
from probinf.samplers._mhg import require_floating
from probinf.samplers._minibatch import gradient_estimate


class StochasticGradientState(NamedTuple):
    """The state of a chain.

    Attributes:
        position: pytree.
        memory: [m] velocity of `sghmc`, mean squares V of `preconditioned_sgld`, nothing of `sgld`.
        status: [] uint32, OR of the bits of all steps so far. A fatal bit freezes the chain.
    """

    position: Any
    memory: Array
    status: Array


class StochasticGradientInfo(NamedTuple):
    """One step.

    Attributes:
        acceptance_rate: [] 1, since nothing is rejected; 0 where a step was not taken.
        gradient_norm: [] of the estimate.
        divergent: [] bool: the step was not finite, and not taken.
        status: [] uint32, the bits of this step.
    """

    acceptance_rate: Array
    gradient_norm: Array
    divergent: Array
    status: Array


class Dynamics(Protocol):
    """How a chain moves; arrays are leaves."""

    def valid(self) -> Bool[Array, ""]:
        """Whether traced parameters are such as one may be given."""
        ...

    def start(self, key: PRNGKey, gradient: Float[Array, " d"]) -> Float[Array, " m"]:
        """The memory of a new chain."""
        ...

    def advance(
        self, x: Float[Array, " d"], memory: Float[Array, " m"], gradient: Float[Array, " d"], z: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " m"]]:
        """Position and memory after a step with the standard normal z."""
        ...


class Langevin(eqx.Module):
    """The dynamics of `sgld`."""

    step_size: Array
    temperature: Array

    def valid(self) -> Bool[Array, ""]:
        """Whether traced parameters are such as one may be given."""
        return (self.step_size > 0) & (self.temperature >= 0)

    def start(self, key: PRNGKey, gradient: Float[Array, " d"]) -> Float[Array, " 0"]:
        """Nothing."""
        del key
        return gradient[:0]

    def advance(
        self, x: Float[Array, " d"], memory: Float[Array, " 0"], gradient: Float[Array, " d"], z: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " 0"]]:
        """One step."""
        epsilon, temperature = (a.astype(x.dtype) for a in (self.step_size, self.temperature))
        return x + epsilon * gradient + jnp.sqrt(2 * epsilon * temperature) * z, memory


class PreconditionedLangevin(eqx.Module):
    """The dynamics of `preconditioned_sgld`."""

    step_size: Array
    temperature: Array
    decay: Array
    regularisation: Array

    def valid(self) -> Bool[Array, ""]:
        """Whether traced parameters are such as one may be given."""
        decays = (self.decay >= 0) & (self.decay <= 1)
        return (self.step_size > 0) & (self.temperature >= 0) & (self.regularisation > 0) & decays

    def start(self, key: PRNGKey, gradient: Float[Array, " d"]) -> Float[Array, " d"]:
        """The squared gradient; from zero the first steps would be far too long."""
        del key
        return gradient * gradient

    def advance(
        self, x: Float[Array, " d"], memory: Float[Array, " d"], gradient: Float[Array, " d"], z: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """One step."""
        parameters = (self.step_size, self.temperature, self.decay, self.regularisation)
        epsilon, temperature, decay, least = (a.astype(x.dtype) for a in parameters)
        memory = decay * memory + (1 - decay) * gradient * gradient
        step = epsilon / (least + jnp.sqrt(memory))
        return x + step * gradient + jnp.sqrt(2 * temperature * step) * z, memory


class Friction(eqx.Module):
    """The dynamics of `sghmc`."""

    step_size: Array
    temperature: Array
    friction: Array

    def valid(self) -> Bool[Array, ""]:
        """Whether traced parameters are such as one may be given."""
        drag = self.step_size * self.friction
        return (self.step_size > 0) & (self.temperature >= 0) & (drag > 0) & (drag <= 1)

    def start(self, key: PRNGKey, gradient: Float[Array, " d"]) -> Float[Array, " d"]:
        """A velocity of its law."""
        z = standard_normal(key, gradient.shape, gradient.dtype)
        return jnp.sqrt(jnp.maximum(self.temperature, 0)).astype(z.dtype) * z

    def advance(
        self, x: Float[Array, " d"], memory: Float[Array, " d"], gradient: Float[Array, " d"], z: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """One step."""
        epsilon, temperature, friction = (a.astype(x.dtype) for a in (self.step_size, self.temperature, self.friction))
        drag = epsilon * friction
        velocity = (1 - drag) * memory + epsilon * gradient + jnp.sqrt(2 * drag * temperature) * z
        return x + epsilon * velocity, velocity


class StochasticGradient(eqx.Module):
    """The kernel made by `sgld`, `preconditioned_sgld` and `sghmc`. BIASED: it leaves the target nearly invariant.

    Attributes:
        dynamics: a `Dynamics`.
    """

    dynamics: Any

    def init(self, key: PRNGKey, target: Target, position: Position) -> StochasticGradientState:
        """The state at `position`, where all data are looked at once to see that density and gradient are finite.

        Raises:
            TypeError: a leaf of `position` is not a floating-point array.
        """
        require_floating("a stochastic gradient kernel", position)
        point = evaluate(target, jax.tree.map(jnp.asarray, position), gradient=True)
        log_density, gradient = point_log_density(target, point), ravel_pytree(point_gradient(target, point))[0]
        finite = jnp.isfinite(log_density) & jnp.all(jnp.isfinite(gradient))
        status = flag(Status.NONFINITE_INIT, ~finite) | flag(Status.POSINF_LOG_WEIGHT, log_density == jnp.inf)
        return StochasticGradientState(point.position, self.dynamics.start(key, gradient), status)

    def step(
        self, key: PRNGKey, target: Target, state: StochasticGradientState
    ) -> tuple[StochasticGradientState, StochasticGradientInfo]:
        """One step with one estimate of the gradient. A step that is not finite is not taken, and flagged."""
        key_batch, key_noise = jax.random.split(fast_key(key))
        flat, unravel = ravel_pytree(state.position)
        gradient, _ = ravel_pytree(gradient_estimate(plain_key(key_batch), target, state.position))
        z = standard_normal(key_noise, flat.shape, flat.dtype)
        x, memory = self.dynamics.advance(flat, state.memory, gradient, z)
        finite = jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(memory)) & self.dynamics.valid()
        frozen = is_fatal(state.status)
        moves = finite & ~frozen
        bits = flag(Status.DIVERGENT, ~finite & ~frozen)
        info = StochasticGradientInfo(
            acceptance_rate=moves.astype(flat.dtype),
            gradient_norm=jnp.sqrt(jnp.sum(gradient * gradient)),
            divergent=~finite & ~frozen,
            status=bits,
        )
        x, memory = jnp.where(moves, x, flat), jnp.where(moves, memory, state.memory)
        return StochasticGradientState(unravel(x), memory, state.status | bits), info


def sgld(step_size: Any = 1e-3, *, temperature: Any = 1.0) -> StochasticGradient:
    """Stochastic gradient Langevin dynamics. BIASED: the error of its law is of the order of the step size.

    Run it with `sample(..., num_warmup=0)` and leave out the first draws, or take `num_warmup` steps to forget the
    start: it has no acceptance rate by which a warm-up could tune it. A step size near twice the smallest variance of
    the target and beyond makes the chain run away; where it overflows its steps are flagged `DIVERGENT`. The target is
    one of `minibatch_target`; of any other the whole gradient is taken.

    Args:
        step_size: positive scalar, of the order of a variance; constant.
        temperature: not negative; the law is near that of the density to the power 1 / temperature. 0 is gradient
            ascent with batches.

    Returns:
        A `Kernel` with array leaves. Traced parameters that are not valid make every step a flagged one that is not
        taken.

    Raises:
        ValueError: `step_size` is not finite and positive, or `temperature` not finite or negative.
    """
    return StochasticGradient(Langevin(require_positive("step_size", step_size), _temperature(temperature)))


def preconditioned_sgld(
    step_size: Any = 1e-3, *, decay: Any = 0.99, regularisation: Any = 1.0, temperature: Any = 1.0
) -> StochasticGradient:
    r"""SGLD with step sizes by coordinate, as in RMSprop. BIASED, and with `decay` below 1 at every step size.

    The term of the drift that stems from the change of the preconditioner, $\Gamma_i = \partial G_i / \partial x_i$, is
    left out, as in algorithm 1 of its paper. The error is of the order of 1 - `decay` where the mean squares average
    over many steps and the chain goes far in each of them. As the step size goes to 0 with `decay` below 1, with
    whole gradients, temperature 1 and independent coordinates, the law is that of
    $\pi(x) \prod_i (\lambda + |\partial_i \log\pi(x)|)$; with dependent ones it is another still. With `decay` 1 the
    preconditioner stays that of the start, nothing is left out, and the error is that of `sgld`.

    Args:
        step_size: positive scalar; that of a coordinate is `step_size / (regularisation + sqrt(V))`.
        decay: in [0, 1], of the mean squares of the gradient, which start at its square.
        regularisation: positive, in the unit of a gradient: where gradients are smaller steps grow no further.
        temperature: as for `sgld`.

    Returns:
        A `Kernel` with array leaves, as `sgld` does.

    Raises:
        ValueError: a parameter is outside its range.
    """
    decay = _float("decay", decay)
    if is_concrete(decay) and not 0 <= float(decay) <= 1:
        raise ValueError(f"`decay` is {decay}; needed a number in [0, 1], such as 0.99")
    size, least = require_positive("step_size", step_size), require_positive("regularisation", regularisation)
    return StochasticGradient(PreconditionedLangevin(size, _temperature(temperature), decay, least))


def sghmc(step_size: Any = 1e-2, *, friction: Any = 1.0, temperature: Any = 1.0) -> StochasticGradient:
    """Stochastic gradient Hamiltonian Monte Carlo. BIASED: the error of its law is of the order of the step size.

    On a Gaussian the step alone has an error of the order of its square, and batches one of the order of the step.
    Momentum averages the noise of the batches, and goes further in as many steps than `sgld`. As in the experiments of
    its paper, the noise of the gradient is not taken off the noise that is added.

    Args:
        step_size: positive scalar, of the order of a standard deviation.
        friction: positive, `step_size * friction` at most 1: the share of the velocity that is lost in a step.
        temperature: as for `sgld`.

    Returns:
        A `Kernel` with array leaves, as `sgld` does.

    Raises:
        ValueError: a parameter is outside its range.
    """
    size, friction = require_positive("step_size", step_size), require_positive("friction", friction)
    if is_concrete((size, friction)) and float(size * friction) > 1:
        raise ValueError(
            f"`step_size * friction` is {float(size * friction)}; needed at most 1: take a smaller `friction`"
        )
    return StochasticGradient(Friction(size, _temperature(temperature), friction))


def _float(name: str, value: Any) -> Array:
    if jnp.ndim(value) != 0:
        raise ValueError(f"`{name}` must be a scalar, but has shape {jnp.shape(value)}")
    return as_float(value)


def _temperature(value: Any) -> Array:
    if is_concrete(value) and jnp.ndim(value) == 0 and not (np.isfinite(value) and value >= 0):
        raise ValueError(f"`temperature` is {value}; needed a finite number that is not negative: 1 is the target")
    return _float("temperature", value)
