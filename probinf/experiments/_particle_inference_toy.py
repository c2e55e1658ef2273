r"""The Bernoulli chain: step-level reasoning under a noisy process reward, with exact answers.

A solution has T steps. It is right so far, $c_t = 1$, if it was right before and a coin of probability p falls well:
an error is never mended. A process reward model sees $\text{logit}\,r_t = \pm\mu + \sigma b_t$, the sign that of
$c_t$, with $b_t = \rho b_{t-1} + \sqrt{1 - \rho^2}\,\epsilon_t$: a reward whose errors persist along a solution where
$\rho > 0$. Each problem has its own p, uniform on (.5, .95). Every quantity below is known: coverage and best-of-N for
any N, and for $\rho = 0$ the targets of the filters that weight by $r_t/(1 - r_t)$, $r_t$ or $r_t / r_{t-1}$.

The setting is that of Puri et al. 2025, "A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using
Particle-Based Monte Carlo Methods", with the language model replaced by a coin.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Bool, Float, Int

from probinf import samplers
from probinf.core import FeynmanKac, PRNGKey, ess_below, resample
from probinf.samplers import AbstractScheme, systematic

LOWEST, HIGHEST = 0.5, 0.95  # of p
BEAM_WIDTH = 4
NODES = 200  # for means over p

# Log G_t = a logit r_t + b log r_t - c log r_{t-1}, with r = 1 before the first step.
POTENTIALS: Mapping[str, tuple[float, float, float]] = {
    "odds": (1.0, 0.0, 0.0),
    "prob": (0.0, 1.0, 0.0),
    "ratio": (0.0, 1.0, 1.0),
}


class Setting(NamedTuple):
    """The numbers of the toy.

    Attributes:
        mu, sigma: separation and noise of the reward's logit.
        rho: how much of its noise a step inherits, in [0, 1).
        stop: the chance that a solution is finished after a step, whatever its worth; 0 makes all of length T.
        num_steps: T.
    """

    mu: float = 1.0
    sigma: float = 1.0
    rho: float = 0.0
    stop: float = 0.0
    num_steps: int = 10


INDEPENDENT = Setting()
PERSISTENT = Setting(sigma=1.5, rho=0.9)
FINISHING = Setting(stop=0.15)


class Solutions(NamedTuple):
    """N solutions: whether right so far, whether finished, the standardised noise and the logit of the last reward."""

    correct: Bool[Array, " n"]
    finished: Bool[Array, " n"]
    noise: Float[Array, " n"]
    logit: Float[Array, " n"]


class BernoulliChain(FeynmanKac):
    r"""The chain as a Feynman-Kac model: a step of every solution, weighted by what the reward says of it.

    A finished solution is absorbing: it moves no more and its potential is 1.

    Attributes:
        p: the chance that a step is right.
        mu, sigma, rho, stop: see `Setting`.
        coefficients: a, b, c of `POTENTIALS`.
        absorbing: False weights finished solutions by their last reward at every later step, as its_hub did (issue
            208 there): a defect, here to show what it costs.
        length: T.
    """

    batch = True
    p: Float[Array, ""]
    mu: Float[Array, ""]
    sigma: Float[Array, ""]
    rho: Float[Array, ""]
    stop: Float[Array, ""]
    coefficients: Float[Array, " 3"]
    absorbing: Bool[Array, ""]
    length: int = eqx.field(static=True)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.length

    def init(self, key: PRNGKey, num_particles: int) -> Solutions:
        """The first steps of N solutions."""
        zeros = jnp.zeros(num_particles, self.p.dtype)
        return self._step(key, jnp.ones(num_particles, bool), zeros, jnp.zeros_like(self.rho))

    def mutate(self, key: PRNGKey, t: int | Array, x: Solutions) -> Solutions:
        """One more step of those that are not finished."""
        del t
        moved = self._step(key, x.correct, x.noise, self.rho)
        return jax.tree.map(lambda old, new: jnp.where(x.finished, old, new), x, moved)

    def log_potential(self, t: int | Array, x_prev: Solutions | None, x: Solutions) -> Float[Array, " n"]:
        """What the reward says of the last step."""
        del t
        odds, probability, previous = self.coefficients
        log_g = odds * x.logit + probability * jax.nn.log_sigmoid(x.logit)
        if x_prev is None:
            return log_g
        log_g = log_g - previous * jax.nn.log_sigmoid(x_prev.logit)
        return jnp.where(x_prev.finished & self.absorbing, 0, log_g)

    def _step(self, key: PRNGKey, correct: Array, noise: Array, rho: Array) -> Solutions:
        coin_key, noise_key, stop_key = jax.random.split(key, 3)
        shape, dtype = noise.shape, noise.dtype
        correct = correct & (jax.random.uniform(coin_key, shape, dtype) < self.p)
        noise = rho * noise + jnp.sqrt(1 - rho**2) * jax.random.normal(noise_key, shape, dtype)
        finished = jax.random.uniform(stop_key, shape, dtype) < self.stop
        return Solutions(correct, finished, noise, jnp.where(correct, self.mu, -self.mu) + self.sigma * noise)


def bernoulli_chain(
    setting: Setting, p: float | Array, *, potential: str = "odds", temperature: float = 1.0, absorbing: bool = True
) -> BernoulliChain:
    """The model of one problem.

    Args:
        setting: its numbers.
        p: the chance that a step is right, in [0, 1].
        potential: a name of `POTENTIALS`.
        temperature: log potentials are divided by it.
        absorbing: see `BernoulliChain`.

    Raises:
        ValueError: no such potential.
    """
    if potential not in POTENTIALS:
        raise ValueError(f"`potential` is {potential!r}; needed one of {sorted(POTENTIALS)}")
    dtype = jnp.zeros(()).dtype
    return BernoulliChain(
        p=jnp.asarray(p, dtype),
        mu=jnp.asarray(setting.mu, dtype),
        sigma=jnp.asarray(setting.sigma, dtype),
        rho=jnp.asarray(setting.rho, dtype),
        stop=jnp.asarray(setting.stop, dtype),
        coefficients=jnp.asarray(POTENTIALS[potential], dtype) / temperature,
        absorbing=jnp.asarray(absorbing),
        length=setting.num_steps,
    )


class KeepBest(AbstractScheme):
    """Beam search as a resampling scheme: the best N / M particles go on, M times each (one at least).

    It follows the weights but has no randomness: what comes out is no estimate of the target or of its evidence.

    Attributes:
        width: M, how often each survivor is expanded.
    """

    width: int = eqx.field(static=True, default=BEAM_WIDTH)

    def sample(self, key: PRNGKey, weights: Float[Array, " n"], pinned: bool) -> Int[Array, " n"]:
        """The ancestors; `key` is not used."""
        del key, pinned
        kept = max(1, weights.shape[0] // self.width)
        best = jnp.argsort(-weights)[:kept].astype(jnp.int32)
        return best[jnp.arange(weights.shape[0]) % kept]

    def law(self, weights: Float[Array, " n"], pinned: bool) -> tuple[Int[Array, "1 n"], Float[Array, " 1"]]:
        """The one outcome."""
        return self.sample(jax.random.key(0), weights, pinned)[None], jnp.ones(1, weights.dtype)


class Method(NamedTuple):
    """A way to spend N solutions: the potential, the scheme, and whether it resamples (at every step) at all."""

    potential: str = "odds"
    scheme: AbstractScheme = systematic
    resamples: bool = True


METHODS: Mapping[str, Method] = {
    "best-of-n": Method(resamples=False),
    "odds": Method("odds"),
    "prob": Method("prob"),
    "ratio": Method("ratio"),
    "beam": Method(scheme=KeepBest()),
}


class Found(NamedTuple):
    """What a method found on each of P problems.

    Attributes:
        p: [P], the problems' chances of a right step.
        covered: [P], 1 where at least one of the N solutions in hand at the end is right.
        sampled: [P], the weight of right solutions among them: the accuracy of one drawn at random.
        chosen: [P], 1 where the solution with the highest last reward is right.
        log_evidence: [P].
    """

    p: np.ndarray
    covered: np.ndarray
    sampled: np.ndarray
    chosen: np.ndarray
    log_evidence: np.ndarray


def simulate(
    key: PRNGKey,
    setting: Setting,
    method: str,
    *,
    num_particles: int,
    num_problems: int,
    absorbing: bool = True,
) -> Found:
    """Runs a method on many problems, all in one compiled program.

    Methods that are given the same key see the same problems, and draw the same first steps.

    Args:
        key: PRNG key.
        setting: the numbers of the toy.
        method: a name of `METHODS`.
        num_particles: N.
        num_problems: P.
        absorbing: see `BernoulliChain`.
    """
    potential, scheme, resamples = METHODS[method]
    problem_key, run_key = jax.random.split(key)
    p = jax.random.uniform(problem_key, (num_problems,), minval=LOWEST, maxval=HIGHEST)
    model = bernoulli_chain(setting, 0.0, potential=potential, absorbing=absorbing)
    threshold = jnp.asarray(float(resamples))
    found = _solve_all(jax.random.split(run_key, num_problems), p, model, scheme, threshold, num_particles)
    return Found(np.asarray(p, np.float64), *(np.asarray(values, np.float64) for values in found))


@eqx.filter_jit
def _solve_all(
    keys: Array,
    p: Float[Array, " p"],
    model: BernoulliChain,
    scheme: AbstractScheme,
    threshold: Float[Array, ""],
    num_particles: int,
) -> tuple[Array, Array, Array, Array]:
    def solve(key: PRNGKey, chance: Float[Array, ""]) -> tuple[Array, Array, Array, Array]:
        filter_key, last_key = jax.random.split(key)
        problem = eqx.tree_at(lambda m: m.p, model, chance)
        result = samplers.particle_filter(
            filter_key, problem, num_particles=num_particles, resampling=scheme, ess_threshold=threshold
        )
        weights, correct = result.population.weights, result.population.particles.correct
        # An answer is chosen among those that survive a last resampling.
        survivors = resample(scheme, when=ess_below(threshold))(last_key, result.population)[0].particles
        chosen = survivors.correct[jnp.argmax(survivors.logit)]
        sampled = jnp.sum(jnp.where(correct, weights, 0))
        return jnp.any(survivors.correct), sampled, chosen, result.log_evidence

    return jax.vmap(solve)(keys, p)


class Exact(NamedTuple):
    """The target of a filter: log of its mass, and its probability that the solution is right."""

    log_evidence: np.ndarray
    probability: np.ndarray


def exact_target(setting: Setting, potential: str, p: np.ndarray) -> Exact:
    r"""The target of a potential, for each p.

    With $g_c = E[G \mid c]$ and A, B the masses of unfinished right and wrong solutions, a step is
    $(A, B) \leftarrow (p g_1 A, g_0 (B + (1 - p) A))$, of which the fraction `stop` is finished. The product of ratios
    is the last reward alone.

    Raises:
        ValueError: rewards that depend on each other have no such recursion (unless their product is the last one).
    """
    p = np.asarray(p, np.float64)
    right, wrong = np.ones_like(p), np.zeros_like(p)
    done = np.zeros((2, *p.shape))
    if potential == "ratio":
        step, end = (1.0, 1.0), _mean_weights(setting, potential)
    elif setting.rho == 0:
        step, end = _mean_weights(setting, potential), (1.0, 1.0)
    else:
        raise ValueError(f"`rho` is {setting.rho}: the target of {potential!r} is known for independent rewards only")
    for _ in range(setting.num_steps):
        right, wrong = step[0] * p * right, step[1] * (wrong + (1 - p) * right)
        done += setting.stop * np.stack([right, wrong])
        right, wrong = (1 - setting.stop) * right, (1 - setting.stop) * wrong
    right, wrong = end[0] * (right + done[0]), end[1] * (wrong + done[1])
    return Exact(np.log(right + wrong), right / (right + wrong))


def _mean_weights(setting: Setting, potential: str) -> tuple[float, float]:
    """E G for a right and for a wrong solution; of "ratio", E r."""
    odds, probability, _ = POTENTIALS[potential]
    nodes, weights = _normal_nodes()
    logits = setting.mu * np.array([[1.0], [-1.0]]) + setting.sigma * nodes
    means = np.exp(odds * logits + probability * scipy.special.log_expit(logits)) @ weights
    return float(means[0]), float(means[1])


def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    """Points and weights for means over a standard normal: trapezium, whose error falls faster than any power."""
    nodes = np.linspace(-12, 12, 769)
    density = np.exp(-(nodes**2) / 2)
    return nodes, density / density.sum()


_legendre = functools.cache(np.polynomial.legendre.leggauss)


def mean_over_problems(values: np.ndarray) -> float:
    """The mean over p of values at `problem_nodes(len(values))`."""
    return float(_legendre(values.size)[1] @ values / 2)


def problem_nodes(count: int) -> np.ndarray:
    """Values of p for `mean_over_problems`: Gauss and Legendre, exact for polynomials of degree 2 count - 1."""
    return LOWEST + (HIGHEST - LOWEST) * (_legendre(count)[0] + 1) / 2


def coverage(setting: Setting, num_solutions: int) -> float:
    """P(at least one of N independent solutions is right), a polynomial in p."""
    # Of degree T N in p: beyond that of the nodes for large N, where 1 - (1 - p^T)^N is smooth all the same.
    return mean_over_problems(1 - (1 - _chance(setting, problem_nodes(NODES))) ** num_solutions)


def best_of_n(setting: Setting, num_solutions: int) -> float:
    r"""P(the solution with the highest last reward is right), of N independent ones.

    $E_p \int N q \varphi(z) [q \Phi(z) + (1 - q) \Phi(z + 2\mu/\sigma)]^{N-1} dz$ with $q = P(c_T = 1)$; the
    last reward alone matters, so that $\rho$ does not.
    """
    q = _chance(setting, problem_nodes(NODES))[:, None]
    nodes, weights = _normal_nodes()
    below = q * scipy.special.ndtr(nodes) + (1 - q) * scipy.special.ndtr(nodes + 2 * setting.mu / setting.sigma)
    return mean_over_problems(num_solutions * q[:, 0] * (below ** (num_solutions - 1) @ weights))


def _chance(setting: Setting, p: np.ndarray) -> np.ndarray:
    """P(a solution is right)."""
    lengths = np.arange(1, setting.num_steps)
    early = setting.stop * (1 - setting.stop) ** (lengths - 1)
    last = (1 - setting.stop) ** (setting.num_steps - 1)
    return (p[:, None] ** lengths) @ early + last * p**setting.num_steps


def limit(setting: Setting, potential: str) -> float:
    """The accuracy of a solution drawn from the target, over all problems: where filters of many particles end."""
    return mean_over_problems(exact_target(setting, potential, problem_nodes(NODES)).probability)


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values."""
    return float(values.std(ddof=1) / math.sqrt(values.size))
