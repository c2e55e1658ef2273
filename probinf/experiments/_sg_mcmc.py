r"""Stochastic gradient samplers, whose bias is known exactly: that of the step, of the batches and of the temperature.

(a) All data: the variance of `sgld` is $1 / (1 - \epsilon h / 2)$ times that of the posterior along an eigenvector of
precision h, that of `sghmc` $1 / (1 - \epsilon^2 h / (4 - 2 \epsilon \gamma))$ times. (b) Batches: their noise adds the
covariance that `_sg_mcmc_exact` solves for; control variates at the mode take most of it away. (c) Cold posteriors: T
times the variance, with all data; batches have a temperature of their own. (d) A preconditioner without its correction
term: another law, however small the step.

Welling, Teh (2011); Chen, Fox, Guestrin (2014); Li et al. (2016); Baker et al. (2019); cold posteriors: Wenzel et al.
(2020).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probinf import samplers
from probinf.core import Target
from probinf.experiments import _sg_mcmc_exact as exact
from probinf.experiments import _sg_mcmc_page as page
from probinf.experiments._claims import compare
from probinf.experiments._page import Part
from probinf.experiments._sg_mcmc_claims import claims as claims
from probinf.experiments._workspace import Workspace

STEPS = (1.0, 0.5, 0.25, 0.125)  # times the largest precision
FRICTION_STEPS = (1.0, 0.7, 0.5, 0.35)  # times its root: below, the bias is less than its error
STEP = 0.25  # of the parts on batches and temperatures
BATCHES = (4, 12, 24, 48)
TEMPERATURES = (1.0, 0.3, 0.1, 0.03, 0.01)
COLD_BATCH, COLD_STEP = 12, 0.0625
PRECONDITIONED_STEPS = (0.4, 0.2, 0.1)
REGULARISATION = 1.0
FORGOTTEN = 8  # relaxation times before anything is counted


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
        seed: of every random number.
        num_chains: independent chains of every run with batches; their spread tells the errors.
        num_whole: of the runs on the bias of the step, whose gradients are cheap.
        num_times: length of a chain in relaxation times of the slowest direction.
    """

    seed: int = 0
    num_chains: int = 1024
    num_whole: int = 4096
    num_times: int = 20


SCALES: Mapping[str, Config] = {"quick": Config(), "full": Config(num_chains=8192, num_whole=16384, num_times=300)}


@eqx.filter_jit
def _moments(
    key: Array, kernel: samplers.StochasticGradient, target: Target, starts: Array, centre: Array, first: Any, last: Any
) -> Array:
    """Means over steps `first .. last - 1` of x - centre and of its outer product, of each chain: [chains, d + d^2]."""
    num = starts.shape[0]
    init_key, run_key = jax.random.split(key)
    states = jax.vmap(lambda k, x: kernel.init(k, target, x))(jax.random.split(init_key, num), starts)

    def body(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        states, sums = carry
        keys = jax.random.split(jax.random.fold_in(run_key, i), num)
        states, _ = jax.vmap(lambda k, s: kernel.step(k, target, s))(keys, states)
        x = states.position - centre[None]
        seen = jnp.concatenate([x, (x[:, :, None] * x[:, None, :]).reshape(num, -1)], axis=1)
        return states, sums + jnp.where(i >= first, seen, 0)

    sums = jnp.zeros((num, centre.size * (1 + centre.size)), starts.dtype)
    states, sums = jax.lax.fori_loop(jnp.zeros_like(last), last, body, (states, sums))
    # A step that was not taken would not be one of the recursion.
    sums = jnp.where((states.status == 0)[:, None], sums, jnp.nan)
    return sums / (last - first).astype(sums.dtype)


def moments(
    key: Array,
    kernel: samplers.StochasticGradient,
    target: Target,
    problem: exact.Regression,
    rate: float,
    num_chains: int,
    num_times: int,
) -> np.ndarray:
    """Of chains that start at exact draws, and relax by `rate` a step: [chains, d + d^2], float64."""
    start_key, run_key = jax.random.split(key)
    z = np.asarray(jax.random.normal(start_key, (num_chains, problem.mean.size)), np.float64)
    starts = problem.mean + z @ np.linalg.cholesky(problem.covariance).T
    first = math.ceil(FORGOTTEN / rate)
    last = first + math.ceil(num_times / rate)
    numbers = (jnp.asarray(starts, jnp.float32), jnp.asarray(problem.mean, jnp.float32))
    found = _moments(run_key, kernel, target, *numbers, jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32))
    return np.asarray(found, np.float64)


def measure(found: np.ndarray, covariance: np.ndarray, problem: exact.Regression, scale: float = 1.0) -> dict[str, Any]:
    """Every mean and second moment against its exact value, and variances along the eigenvectors of the precision.

    Args:
        found: [chains, d + d^2].
        covariance: [d, d], exact, of the sampler.
        problem: the regression.
        scale: variances are told in units of `scale` times those of the posterior.
    """
    size = problem.mean.size
    compared = compare(_each_once(found, size), _each_once(np.append(np.zeros(size), covariance)[None], size)[0])
    rates, vectors = np.linalg.eigh(problem.precision)
    second = found[:, size:].reshape(-1, size, size)
    along = np.einsum("di,cde,ei->ci", vectors, second, vectors) * rates / scale
    return {
        "ratio": along.mean(axis=0),
        "ratio_error": along.std(axis=0, ddof=1) / math.sqrt(along.shape[0]),
        "exact": np.einsum("di,de,ei->i", vectors, covariance, vectors) * rates / scale,
        "worst": compared.worst,
        "bound": compared.bound,
        "holds": compared.holds,
    }


def _each_once(values: np.ndarray, size: int) -> np.ndarray:
    """Means, and entries on and above the diagonal."""
    rows, columns = np.triu_indices(size)
    return np.concatenate([values[:, :size], values[:, size:].reshape(-1, size, size)[:, rows, columns]], axis=1)


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """The four parts in turn."""
    keys = jax.random.split(jax.random.key(config.seed), 4)
    parts = {"steps": steps, "batches": batches, "cold": cold, "preconditioned": preconditioned}
    return {
        name: workspace.part(name, part, key, config) for (name, part), key in zip(parts.items(), keys, strict=True)
    }


def steps(key: Array, config: Config, workspace: Workspace) -> Part:
    """The bias of the step, with all data."""
    chains = (config.num_whole, config.num_times)
    problem = exact.regression()
    slow, fast = problem.rates()[0], problem.rates()[-1]
    whole, gamma = exact.target(problem, exact.NUM_ROWS), math.sqrt(slow)
    rows: dict[str, list[dict[str, Any]]] = {"sgld": [], "sghmc": []}
    for number, (relative, other) in enumerate(zip(STEPS, FRICTION_STEPS, strict=True)):
        step = relative / fast
        workspace.say(f"all data: sgld with steps of {step:.3g}")
        kernel, covariance = samplers.sgld(step), exact.stationary(problem, exact.langevin(step))
        found = moments(jax.random.fold_in(key, 2 * number), kernel, whole, problem, step * slow, *chains)
        rows["sgld"].append({"step": step} | measure(found, covariance, problem))
        step = other / math.sqrt(fast)
        workspace.say(f"all data: sghmc with steps of {step:.3g}")
        kernel = samplers.sghmc(step, friction=gamma)
        covariance = exact.stationary(problem, exact.friction(step, gamma))
        found = moments(jax.random.fold_in(key, 2 * number + 1), kernel, whole, problem, step * gamma / 2, *chains)
        rows["sghmc"].append({"step": step} | measure(found, covariance, problem))
    metrics = {"rows": rows, "num_chains": config.num_whole, "rates": problem.rates()}
    return Part(metrics, page.steps_section(workspace, metrics))


def batches(key: Array, config: Config, workspace: Workspace) -> Part:
    """What the noise of batches adds, with and without control variates."""
    chains = (config.num_chains, config.num_times)
    problem = exact.regression()
    step = STEP / problem.rates()[-1]
    rows: dict[str, list[dict[str, Any]]] = {"plain": [], "control variates": []}
    for kind, name in enumerate(rows):
        for number, size in enumerate(BATCHES):
            workspace.say(f"batches of {size} of {exact.NUM_ROWS} rows, {name}")
            target = exact.target(problem, size, control_variates=bool(kind))
            covariance = exact.stationary(problem, exact.langevin(step), size, control_variates=bool(kind))
            run_key = jax.random.fold_in(key, 10 * kind + number)
            found = moments(run_key, samplers.sgld(step), target, problem, step * problem.rates()[0], *chains)
            rows[name].append({"batch_size": size} | measure(found, covariance, problem))
    metrics = {"rows": rows, "num_chains": config.num_chains, "num_rows": exact.NUM_ROWS, "step": step}
    return Part(metrics, page.batches_section(workspace, metrics))


def cold(key: Array, config: Config, workspace: Workspace) -> Part:
    """Variances at low temperatures, with all data and with batches."""
    chains = (config.num_chains, config.num_times)
    problem = exact.regression()
    step = COLD_STEP / problem.rates()[-1]
    rows: dict[str, list[dict[str, Any]]] = {"all data": [], "batches": []}
    for kind, (name, size) in enumerate(zip(rows, (exact.NUM_ROWS, COLD_BATCH), strict=True)):
        target = exact.target(problem, size)
        for number, temperature in enumerate(TEMPERATURES):
            workspace.say(f"temperature {temperature:g}, {name}")
            covariance = exact.stationary(problem, exact.langevin(step, temperature), size)
            run_key = jax.random.fold_in(key, 10 * kind + number)
            kernel = samplers.sgld(step, temperature=temperature)
            found = moments(run_key, kernel, target, problem, step * problem.rates()[0], *chains)
            rows[name].append({"temperature": temperature} | measure(found, covariance, problem, temperature))
    metrics = {"rows": rows, "num_chains": config.num_chains, "batch_size": COLD_BATCH, "step": step}
    return Part(metrics, page.cold_section(workspace, metrics))


def _normal(x: Array) -> Array:
    return -0.5 * jnp.sum(x * x)


def preconditioned(key: Array, config: Config, workspace: Workspace) -> Part:
    """A preconditioner that follows the gradient, without the term that its change asks for: N(0, 1), all data."""
    chains = (config.num_whole, config.num_times)
    problem = exact.Regression(np.zeros((0, 1)), np.zeros(0), np.zeros(1), np.eye(1))
    rows = []
    for number, step in enumerate(PRECONDITIONED_STEPS):
        workspace.say(f"preconditioned, steps of {step:g}")
        kernel = samplers.preconditioned_sgld(step, decay=0.0, regularisation=REGULARISATION)
        variance = exact.preconditioned_variance(step, REGULARISATION)
        # At x the rate of relaxation is step / (1 + |x|).
        found = moments(jax.random.fold_in(key, number), kernel, Target(_normal), problem, step / 3, *chains)
        rows.append({"step": step} | measure(found, np.full((1, 1), variance), problem))
    limit = exact.preconditioned_limit(REGULARISATION)
    metrics = {"rows": rows, "num_chains": config.num_whole, "limit": limit}
    return Part(metrics, page.preconditioned_section(workspace, metrics))
