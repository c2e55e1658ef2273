r"""Markov chain kernels side by side: what they pay for badly scaled targets, whole calls by the clock, and waiting.

(a) A Gaussian on $R^{10}$ whose principal axes no diagonal metric finds, of growing condition number: effective draws
for a thousand evaluations, and means and variances against the exact ones. (b) Eight schools from a NumPyro model:
posterior means against quadrature, and effective draws for a second of a whole call, against NumPyro's `MCMC.run`.
(c) What chains would lose by waiting for the longest trajectory at every draw, and what interleaved ones lose.

Hoffman, Gelman (2014); Hoffman, Radul, Sountsov (2021); Robnik et al. (2023); Livingstone, Zanella (2022); Neal
(2003, 2011); Phan, Pradhan, Jankowiak (2019); Dance, Glaser, Orbanz, Adams (2025).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC, NUTS

from probinf import samplers
from probinf.core import Draws, Target
from probinf.experiments import _mcmc_shootout_page as page
from probinf.experiments import _mcmc_targets as targets
from probinf.experiments._claims import compare
from probinf.experiments._mcmc_measure import Timed, evaluations, least_ess, losses, timed, uncached, whole
from probinf.experiments._mcmc_shootout_claims import claims as claims
from probinf.experiments._page import Part
from probinf.experiments._workspace import Workspace

BIAS_CONDITION = 10.0
ENERGY_VARIANCES = (5e-4, 2e-3, 1e-2, 5e-2)  # of `mclmc`; the first is its default
LEAST_CHEES = 16  # chains that `chees_hmc` wants
SHORT = 20  # steps of a call that only compiles


class Entry(NamedTuple):
    """A kernel of the first part, and transitions a kept draw: cheap ones make more, of about equal cost together."""

    name: str
    make: Callable[[], Any]
    thin: int = 1


KERNELS = (
    Entry("nuts", samplers.nuts),
    Entry("chees_hmc", samplers.chees_hmc),
    Entry("hmc", samplers.hmc),
    Entry("adjusted_mclmc", samplers.adjusted_mclmc),
    Entry("mala", samplers.mala, 8),
    Entry("barker", samplers.barker, 8),
    Entry("random_walk", samplers.random_walk, 32),
    Entry("slice_sampling", samplers.slice_sampling, 4),
)
BIASED = Entry("mclmc", samplers.mclmc, 8)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
        seed: of every random number.
        conditions: condition numbers, with 100, on which a claim is made.
        num_chains, num_warmup, num_samples: of the Gaussian targets.
        crowds: numbers of chains on eight schools.
        num_draws: steps of warm-up there, and as many draws.
        repeats, peer_repeats: calls of each kind by the clock.
        funnel: whether chains on the funnel are looked at too.
    """

    seed: int = 0
    conditions: tuple[float, ...] = (1.0, 10.0, 100.0)
    num_chains: int = 32
    num_warmup: int = 500
    num_samples: int = 1000
    crowds: tuple[int, ...] = (4, 64)
    num_draws: int = 1000
    repeats: int = 3
    peer_repeats: int = 1
    funnel: bool = False


SCALES: Mapping[str, Config] = {
    "quick": Config(),
    "full": Config(
        conditions=(1.0, 10.0, 100.0, 1000.0),
        num_warmup=1000,
        num_samples=10_000,
        repeats=7,
        peer_repeats=3,
        funnel=True,
    ),
}


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """The three parts in turn."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    first = workspace.part("conditioning", conditioning, keys[0], config)
    second = workspace.part("schools", schools, keys[1], config)
    third = workspace.part("lockstep", lockstep, keys[2], config, first.metrics, second.metrics)
    return {"conditioning": first, "schools": second, "lockstep": third}


def conditioning(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """All kernels on Gaussians of growing condition number."""
    rows, traces, waiting = [], {}, []
    workspace.say("Gaussians: compiling all kernels")
    _compile(jax.random.fold_in(key, len(KERNELS) + 1), config)
    for number, entry in enumerate(KERNELS):
        run_key = jax.random.fold_in(key, number)
        workspace.say(f"Gaussians: {config.num_chains} chains of {entry.name}")
        for place, condition in enumerate(config.conditions):
            call_key = jax.random.fold_in(run_key, place)
            found = _gaussian_call(call_key, entry.make(), config, entry.thin, condition)
            columns = targets.circulant(condition).standardised(found.value.samples)
            rows.append({"kernel": entry.name, "condition": condition} | measure(columns, found, entry.thin))
            if condition == config.conditions[-1]:
                traces[entry.name] = (columns[0, :, 0], rows[-1]["evaluations"] * entry.thin)
                if entry.name == "nuts":
                    waiting = losses(found.value.info["num_steps"])
    metrics = {
        "rows": rows,
        "biased": _biased(jax.random.fold_in(key, len(KERNELS)), config, workspace),
        "bias_condition": BIAS_CONDITION,
        "losses": waiting,
        "conditions": config.conditions,
        "num_chains": config.num_chains,
        "num_warmup": config.num_warmup,
        "num_samples": config.num_samples,
    }
    return Part(metrics, page.conditioning_section(workspace, metrics, traces))


def _compile(key: jax.Array, config: Config) -> None:
    """Short runs of all kernels, two at a time, which fills two cores; nothing is timed meanwhile."""
    entries = (*KERNELS, BIASED)
    short = dataclasses.replace(config, num_warmup=SHORT, num_samples=SHORT)
    for first in range(0, len(entries), 2):
        with contextlib.ExitStack() as stack:
            runs = [
                stack.enter_context(
                    samplers.start_sampling(
                        **_gaussian_run(jax.random.fold_in(key, i), entry.make(), short, entry.thin, BIAS_CONDITION)
                    )
                )
                for i, entry in enumerate(entries[first : first + 2], first)
            ]
            for run in runs:
                whole(run.result())


def _gaussian_run(key: jax.Array, kernel: Any, config: Config, thin: int, condition: float) -> dict[str, Any]:
    """The arguments of a run that starts from exact draws: its chains are independent replicates from the first one."""
    axes = targets.circulant(condition)
    start_key, run_key = jax.random.split(key)
    return {
        "key": run_key,
        "kernel": kernel,
        "target": targets.gaussian(axes),
        "num_samples": config.num_samples,
        "num_warmup": config.num_warmup,
        "num_chains": config.num_chains,
        "initial_position": axes.draw(start_key, config.num_chains),
        "thin": thin,
        "throw": False,
    }


def _gaussian_call(key: jax.Array, kernel: Any, config: Config, thin: int, condition: float) -> Timed:
    options = _gaussian_run(key, kernel, config, thin, condition)
    return timed(lambda: whole(samplers.sample(**options)))


def measure(columns: np.ndarray, found: Timed, thin: int) -> dict[str, Any]:
    """What a run on a standardised Gaussian is worth.

    Args:
        columns: [chains, draws, d], of exact law N(0, I).
        found: the run.
        thin: transitions a draw.
    """
    both = np.concatenate([columns, columns**2], axis=-1)
    num_chains, num_draws, size = both.shape
    truth = np.repeat([0.0, 1.0], size // 2)
    compared = compare(both.mean(axis=1), truth)
    cost, ess = evaluations(found.value), least_ess(both)
    return {
        "ess": ess,
        "evaluations": cost,
        "ess_per_1000": 1000 * ess / (num_chains * num_draws * thin * cost),
        "ess_per_second": ess / found.seconds,
        "seconds": found.seconds,
        "compilations": found.compilations,
        "acceptance": float(np.mean(found.value.info["acceptance_rate"])),
        "variance": compared.mean[size // 2 :],
        "variance_error": compared.standard_error[size // 2 :],
        "worst": compared.worst,
    }


def _biased(key: jax.Array, config: Config, workspace: Workspace) -> list[dict[str, Any]]:
    """`mclmc` at several energy errors: the smallest variance, which is the most wrong, and what it costs."""
    workspace.say(f"Gaussians: {config.num_chains} chains of {BIASED.name}, which is biased")
    rows = []
    for number, wanted in enumerate(ENERGY_VARIANCES):
        kernel = samplers.mclmc(energy_variance=wanted)
        found = _gaussian_call(jax.random.fold_in(key, number), kernel, config, BIASED.thin, BIAS_CONDITION)
        columns = targets.circulant(BIAS_CONDITION).standardised(found.value.samples)
        row = measure(columns, found, BIASED.thin)
        stiffest = {"excess": float(row["variance"][-1]) - 1, "error": float(row["variance_error"][-1])}
        rows.append({"energy_variance": wanted} | stiffest | row)
    return rows


def schools(key: jax.Array, config: Config, workspace: Workspace) -> Part:
    """Eight schools: exact means, and whole calls by the clock."""
    exact = targets.schools_means()
    rows, waiting = [], {}
    for crowd_number, num_chains in enumerate(config.crowds):
        crowd_key = jax.random.fold_in(key, crowd_number)
        kinds = {"nuts": samplers.nuts, "chees_hmc": samplers.chees_hmc}
        for number, (name, make) in enumerate(kinds.items()):
            if name == "chees_hmc" and num_chains < LEAST_CHEES:
                continue
            workspace.say(f"eight schools: {num_chains} chains of {name}")
            call_key = jax.random.fold_in(crowd_key, number)
            calls = [
                _schools_call(jax.random.fold_in(call_key, i), make(), config, num_chains, i)
                for i in range(config.repeats, -1, -1)
            ]
            rows.append({"sampler": name} | measure_schools(calls, num_chains, exact))
            if name == "nuts":
                waiting["probinf"] = losses(calls[-1].value.info["num_steps"])
        workspace.say(f"eight schools: {num_chains} chains of NumPyro's MCMC.run, which compiles at every call")
        peer_key = jax.random.fold_in(crowd_key, len(kinds))
        with uncached():
            calls = [
                _peer_call(jax.random.fold_in(peer_key, i), config, num_chains, i)
                for i in range(config.peer_repeats, -1, -1)
            ]
        rows.append({"sampler": "NumPyro"} | measure_schools(calls, num_chains, exact))
        waiting["NumPyro"] = losses(calls[-1].value.info["num_steps"])
    metrics = {"exact": exact, "rows": rows, "losses": waiting, "num_draws": config.num_draws}
    return Part(metrics, page.schools_section(workspace, metrics))


def _schools_call(key: jax.Array, kernel: Any, config: Config, num_chains: int, seed: int) -> Timed:
    effects, errors = targets.schools_data(seed)
    # A call with seed `repeats` is the first, which compiles: it may be short.
    num_draws = SHORT if seed == config.repeats else config.num_draws
    return timed(
        lambda: whole(
            samplers.sample(
                key,
                kernel,
                Target.from_numpyro(targets.schools_model, effects, errors),
                num_samples=num_draws,
                num_warmup=num_draws,
                num_chains=num_chains,
                throw=False,
            )
        )
    )


def _peer_call(key: jax.Array, config: Config, num_chains: int, seed: int) -> Timed:
    """As users of NumPyro call it: a new object for each run, all chains in one program.

    The first call, which is not counted, is as long as the others: what NumPyro does outside its program is compiled
    for the number of draws.
    """
    effects, errors = targets.schools_data(seed)

    def call() -> Draws:
        mcmc = MCMC(
            NUTS(targets.schools_model),
            num_warmup=config.num_draws,
            num_samples=config.num_draws,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(key, effects, errors, extra_fields=("num_steps", "diverging"))
        samples, fields = mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)
        info = {"num_steps": fields["num_steps"], "divergent": fields["diverging"]}
        found = jax.tree.map(np.asarray, {"samples": samples, "info": info})
        return Draws(found["samples"], found["info"], np.zeros(num_chains, np.uint32))

    return timed(call)


def measure_schools(calls: list[Timed], num_chains: int, exact: np.ndarray) -> dict[str, Any]:
    """Of calls with other data each: the first compiles and does not count, the last has the data of `exact`."""
    effective = [least_ess(targets.schools_quantities(call.value.samples)) for call in calls[1:]]
    columns = targets.schools_quantities(calls[-1].value.samples)
    compared = compare(columns.mean(axis=1), exact)
    return {
        "num_chains": num_chains,
        "ess": float(np.median(effective)),
        "seconds": float(np.median([call.seconds for call in calls[1:]])),
        "first_seconds": calls[0].seconds,
        "ess_per_second": float(
            np.median([ess / call.seconds for ess, call in zip(effective, calls[1:], strict=True)])
        ),
        "compilations": [call.compilations for call in calls[1:]],
        "evaluations": evaluations(calls[-1].value),
        "divergences": int(np.sum(calls[-1].value.info["divergent"])),
        "mean": compared.mean,
        "error": compared.standard_error,
        "worst": compared.worst,
        "bound": compared.bound,
        "holds": compared.holds,
    }


def lockstep(
    key: jax.Array, config: Config, gaussians: Mapping[str, Any], crowds: Mapping[str, Any], workspace: Workspace
) -> Part:
    """What chains lose by waiting, from the records of the other parts, and of the funnel."""
    rows = {
        f"Gaussian, condition {config.conditions[-1]:g}": gaussians["losses"],
        "eight schools": crowds["losses"]["probinf"],
        "eight schools, NumPyro": crowds["losses"]["NumPyro"],
    }
    if config.funnel:
        num_chains = config.crowds[-1]
        workspace.say(f"the funnel: {num_chains} chains of nuts")
        start_key, run_key = jax.random.split(key)
        draws = whole(
            samplers.sample(
                run_key,
                samplers.nuts(),
                targets.funnel(),
                num_samples=config.num_draws,
                num_warmup=config.num_draws,
                num_chains=num_chains,
                initial_position=jax.random.normal(start_key, (num_chains, targets.DIMENSION), jnp.zeros(()).dtype),
                throw=False,
            )
        )
        rows["funnel"] = losses(draws.info["num_steps"])
    metrics = {"rows": rows, "ours": [name for name in rows if "NumPyro" not in name]}
    return Part(metrics, page.lockstep_section(workspace, metrics))
