r"""`parallel_tempering`: replicas at several temperatures that exchange their states, without going back and forth.

Replica r has the law $\pi_r \propto p(x) L(x)^{\beta_r}$, $1 = \beta_0 > \beta_1 > \dots \ge 0$. A step moves every
replica by a kernel for its own law, then proposes to exchange neighbours, the even pairs and the odd pairs in turn,
and accepts with probability

$$\alpha = \min\{1, (L(x_{r+1}) / L(x_r))^{\beta_r - \beta_{r+1}}\}.$$

Swendsen, Wang (1986), Geyer (1991); alternation of even and odd pairs: Okabe, Kawata, Okamoto, Mikami (2001). It makes
the scheme non-reversible: a state crosses n temperatures in O(n) steps, not in O(n^2) (Syed, Bouchard-Cote,
Deligiannidis, Doucet 2022, algorithm 1). Prior and likelihood are cached apart, so exchanges evaluate nothing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from probinf.core import Kernel, Point, Status, Target, any_bits, choose, flag, is_concrete, is_fatal, map_items
from probinf.core._arguments import whole_number
from probinf.core._fast_key import fast_key, plain_key
from probinf.core._kernel import point_log_density
from probinf.core._target import flat_prior, raised
from probinf.core._types import Position, PRNGKey
from probinf.samplers._mhg import Accept, MHGState
from probinf.samplers._tempering_tuner import TemperingTuner, tempering_tuner

POWER = 5  # of the temperatures to begin with: Friel, Pettitt (2008)


class TemperingState(NamedTuple):
    """The replicas.

    Attributes:
        position: of the replica at inverse temperature 1.
        points: what is known of every replica, coldest first, leading axis R.
        machines: [R] int32, the number of the machine whose state is at each temperature. An exchange is seen as one
            of temperatures between machines, which so walk between the target and the prior.
        num_steps: [] int32, steps so far; even and odd pairs take turns.
        status: [] uint32, the OR of the bits of all replicas and steps so far. A fatal bit freezes all of them.
    """

    position: Any
    points: Point
    machines: Array
    num_steps: Array
    status: Array


class TemperingInfo(NamedTuple):
    """One step.

    Attributes:
        acceptance_rate: [] of the kernel at inverse temperature 1.
        acceptance_rates: [R] of the kernels; NaN where the prior was drawn from, and no kernel ran.
        swap_rates: [R - 1] the probability of an exchange of each pair of neighbours, those not due included: their
            means are the rates of acceptance, whatever steps are thinned out.
        machines: [R] int32, the machine at each temperature: see `round_trips`.
        log_likelihood: [R], coldest first: see `tempering_evidence`.
        log_density: [] of the position, up to the constant of the target.
        divergent: [] bool, whether a replica diverged, or a NaN likelihood stopped an exchange.
        status: [] uint32, the bits of this step.
    """

    acceptance_rate: Array
    acceptance_rates: Array
    swap_rates: Array
    machines: Array
    log_likelihood: Array
    log_density: Array
    divergent: Array
    status: Array


class ParallelTempering(eqx.Module):
    """The kernel made by `parallel_tempering`.

    Attributes:
        kernel: what moves the replicas; its arrays have a leading axis R, one entry a temperature.
        inverse_temperatures: [R], descending from 1.
        reference: whether the last of them is 0, where targets with `sample_prior` are drawn from independently.
    """

    kernel: Any
    inverse_temperatures: Float[Array, " r"]
    reference: bool = eqx.field(static=True, default=False)

    @property
    def num_replicas(self) -> int:
        """R."""
        return self.inverse_temperatures.shape[0]

    def with_temperatures(self, inverse_temperatures: Float[Array, " r"]) -> "ParallelTempering":
        """The same kernel at other temperatures, such as those of `tuned_inverse_temperatures`; nothing is compiled.

        Raises:
            ValueError: they are not as many, do not descend from 1, or do not end at 0 where those of the kernel do.
        """
        betas = _checked(inverse_temperatures)
        if betas.shape != self.inverse_temperatures.shape:
            raise ValueError(
                f"`inverse_temperatures` are {betas.shape[0]}, but there are {self.num_replicas} replicas: make a new "
                "kernel by `parallel_tempering` for another number"
            )
        if self.reference and is_concrete(inverse_temperatures) and np.asarray(inverse_temperatures)[-1] != 0:
            raise ValueError(
                "`inverse_temperatures` must end at 0, as this kernel draws its last replica from the prior: make a "
                "new one by `parallel_tempering`"
            )
        return self.with_kernels(self.kernel, betas)

    def with_kernels(self, kernel: Any, inverse_temperatures: Float[Array, " r"]) -> "ParallelTempering":
        """The same with other kernels, stacked on a leading axis, and other temperatures."""
        return ParallelTempering(kernel, inverse_temperatures, self.reference)

    def tuner(self, num_steps: int, target_accept: float | None) -> TemperingTuner:
        """What `warmup` tunes it with."""
        return tempering_tuner(self, num_steps, target_accept)

    def init(self, key: PRNGKey, target: Target, position: Position) -> TemperingState:
        """All replicas at `position`.

        Raises:
            TypeError: the state of the inner kernel is no `MHGState`.
            ValueError: a temperature is infinite, and the target has a flat prior.
        """
        everywhere = jax.tree.map(lambda a: jnp.broadcast_to(a, (self.num_replicas, *jnp.shape(a))), position)
        return self.init_replicas(key, target, everywhere)

    def init_replicas(self, key: PRNGKey, target: Target, positions: PyTree) -> TemperingState:
        """Each replica at a position of its own: leaves [R, ...], coldest first. Errors as for `init`."""
        if self.reference and target.log_prior is flat_prior:
            raise ValueError(
                "the last of `inverse_temperatures` is 0, where the law is the prior, but this `Target` has a flat "
                "one: pass `log_prior`, or inverse temperatures that end above 0"
            )
        arrays, rest = eqx.partition(self.kernel, eqx.is_array)

        def one(key: PRNGKey, arrays: Any, beta: Array, position: Position) -> MHGState:
            state = eqx.combine(arrays, rest).init(plain_key(key), target.at_temperature(beta), position)
            if not isinstance(state, MHGState):
                raise TypeError(
                    f"`parallel_tempering` needs a kernel whose state is `MHGState`, such as `hmc()`, but "
                    f"{type(self.kernel).__name__} has {type(state).__name__}"
                )
            return state

        keys = jax.random.split(fast_key(key), self.num_replicas)
        states = map_items(one, keys, arrays, self._betas(target), jax.tree.map(jnp.asarray, positions))
        # Traced temperatures cannot raise: of other ends the draws would have another law.
        ends = (self.inverse_temperatures[0] != 1) | (self.reference & (self.inverse_temperatures[-1] != 0))
        wrong = flag(Status.NONFINITE_INIT, ends)
        machines = jnp.arange(self.num_replicas, dtype=jnp.int32)
        cold = _entry(states.point.position, 0)
        return TemperingState(cold, states.point, machines, jnp.zeros((), jnp.int32), any_bits(states.status) | wrong)

    def step(self, key: PRNGKey, target: Target, state: TemperingState) -> tuple[TemperingState, TemperingInfo]:
        """Moves every replica and exchanges every other pair. Leaves the product of the tempered laws invariant."""
        key_move, key_swap = jax.random.split(fast_key(key))
        points, rates, bits = self._move(key_move, target, state)
        log_ratio, faults = _swap_ratios(self._betas(target), points.log_likelihood)
        pairs = jnp.arange(self.num_replicas - 1, dtype=jnp.int32)
        due = pairs % 2 == state.num_steps % 2
        frozen = is_fatal(state.status)
        bits = bits | jnp.where(frozen, jnp.uint32(0), any_bits(faults, due))
        log_ratio = jnp.where(frozen | is_fatal(bits), -jnp.inf, log_ratio)

        def decide(key: PRNGKey, log_ratio: Array) -> Array:
            return choose(key, Accept(), log_ratio)

        keys = jax.random.split(key_swap, self.num_replicas - 1)
        swapped = map_items(decide, keys, jnp.where(due, log_ratio, -jnp.inf))
        source = _sources(swapped)
        points, machines = _taken(points, source), state.machines[source]

        cold = _entry(points, 0)
        num_steps = state.num_steps + jnp.where(frozen, 0, 1)
        info = TemperingInfo(
            acceptance_rate=rates[0],
            acceptance_rates=rates,
            swap_rates=jnp.exp(jnp.minimum(log_ratio, 0)),
            machines=machines,
            log_likelihood=points.log_likelihood,
            log_density=point_log_density(target, cold),
            divergent=(bits & jnp.uint32(int(Status.DIVERGENT))) != 0,
            status=bits,
        )
        return TemperingState(cold.position, points, machines, num_steps, state.status | bits), info

    def _betas(self, target: Target) -> Float[Array, " r"]:
        """The inverse temperatures of the likelihood: those of a target that is tempered itself are below its own."""
        return self.inverse_temperatures * target.inverse_temperature.astype(self.inverse_temperatures.dtype)

    def _move(
        self, key: PRNGKey, target: Target, state: TemperingState
    ) -> tuple[Point, Float[Array, " r"], UInt32[Array, ""]]:
        """The points after one step of each kernel, their acceptance rates and the bits of all."""
        arrays, rest = eqx.partition(self.kernel, eqx.is_array)

        def one(key: PRNGKey, arrays: Any, beta: Array, point: Point) -> tuple[Point, Array, Array]:
            kernel = eqx.combine(arrays, rest)
            start = MHGState(point, state.status)
            moved, info = kernel.step(plain_key(key), target.at_temperature(beta), start)
            return moved.point, info.acceptance_rate, info.status

        keys = jax.random.split(key, self.num_replicas)
        items = (keys, arrays, self._betas(target), state.points)
        if not (self.reference and target.sample_prior is not None):
            points, rates, bits = map_items(one, *items)
            return points, rates, any_bits(bits)
        points, rates, bits = map_items(one, *jax.tree.map(lambda a: a[:-1], items))
        hot, hot_bits = self._draw(keys[-1], target, _entry(state.points, -1), state.status)
        points = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), points, hot)
        rates = jnp.append(rates, jnp.full_like(rates[:1], jnp.nan))
        return points, rates, any_bits(bits) | hot_bits

    def _draw(
        self, key: PRNGKey, target: Target, old: Point, status: UInt32[Array, ""]
    ) -> tuple[Point, UInt32[Array, ""]]:
        """A draw of the prior; one without a finite density there is not taken, and flagged."""
        key_draw, key_init = jax.random.split(key)
        position = jax.tree.map(
            lambda new, a: jnp.asarray(new, a.dtype), target.draw_prior(plain_key(key_draw)), old.position
        )
        arrays, rest = eqx.partition(self.kernel, eqx.is_array)
        fresh = eqx.combine(_entry(arrays, -1), rest).init(plain_key(key_init), target.at_temperature(0.0), position)
        frozen, bad = is_fatal(status), is_fatal(fresh.status)
        bits = flag(Status.DIVERGENT, bad) | (fresh.status & jnp.uint32(int(Status.POSINF_LOG_WEIGHT)))
        point = jax.tree.map(lambda a, b: jnp.where(frozen | bad, b, a), fresh.point, old)
        return point, jnp.where(frozen, jnp.uint32(0), bits)


def _entry(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda a: a[index], tree)


def _swap_ratios(
    betas: Float[Array, " r"], log_likelihood: Float[Array, " r"]
) -> tuple[Float[Array, " r-1"], UInt32[Array, " r-1"]]:
    """The log acceptance ratio of each pair, never NaN, and the faults that an exchange would meet."""
    betas = betas.astype(log_likelihood.dtype)
    cold, hot = log_likelihood[:-1], log_likelihood[1:]
    after = raised(betas[:-1], hot) + raised(betas[1:], cold)
    before = raised(betas[:-1], cold) + raised(betas[1:], hot)
    # The product of differences does not cancel, as `after - before` of large likelihoods would.
    finite = jnp.isfinite(cold) & jnp.isfinite(hot)
    difference = jnp.where(finite, hot, 0) - jnp.where(finite, cold, 0)
    log_ratio = jnp.where(finite, (betas[:-1] - betas[1:]) * difference, after - before)
    # As in `mhg`: NaN counts as probability zero, and from zero any possible state is accepted.
    impossible_now = jnp.isnan(before) | (before == -jnp.inf)
    log_ratio = jnp.where(impossible_now, jnp.inf, log_ratio)
    log_ratio = jnp.where(jnp.isnan(after) | (after == -jnp.inf), -jnp.inf, log_ratio)
    return log_ratio, flag(Status.DIVERGENT, jnp.isnan(after)) | flag(Status.POSINF_LOG_WEIGHT, after == jnp.inf)


def _sources(swapped: Bool[Array, " pairs"]) -> Int[Array, " pairs+1"]:
    """Where the state at each temperature comes from; pairs that exchange do not overlap."""
    no = jnp.zeros(1, jnp.int32)
    here = swapped.astype(jnp.int32)
    return jnp.arange(swapped.shape[0] + 1, dtype=jnp.int32) + jnp.append(here, no) - jnp.append(no, here)


def _taken(points: Point, source: Int[Array, " r"]) -> Point:
    """The points in another order, with all that is cached of them."""
    return jax.tree.map(lambda a: a[source], points)


def parallel_tempering(
    kernel: Kernel | Sequence[Any], inverse_temperatures: Any = None, *, num_replicas: int | None = None
) -> ParallelTempering:
    r"""Non-reversible parallel tempering: tempered replicas that exchange neighbours, even and odd pairs in turn.

    Leaves the product of the laws $p L^{\beta_r}$ invariant, and so the target for the replica at $\beta = 1$, whose
    position is that of the chain. Steps of warm-up are needed even from an exact draw of the target, since the other
    replicas start there too. With rejection rates $\rho_r$ of the exchanges and states that forget in one step,
    machines make $1 / (2 + 2 \sum_r \rho_r / (1 - \rho_r))$ round trips a step in all (Syed et al. 2022), so about
    $1 / (2 + 2 \Lambda)$ with many replicas, $\Lambda = \sum_r \rho_r$; about $2 \Lambda$ replicas make the most
    round trips for the work. Memory and work are those of R chains.

    Args:
        kernel: what moves the replicas, with state `MHGState`: one kernel for all of them, or one for each, coldest
            first, of the same kind and shapes: `[hmc(0.1), hmc(0.2), ...]`.
        inverse_temperatures: [R], descending from 1 and not below 0; None for `num_replicas` fifth powers of equally
            spaced numbers down to 0 (Friel, Pettitt 2008). The replica at 0 has the law of the prior, and is drawn from
            it independently where the target has `sample_prior`.
        num_replicas: at least 2; None for as many as `inverse_temperatures`, or kernels, or 8.

    Returns:
        A `Kernel` with the array leaves `inverse_temperatures` and those of the kernels. `warmup` tunes the
        temperatures for equal rates of exchange, and step size and matrix of every kernel that is a `TunableKernel`.

    Raises:
        ValueError: temperatures are not descending from 1, there are fewer than two, or counts do not agree, or
            kernels have arrays of several shapes.
        TypeError: `kernel` is neither a kernel nor a sequence of kernels of one kind.
    """
    kernels = tuple(kernel) if isinstance(kernel, Sequence) else None
    for number, one in enumerate((kernel,) if kernels is None else kernels):
        if isinstance(one, type) or not isinstance(one, Kernel):
            name = "kernel" if kernels is None else f"kernel[{number}]"
            raise TypeError(f"`{name}` must be a kernel, with methods `init` and `step`, but is {one!r}: pass `hmc()`")
    if num_replicas is not None:
        num_replicas = whole_number("num_replicas", num_replicas, 2)
    if inverse_temperatures is None:
        count = num_replicas or (8 if kernels is None else len(kernels))
        inverse_temperatures = np.linspace(1, 0, count) ** POWER
    betas = _checked(inverse_temperatures)
    counts = {"num_replicas": num_replicas, "len(kernel)": None if kernels is None else len(kernels)}
    for name, count in counts.items():
        if count not in (None, betas.shape[0]):
            raise ValueError(
                f"`{name}` is {count}, but there are {betas.shape[0]} `inverse_temperatures`: pass one for each replica"
            )
    reference = is_concrete(inverse_temperatures) and float(np.asarray(inverse_temperatures)[-1]) == 0
    return ParallelTempering(_stacked(kernels or (kernel,) * betas.shape[0]), betas, reference)


def _checked(inverse_temperatures: Any) -> Float[Array, " r"]:
    betas = jnp.asarray(inverse_temperatures)
    if not jnp.issubdtype(betas.dtype, jnp.floating) or isinstance(inverse_temperatures, np.ndarray):
        betas = betas.astype(jnp.result_type(float))
    if betas.ndim != 1 or betas.shape[0] < 2:
        raise ValueError(
            f"`inverse_temperatures` has shape {betas.shape}; needed at least two numbers, such as [1, .3, .1, 0]"
        )
    if is_concrete(inverse_temperatures):
        values = np.asarray(inverse_temperatures, np.float64)
        if not (values[0] == 1 and values[-1] >= 0 and np.all(np.diff(values) < 0)):
            raise ValueError(
                f"`inverse_temperatures` must descend from 1 and not below 0, but are {values.tolist()}: sort them, "
                "coldest first"
            )
    return betas


def _stacked(kernels: tuple[Any, ...]) -> Any:
    """One kernel whose arrays have a leading axis."""
    parts = [eqx.partition(jax.tree.map(_array, kernel), eqx.is_array) for kernel in kernels]
    kinds = [(jax.tree.structure(arrays), rest) for arrays, rest in parts]
    # Functions and modules among the leaves are compared by identity or value, as compilation does.
    if any(kind[0] != kinds[0][0] or not eqx.tree_equal(kind[1], kinds[0][1]) for kind in kinds[1:]):
        raise TypeError("`kernel` holds kernels of several kinds: pass kernels that differ in their arrays only")
    shapes = [[leaf.shape for leaf in jax.tree.leaves(arrays)] for arrays, _ in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"`kernel` holds kernels with arrays of several shapes, {shapes}: pass one shape for all")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[arrays for arrays, _ in parts])
    return eqx.combine(stacked, parts[0][1])


def _array(leaf: Any) -> Any:
    """Numbers as arrays: they may differ from kernel to kernel."""
    return jnp.asarray(leaf) if eqx.is_array_like(leaf) and not isinstance(leaf, bool) else leaf
