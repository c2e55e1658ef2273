"""Tuners of combined kernels: each part has its own, and all learn from the same steps.

`cycle(on_sites(nuts(), ["beta"]), on_sites(gibbs(), ["z"]))` is tuned where there is something to tune, which is
`nuts`. While parts are tuned their infos are handed on whole, so that a tuner finds in a combination what it finds
alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from probinf.core._target import Target
from probinf.core._types import Position, PRNGKey
from probinf.samplers._combine import Cycle, Mixture, Repeated, TunableRepeated
from probinf.samplers._mhg import MHGState
from probinf.samplers._on_sites import OnSites
from probinf.samplers._tuner import Transition, Trial, Tuner


class PartsInfo(NamedTuple):
    """One transition of a combined kernel that is tuned.

    Attributes:
        acceptance_rate: [] mean over the parts that ran.
        status: [] uint32, the bits of this step.
        parts: infos of the parts; zeros for one that did not run.
        ran: [parts] bool.
    """

    acceptance_rate: Array
    status: Array
    parts: tuple[Any, ...]
    ran: Array


class RecordedCycle(eqx.Module):
    """A `Cycle` that tells the infos of its parts."""

    kernels: tuple[Any, ...]

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`."""
        return Cycle(self.kernels).init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, PartsInfo]:
        """One transition of each kernel."""
        infos = []
        for kernel, key_kernel in zip(self.kernels, jax.random.split(key, len(self.kernels)), strict=True):
            state, info = kernel.step(key_kernel, target, state)
            infos.append(info)
        return state, _parts_info(infos, jnp.ones(len(infos), bool))


class RecordedMixture(eqx.Module):
    """A `Mixture` that tells the info of the part that ran."""

    kernels: tuple[Any, ...]
    probabilities: Array

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`."""
        return Mixture(self.kernels, self.probabilities).init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, PartsInfo]:
        """One transition of one kernel. Probabilities that are no law are flagged when the mixture itself is run."""
        key_which, key_step = jax.random.split(key)
        which = jax.random.categorical(key_which, jnp.log(self.probabilities))
        words = jax.random.key_data(key_step)
        shapes = [_info_shape(kernel, target, state) for kernel in self.kernels]

        def branch(number: int) -> Callable[..., Any]:
            def run(words: Array, state: MHGState) -> tuple[MHGState, list[Any]]:
                key = jax.random.wrap_key_data(words, impl=jax.random.key_impl(key_step))
                state, info = self.kernels[number].step(key, target, state)
                return state, [info if i == number else _zeros(shape) for i, shape in enumerate(shapes)]

            return run

        state, infos = jax.lax.switch(which, [branch(i) for i in range(len(self.kernels))], words, state)
        return state, _parts_info(infos, jnp.arange(len(infos), dtype=which.dtype) == which)


class RecordedRepeat(eqx.Module):
    """A `Repeated` that tells the info of its last transition."""

    kernel: Any
    num_steps: Array

    def init(self, key: PRNGKey, target: Target, position: Position) -> MHGState:
        """The state at `position`."""
        return Repeated(self.kernel, self.num_steps).init(key, target, position)

    def step(self, key: PRNGKey, target: Target, state: MHGState) -> tuple[MHGState, PartsInfo]:
        """All transitions."""

        def body(index: Array, carry: tuple[MHGState, Any]) -> tuple[MHGState, Any]:
            return self.kernel.step(jax.random.fold_in(key, index), target, carry[0])

        start = (state, _zeros(_info_shape(self.kernel, target, state)))
        state, info = jax.lax.fori_loop(jnp.zeros_like(self.num_steps), self.num_steps, body, start)
        return state, _parts_info([info], jnp.ones(1, bool))


def _info_shape(kernel: Any, target: Target, state: MHGState) -> Any:
    return eqx.filter_eval_shape(kernel.step, jax.random.key(0), target, state)[1]


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)


def _parts_info(infos: Any, ran: Array) -> PartsInfo:
    status = infos[0].status
    for info in infos[1:]:
        status |= info.status
    rates = jnp.stack([info.acceptance_rate for info in infos])
    rate = jnp.sum(jnp.where(ran, rates, 0)) / jnp.maximum(jnp.sum(ran), 1).astype(rates.dtype)
    return PartsInfo(rate, status, tuple(infos), ran)


class CombinedState(NamedTuple):
    """What the tuners of the parts have learned.

    Attributes:
        parts: their states; None for a part with nothing to tune.
        due: [] bool, whether one of them is.
    """

    parts: tuple[Any, ...]
    due: Array


class CombinedTuner(eqx.Module):
    """The tuner of a `Cycle`, a `Mixture`, or what `repeat` makes.

    Attributes:
        initial: the kernel to start from.
        tuners: of its parts; None for one with nothing to tune.
    """

    initial: Any
    tuners: tuple[Tuner | None, ...]

    def begin(self, positions: PyTree) -> CombinedState:
        """That of each part."""
        return _combined(None if tuner is None else tuner.begin(positions) for tuner in self.tuners)

    def prepare(self, key: PRNGKey, trial: Trial, state: CombinedState) -> CombinedState:
        """Each part that is due, by trials of this part alone."""

        def prepared(tuner: Tuner | None, key: PRNGKey, part: Any) -> Any:
            if tuner is None:
                return None
            return jax.lax.cond(part.due, lambda k, s: tuner.prepare(k, trial, s), lambda _, s: s, key, part)

        keys = jax.random.split(key, len(self.tuners))
        return _combined(map(prepared, self.tuners, keys, state.parts))

    def kernel(self, state: CombinedState) -> Any:
        """With the kernels that the parts try next."""
        kernels = self._kernels(state, lambda tuner, part: tuner.kernel(part))
        if isinstance(self.initial, Cycle):
            return RecordedCycle(kernels)
        if isinstance(self.initial, Mixture):
            return RecordedMixture(kernels, self.initial.probabilities)
        return RecordedRepeat(kernels[0], self.initial.num_steps)

    def update(self, transition: Transition, state: CombinedState) -> CombinedState:
        """Each part from its own info, and the chains in which it ran."""

        def updated(number: int) -> Any:
            tuner = self.tuners[number]
            if tuner is None:
                return None
            infos, ran = transition.infos.parts[number], transition.infos.ran[:, number]
            return tuner.update(transition._replace(infos=infos, use=transition.use & ran), state.parts[number])

        return _combined(updated(number) for number in range(len(self.tuners)))

    def result(self, state: CombinedState) -> Any:
        """With the tuned kernels."""
        kernels = self._kernels(state, lambda tuner, part: tuner.result(part))
        if isinstance(self.initial, Cycle):
            return Cycle(kernels)
        if isinstance(self.initial, Mixture):
            return Mixture(kernels, self.initial.probabilities)
        return type(self.initial)(kernels[0], self.initial.num_steps)

    def _kernels(self, state: CombinedState, made: Callable[[Tuner, Any], Any]) -> tuple[Any, ...]:
        parts = zip(self.tuners, parts_of(self.initial), state.parts, strict=True)
        return tuple(kernel if tuner is None else made(tuner, part) for tuner, kernel, part in parts)


def parts_of(kernel: Cycle | Mixture | Repeated | TunableRepeated) -> tuple[Any, ...]:
    """The kernels that it is made of."""
    return kernel.kernels if isinstance(kernel, Cycle | Mixture) else (kernel.kernel,)


def _combined(parts: Any) -> CombinedState:
    parts = tuple(parts)
    due = jnp.stack([part.due for part in parts if part is not None])
    return CombinedState(parts, jnp.any(due))


class OnSitesTuner(eqx.Module):
    """The tuner of an `OnSites`, whose inner kernel sees its sites alone.

    Attributes:
        inner: tuner of the inner kernel.
        sites: its sites.
    """

    inner: Tuner
    sites: tuple[str, ...] = eqx.field(static=True)

    def begin(self, positions: dict[str, Any]) -> Any:
        """Of these sites."""
        return self.inner.begin(self._part(positions))

    def prepare(self, key: PRNGKey, trial: Trial, state: Any) -> Any:
        """By trials on these sites."""

        def on_part(key: PRNGKey, kernel: Any) -> Transition:
            return self._of_part(trial(key, OnSites(kernel, self.sites)))

        return self.inner.prepare(key, on_part, state)

    def kernel(self, state: Any) -> OnSites:
        """On these sites."""
        return OnSites(self.inner.kernel(state), self.sites)

    def update(self, transition: Transition, state: Any) -> Any:
        """From the moves of these sites."""
        return self.inner.update(self._of_part(transition), state)

    def result(self, state: Any) -> OnSites:
        """On these sites."""
        return OnSites(self.inner.result(state), self.sites)

    def _part(self, positions: dict[str, Any]) -> dict[str, Any]:
        return {name: positions[name] for name in self.sites}

    def _of_part(self, transition: Transition) -> Transition:
        before, positions = self._part(transition.before), self._part(transition.positions)
        return transition._replace(before=before, positions=positions)
