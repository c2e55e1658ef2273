r"""`FiniteModel`: a Feynman-Kac model on finitely many states, whose every random choice can be enumerated.

On it an algorithm that is written in the verbs has an exact law, which is compared with sums over all paths.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probinf.core import FeynmanKac, PRNGKey, categorical, choose


class FiniteModel(FeynmanKac):
    """States 0 .. S-1.

    Attributes:
        initial: [S], the law of the state at time 0.
        transition: [S, S], from row to column.
        potentials: [T, S, S], of the state before and the state; at time 0 row 0 counts.
    """

    batch: ClassVar[bool] = True
    initial: Float[Array, " s"]
    transition: Float[Array, "s s"]
    potentials: Float[Array, "t s s"]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.potentials.shape[0]

    def init(self, key: PRNGKey, num_particles: int) -> Int[Array, " n"]:
        """Draws states at time 0."""
        return choose(key, categorical, jnp.broadcast_to(self.initial, (num_particles, self.initial.shape[0])))

    def mutate(self, key: PRNGKey, t: Array | int, x: Int[Array, " n"]) -> Int[Array, " n"]:
        """Draws the next states."""
        del t
        return choose(key, categorical, self.transition[x])

    def log_potential(self, t: Array | int, x_prev: Array | None, x: Int[Array, " n"]) -> Float[Array, " n"]:
        """Log weights."""
        before = jnp.zeros_like(x) if x_prev is None else x_prev
        return jnp.log(self.potentials[t, before, x])

    def log_transition(self, t: Array | int, x_prev: Array, x: Array) -> Float[Array, "..."]:
        """Log probability of a transition."""
        del t
        return jnp.log(self.transition[x_prev, x])


class FiniteAhead(FiniteModel):
    """The same model, run as an auxiliary filter with a look-ahead that is none too good."""

    def look_ahead(self, t: Array | int, x: Int[Array, " n"]) -> Float[Array, " n"]:
        """Log weights by which ancestors are drawn."""
        del t
        return jnp.log(jnp.linspace(0.4, 1.9, self.initial.shape[0]))[x]


def skewed_model(num_steps: int, *, path_dependent: bool = True, dtype: type | None = None) -> FiniteModel:
    """Two states, at most four times, and nothing symmetric.

    Args:
        num_steps: T, at most 4.
        path_dependent: whether potentials depend on the state before.
        dtype: of its numbers; None is the default floating type.

    Raises:
        ValueError: `num_steps` is above 4.
    """
    if not 0 <= num_steps <= 4:
        raise ValueError(f"`num_steps` is {num_steps}; needed at most 4, for which there are potentials")
    initial = np.array([0.6, 0.4])
    transition = np.array([[0.8, 0.2], [0.35, 0.65]])
    base = np.array([[0.9, 0.2], [0.3, 0.7], [0.5, 0.8], [1.7, 0.1]])[:num_steps]
    potentials = np.repeat(base[:, None, :], 2, axis=1)
    if path_dependent:
        potentials[1:, 1, :] *= np.array([0.4, 1.3])
    return FiniteModel(*(jnp.asarray(a, dtype or jnp.result_type(float)) for a in (initial, transition, potentials)))


def path_masses(model: FiniteModel) -> np.ndarray:
    """The unnormalised mass of every path, [S] * T, by multiplication in NumPy."""
    initial, transition, potentials = (
        np.asarray(leaf, np.float64) for leaf in (model.initial, model.transition, model.potentials)
    )
    if model.num_steps == 0:
        return np.ones(())
    mass = initial * potentials[0, 0]
    for t in range(1, potentials.shape[0]):
        mass = mass[..., None] * (transition * potentials[t])
    return mass
