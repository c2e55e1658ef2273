r"""`on_sites`: a kernel on some sites of a position, the others held fixed.

$K$ leaves $\pi(x_A \mid x_B)$ invariant for every $x_B$, so the kernel that applies it to $x_A$ alone leaves
$\pi(x_A, x_B)$ invariant (Tierney 1994). Its target is the whole density with $x_B$ put back, which is the conditional
density up to a constant.

Of what a state caches, the densities hold for the whole and for the part alike. Gradients do not: a kernel on other
sites moves what the gradient of these depends on. So none passes from one step to the next: that of the part is taken
at the start of a step, and that of the whole, where the state has one, at its end.
"""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from probinf.core._arguments import names_of_sites
from probinf.core._fast_key import fast_key, plain_key
from probinf.core._kernel import Kernel, Point, evaluate
from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._mhg import MHGState


class _PutBack(eqx.Module):
    """A function of the whole position as one of a part of it."""

    function: Callable[[Any], Any]
    fixed: dict[str, Any]

    def __call__(self, part: dict[str, Any]) -> Any:
        return self.function({**self.fixed, **part})


class OnSites(eqx.Module):
    """The kernel made by `on_sites`.

    Attributes:
        kernel: runs on the part.
        sites: names of the part.
    """

    kernel: Any
    sites: tuple[str, ...] = eqx.field(static=True)

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`, without gradients; flagged as the inner kernel flags its start.

        Raises:
            TypeError: `position` is no dict, or the inner kernel has another state than `MHGState` or refuses a site.
            ValueError: `position` lacks one of the sites.
        """
        self._check(position)
        position = jax.tree.map(jnp.asarray, position)
        state = self._start(key, *self.conditional(target, position))
        point = Point(position | state.position, state.point.log_prior, state.point.log_likelihood, None, None)
        return MHGState(point, state.status)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, Any]:
        """One transition of the inner kernel on its sites, and its info. Leaves the target invariant."""
        key_init, key_step = (plain_key(part) for part in jax.random.split(fast_key(key)))
        conditional, part = self.conditional(target, state.position)
        # Only the gradients of a fresh start are used: under `jit` the rest of it is dead code, and cached densities
        # that are estimates stay the ones that were accepted.
        fresh = self._start(key_init, conditional, part).point
        known = state.point
        start = Point(part, known.log_prior, known.log_likelihood, fresh.grad_log_prior, fresh.grad_log_likelihood)
        new, info = self.kernel.step(key_step, conditional, MHGState(start, state.status))
        return MHGState(_whole(target, state.point, new.point), new.status), info

    def conditional(self, target: Target, position: dict[str, Any]) -> tuple[Target, dict[str, Any]]:
        """The target of the sites given the others, and their part of the position.

        Its `constrain` is that of the whole, so that it shows all sites.
        """
        fixed = {name: value for name, value in position.items() if name not in self.sites}
        conditional = Target(
            log_likelihood=_PutBack(target.log_likelihood, fixed),
            log_prior=_PutBack(target.log_prior, fixed),
            constrain=_PutBack(target.constrain, fixed),
            inverse_temperature=target.inverse_temperature,
            supports={name: support for name, support in target.supports.items() if name in self.sites},
        )
        return conditional, {name: position[name] for name in self.sites}

    def _start(self, key: PRNGKey, conditional: Target, part: dict[str, Any]) -> MHGState:
        state = self.kernel.init(key, conditional, part)
        if not isinstance(state, MHGState):
            raise TypeError(
                f"`on_sites` needs a kernel whose state is `MHGState`, but {type(self.kernel).__name__} has "
                f"{type(state).__name__}"
            )
        return state

    def _check(self, position: Position) -> None:
        if not isinstance(position, dict):
            raise TypeError(
                f"`on_sites` needs positions that are dicts of sites, but this one is a {type(position).__name__}: "
                "give the target one, such as {'beta': ..., 'z': ...}"
            )
        unknown = [name for name in self.sites if name not in position]
        if unknown:
            raise ValueError(f"`sites` has {unknown}, but the sites of the position are {sorted(position)}")


def _whole(target: Target, before: Point, part: Point) -> Point:
    """The point of the whole position after a move of a part."""
    position = before.position | part.position
    if before.grad_log_prior is None:
        return Point(position, part.log_prior, part.log_likelihood, None, None)
    fresh = evaluate(target, position, gradient=True)
    return Point(position, part.log_prior, part.log_likelihood, fresh.grad_log_prior, fresh.grad_log_likelihood)


def on_sites(kernel: Kernel, sites: Iterable[str]) -> OnSites:
    """A kernel that moves some sites of a position and holds the others fixed.

    Leaves the target invariant if `kernel` does; reversible if `kernel` is. Alone it never moves the other sites: use
    it in a `cycle` or a `mixture` with kernels for them. Each step costs one gradient more than `kernel` alone where
    that has gradients, because those of an earlier step are out of date, and one of the whole where the state has
    gradients, as in a `cycle` with `nuts()`.

    Args:
        kernel: of the state `MHGState`; tunables stay array leaves.
        sites: names of top-level entries of the position, which must be a dict.

    Returns:
        A `Kernel` whose info is that of `kernel`.

    Raises:
        ValueError: `sites` is empty or names a site twice; at `init`, a site is not in the position.
        TypeError: `kernel` is no kernel, or `sites` no sequence of names; at `init`, `kernel` cannot run on a site,
            such as `hmc` on integers.
    """
    if isinstance(kernel, type) or not isinstance(kernel, Kernel):
        raise TypeError(f"`kernel` must be a kernel, with methods `init` and `step`, but is {kernel!r}: try `nuts()`")
    names = names_of_sites(sites, "['beta']", "site, or run the kernel itself for all of them")
    return OnSites(kernel, names)
