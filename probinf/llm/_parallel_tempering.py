r"""`parallel_tempering`: chains of whole texts at several powers of the potentials, which exchange their texts.

Rung r has the law $\pi_r \propto p(x) L(x)^{\beta_r}$, $L = \prod_t G_t$, $1 = \beta_0 > \beta_1 > \dots \ge 0$. An
iteration moves every rung by a conditional pass of its own (`conditional_run` with the potentials $G_t^{\beta_r}$),
then exchanges neighbours, the even pairs and the odd pairs in turn, with probability

$$ \min\{1, (L(x_{r+1}) / L(x_r))^{\beta_r - \beta_{r+1}}\} . $$

Both leave the product of all laws invariant. At $\beta = 0$ a pass with N rows is a fresh draw of the base law but for
a chance of 1/N, so that texts which no prefix score would have let through reach the target from below. Swendsen, Wang
(1986); Geyer (1991); non-reversible alternation: Okabe, Kawata, Okamoto, Mikami (2001); Syed, Bouchard-Cote,
Deligiannidis, Doucet (2022).

Evidence by stepping stones (Xie, Lewis, Fan, Kuo, Chen 2011), with all N rows of a pass:
$Z_r / Z_{r+1} = E_{r+1}[L^{\beta_r - \beta_{r+1}}]$.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from probinf.core import PRNGKey, any_bits, categorical, choose, compiled, ess_below, resample, weigh, whole_number
from probinf.core._target import raised
from probinf.llm._conditional import conditional_run
from probinf.llm._generations import Generations
from probinf.llm._generations_batch import GenerationsBatch
from probinf.llm._gibbs import Scheme, When, light, require_traceable
from probinf.llm._lm import LM
from probinf.llm._model import LanguageSteps, Setup
from probinf.llm._options import TextOptions, one_or_several, resampling_of, task_of
from probinf.llm._passes import for_problems, run_passes
from probinf.llm._pooled import NO_EVIDENCE, pooled
from probinf.llm._potential_types import Prompt
from probinf.llm._raised import Raised, log_total
from probinf.llm._reference import Reference, draw_reference
from probinf.llm._run import Run, run_steps
from probinf.samplers import AbstractScheme

RUNGS = "rungs"
STONES = "stepping stones over a Markov chain have no single-run error: repeat the run with other keys"


class Rung(NamedTuple):
    """The text of each rung, leading axis R, and the log of its L, [R]."""

    reference: Reference
    log_total: Float[Array, " r"]


class Iteration(NamedTuple):
    r"""What is kept of an iteration.

    Attributes:
        coldest: the pass at power 1, without caches.
        num_tokens: tokens generated and re-scored at all powers.
        num_scorer_tokens: tokens fed to scorers at all powers.
        status: bits of all powers.
        rates: [R - 1] probability of an exchange of each pair of neighbours, those not due included.
        log_stones: [R - 1] log of the mean of $L^{\beta_r - \beta_{r+1}}$ over the rows of rung r + 1.
    """

    coldest: Run
    num_tokens: Int[Array, ""]
    num_scorer_tokens: Int[Array, ""]
    status: UInt32[Array, ""]
    rates: Float[Array, " pairs"]
    log_stones: Float[Array, " pairs"]


class Start(NamedTuple):
    """What a run starts from: the model, bound to the prompt; a filter and its text at each power; and their cost."""

    model: LanguageSteps
    rung: Rung
    num_tokens: Int[Array, ""]
    num_scorer_tokens: Int[Array, ""]
    status: UInt32[Array, ""]


@one_or_several
def parallel_tempering(
    key: PRNGKey,
    lm: LM,
    prompt: Any,
    *,
    num_particles: int,
    num_iterations: int,
    inverse_temperatures: Sequence[float] = (1.0, 0.6, 0.3, 0.0),
    num_burn_in: int = 0,
    ancestor_sampling: bool = False,
    resampling: str | AbstractScheme = "multinomial",
    ess_threshold: Any = 0.5,
    progress: bool = False,
    throw: bool = True,
    **options: Unpack[TextOptions],
) -> Generations | GenerationsBatch:
    r"""Draws texts from $p \prod_t G_t / Z$ by parallel tempering with conditional particle filters as moves.

    All rungs run at once, in compiled iterations; the prompts of a list one after the other. Ctrl-C keeps the
    iterations that are done, as in `particle_gibbs`.

    Args:
        key: PRNG key.
        lm: the model that writes.
        prompt: a text or token ids, or a list of prompts.
        num_particles: N >= 2 texts of a pass, at every rung.
        num_iterations: iterations that are kept, >= 1.
        inverse_temperatures: powers of the potentials, falling from 1, none below 0. Other values of the same number
            recompile nothing.
        num_burn_in: iterations before, that are not kept.
        ancestor_sampling: as in `particle_gibbs`; here the exchanges renew texts as well.
        resampling: "multinomial" (the default here as in `particle_gibbs`), "systematic", "stratified", "residual",
            "ssp" or a scheme.
        ess_threshold: resamples where the ESS is below this fraction of N.
        progress: whether to show how many iterations are done, on standard error.
        throw: whether a fatal status raises; others give one warning.
        **options: `step`, `max_steps`, `scorer` and the others that `particle_filter` has for texts. The potential must
            be traceable: no function on the host.

    Returns:
        `Generations` of the N times `num_iterations` texts at power 1, or a `GenerationsBatch`. `log_evidence` is that
        of stepping stones where the last power is 0 and neither a mask nor `base="model"` gives p another mass than 1;
        it is consistent as iterations grow. `records["swap_rate"]` holds the mean rate of exchange of each pair of
        neighbours: far from 0 everywhere, or take more powers.

    Raises:
        InferenceError: a fatal fault, with `throw=True`.
        ValueError, TypeError: a bad argument.
    """
    powers = _powers(inverse_temperatures)
    task = task_of(lm, prompt, dict(options))
    require_traceable(task, "parallel_tempering")
    setup = eqx.tree_at(lambda s: s.potential, task.setup, Raised(task.setup.potential, jnp.ones(())))
    num_particles = whole_number("num_particles", num_particles, 2)
    burn_in = whole_number("num_burn_in", num_burn_in, 0)
    kept = whole_number("num_iterations", num_iterations, 1)
    if burn_in + kept < 2:
        raise ValueError(
            "`num_iterations` is 1 without `num_burn_in`, and powers exchange their texts after an iteration, so that "
            "no exchange would be seen: take at least 2 of both together"
        )
    drawing, began = resampling_of(resampling, ess_threshold), time.perf_counter()
    when = ess_below(drawing.threshold)
    proper = powers[-1] == 0 and task.setup.mask is None and task.setup.base == "proposal"
    settings = {
        "num_particles": num_particles,
        "num_iterations": kept,
        "num_burn_in": burn_in,
        "ancestor_sampling": ancestor_sampling,
        "inverse_temperatures": powers.tolist(),
        **drawing.settings,
    }

    def one(key: PRNGKey, index: int) -> Generations:
        start_key, loop_key = jax.random.split(key)
        rungs, prompt = jnp.asarray(powers, float), task.prompt(index)
        start = _start(start_key, setup, prompt, rungs, drawing.scheme, when, num_particles=num_particles)
        ladder = Ladder(start.model, rungs, drawing.scheme, when, num_particles, ancestor_sampling)
        done = run_passes(loop_key, ladder, start.rung, burn_in, kept, name="parallel_tempering", progress=progress)
        found: Iteration = done.records
        later: Iteration = jax.tree.map(lambda leaf: leaf[burn_in:], found)
        return pooled(
            task,
            index,
            later.coldest,
            method="parallel_tempering",
            scheme=drawing.name,
            tokens_used=int(np.sum(found.num_tokens) + start.num_tokens),
            scorer_tokens_used=int(np.sum(found.num_scorer_tokens) + start.num_scorer_tokens),
            seconds=time.perf_counter() - began,
            status=int(np.bitwise_or.reduce(found.status)) | int(start.status) | done.status,
            settings=settings,
            records={"swap_rate": np.mean(later.rates, axis=0), "inverse_temperatures": powers},
            log_evidence=_stepping_stones(later.log_stones) if proper else float("nan"),
            note=STONES if proper else NO_EVIDENCE,
        )

    result = for_problems(key, task, one)
    return result.check() if throw else result


@compiled
def _start(
    key: PRNGKey,
    setup: Setup,
    prompt: Prompt,
    powers: Float[Array, " r"],
    scheme: Scheme,
    when: When,
    *,
    num_particles: int,
) -> Start:
    model = setup.model(prompt, axis_name=RUNGS)

    def begin(key: PRNGKey, power: Array) -> tuple[Run, Rung]:
        run_key, draw_key = jax.random.split(key)
        rule = resample(scheme, when=when)
        run = run_steps(run_key, _at_power(model, power), rule, num_particles=num_particles)
        return light(run), _choice(draw_key, run)

    first, rung = jax.vmap(begin, axis_name=RUNGS)(jax.random.split(key, powers.shape[0]), powers)
    records = first.records
    return Start(
        model, rung, jnp.sum(records.step_tokens), jnp.sum(records.scorer_tokens), any_bits(first.population.status)
    )


class Ladder(eqx.Module):
    """One iteration: `(key, index, rung) -> (rung, Iteration)`, a step of the run driver.

    Attributes:
        model: bound to the prompt, its potential a `Raised`.
        powers: of the rungs.
        scheme: a resampling scheme.
        when: `population -> bool`, whether to resample.
        num_particles: N.
        ancestor_sampling: whether the references' pasts are renewed.
    """

    model: LanguageSteps
    powers: Float[Array, " r"]
    scheme: Scheme
    when: When
    num_particles: int = eqx.field(static=True)
    ancestor_sampling: bool = eqx.field(static=True)

    def __call__(self, key: PRNGKey, index: Int[Array, ""], rung: Rung) -> tuple[Rung, Iteration]:
        """Moves every rung by a pass, then exchanges neighbours: even pairs and odd pairs in turn."""
        move_key, swap_key = jax.random.split(key)
        keys = jax.random.split(move_key, self.powers.shape[0])
        above = jnp.concatenate([self.powers[:1], self.powers[:-1]])
        runs, moved, stones = jax.vmap(self._move, axis_name=RUNGS)(keys, self.powers, above, rung.reference)
        order, rates = exchange(swap_key, moved.log_total, self.powers, index % 2)
        led = runs.population.context
        return jax.tree.map(lambda leaf: leaf[order], moved), Iteration(
            coldest=jax.tree.map(lambda leaf: leaf[0], runs),
            num_tokens=jnp.sum(runs.records.step_tokens) + jnp.sum(led.num_tokens),
            num_scorer_tokens=jnp.sum(runs.records.scorer_tokens) + jnp.sum(led.num_scorer_tokens),
            status=any_bits(runs.population.status),
            rates=rates,
            log_stones=stones[1:],
        )

    def _move(
        self, key: PRNGKey, power: Array, colder: Array, reference: Reference
    ) -> tuple[Run, Rung, Float[Array, ""]]:
        run_key, draw_key = jax.random.split(key)
        run = conditional_run(
            run_key,
            _at_power(self.model, power),
            reference,
            num_particles=self.num_particles,
            scheme=self.scheme,
            when=self.when,
            ancestor_sampling=self.ancestor_sampling,
        )
        total = log_total(run.population.particles.potential_state)
        log_weights = run.population.log_weights
        gain = raised((colder - power).astype(total.dtype), total).astype(log_weights.dtype)
        stone = weigh(log_weights + gain).log_mean - weigh(log_weights).log_mean
        return light(run), _choice(draw_key, run), stone


def _at_power(model: LanguageSteps, power: Float[Array, ""]) -> LanguageSteps:
    return eqx.tree_at(lambda m: m.potential.inverse_temperature, model, power)


def _choice(key: PRNGKey, run: Run) -> Rung:
    rows = run.population.particles
    reference, slot = draw_reference(key, rows, run.population.log_weights)
    return Rung(reference, log_total(rows.potential_state)[slot])


def exchange(
    key: PRNGKey, log_totals: Float[Array, " r"], powers: Float[Array, " r"], parity: Int[Array, ""] | int
) -> tuple[Int[Array, " r"], Float[Array, " pairs"]]:
    """Exchanges neighbours: which rung each rung's text comes from, and the probabilities of all pairs.

    Law: the product of the laws of all rungs is invariant.

    Args:
        key: PRNG key.
        log_totals: log L of each rung's text; -inf where it is impossible, at power 0 only.
        powers: of the rungs.
        parity: 0 for the pairs (0, 1), (2, 3), ..., 1 for the others.
    """
    difference = (powers[:-1] - powers[1:]).astype(log_totals.dtype)
    log_ratio = difference * (log_totals[1:] - log_totals[:-1])
    rates = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio), 0))
    pairs = jnp.arange(rates.shape[0], dtype=jnp.int32)
    due = pairs % 2 == parity
    chances = jnp.stack([jnp.where(due, 1 - rates, 1), jnp.where(due, rates, 0)], axis=1)
    accepted: Bool[Array, " pairs"] = choose(key, categorical, chances) > 0
    up = jnp.concatenate([accepted, jnp.zeros(1, bool)]).astype(jnp.int32)
    return jnp.arange(up.shape[0], dtype=jnp.int32) + up - jnp.roll(up, 1), rates


def _stepping_stones(log_stones: Any) -> float:
    """The sum over neighbours of the log of the mean over iterations."""
    stones = np.asarray(log_stones, np.float64)
    top = np.max(stones, axis=0, initial=-np.inf)
    if not np.all(np.isfinite(top)):
        return float("nan") if np.any(np.isnan(stones)) else float("-inf")
    return float(np.sum(top + np.log(np.mean(np.exp(stones - top), axis=0))))


def _powers(inverse_temperatures: Sequence[float]) -> np.ndarray:
    powers = np.asarray(inverse_temperatures, np.float64)
    falls = powers.ndim == 1 and powers.size >= 2 and powers[0] == 1 and powers[-1] >= 0 and np.all(np.diff(powers) < 0)
    if not falls:
        raise ValueError(
            f"`inverse_temperatures` is {inverse_temperatures!r}; needed at least two numbers that fall from 1 and "
            "stay at 0 or above, such as (1.0, 0.6, 0.3, 0.0)"
        )
    return powers
