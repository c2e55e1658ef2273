r"""The diabetes regression again, by `nuts`: a run that ends when its draws are good enough, and one that goes on.

The posterior of `_tour_regression`, as a NumPyro model. Chains are interleaved, so none waits for the longest
trajectory. The run is stopped on R-hat and effective sample size (Vehtari et al. 2021), its means are held against the
closed form, and it is extended with the same chains and kernel.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probinf import samplers
from probinf.core import Draws, Target
from probinf.experiments import _tour_regression as regression
from probinf.experiments._claims import Claim, compare
from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, canvas
from probinf.experiments._mcmc_measure import timed, whole
from probinf.experiments._page import Figure, Part, Section, Table
from probinf.experiments._workspace import Workspace

NUM_CHAINS, MOST_DRAWS = 16, 5000
R_HAT, ESS = 1.01, 2000
SHOWN = "s1"  # the least identified


def run(config: Any, workspace: Workspace) -> Part:
    """Stops, extends, and compares."""
    data = regression.problem()
    exact = regression.solve(data)
    workspace.say(f"stopping: {NUM_CHAINS} chains of nuts until R-hat is {R_HAT} and the ESS {ESS:,}")
    first_key, second_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 3))
    draws = whole(draw(first_key, data, config.num_warmup, workspace))
    found = timed(lambda: draws.extend(second_key, num_samples=3 * draws.num_draws, progress=workspace.progress))
    more = workspace.keep("stopping", found.value)
    names = (*data.names, regression.NOISE)
    metrics = {
        "stopped": draws.attrs["stopped"],
        "num_chains": draws.num_chains,
        "compilations": found.compilations,
        "first": measure(draws, exact),
        "extended": measure(more, exact),
    }
    text = (
        "How many draws are enough? A run can end by itself, once the diagnostics that one would look at say so: here "
        f"R-hat at most {R_HAT} and at least {ESS:,} effective draws of every quantity. What is then too little goes "
        "on with the same chains and the same kernel, without another warm-up and without compiling anything.",
    )
    items = (_errors(workspace, names, regression.stack(more), exact, draws.num_draws), _table(metrics))
    return Part(metrics, Section("Diabetes: nuts, stopped and extended", text, items))


def draw(key: jax.Array, data: regression.Problem, num_warmup: int, workspace: Workspace) -> Draws:
    """NUTS with a dense metric, in JAX's default precision, until the rule holds."""
    dtype = jnp.zeros(()).dtype
    numbers = (jnp.asarray(data.design, dtype), jnp.asarray(data.response, dtype))
    return samplers.sample(
        key,
        samplers.nuts(dense=True),
        Target.from_numpyro(regression.model, *numbers),
        num_samples=MOST_DRAWS,
        num_warmup=num_warmup,
        num_chains=NUM_CHAINS,
        stop=samplers.converged(R_HAT, ESS),
        progress=workspace.progress,
    )


def measure(draws: Draws, exact: regression.Exact) -> dict[str, Any]:
    """The means against the exact ones, every chain a replicate, and the diagnostics."""
    columns = regression.stack(draws)
    found, summary = compare(columns.mean(axis=1), exact.mean), draws.summary()
    return {
        "num_draws": draws.num_draws,
        "r_hat": float(np.max(summary["r_hat"])),
        "ess": float(np.min(np.minimum(summary["ess_bulk"], summary["ess_tail"]))),
        "steps": float(np.mean(draws.info["num_steps"])),
        "largest_error": float(np.max(np.abs(found.mean - exact.mean) / exact.sd)),
        "error": float(np.max(found.standard_error / exact.sd)),
        "worst": found.worst,
        "bound": found.bound,
        "holds": found.holds,
    }


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """What the rule promised, and what became of it."""
    first, more, stopped = metrics["first"], metrics["extended"], metrics["stopped"]
    return (
        Claim(
            "A run that is stopped by its diagnostics has what they promise, and the exact means.",
            f"R-hat at most {R_HAT}, effective sample size at least {ESS:,}; exact means (normal-inverse-gamma)",
            f"{first['num_draws']:,} of {MOST_DRAWS:,} draws a chain; R-hat {_or_nan(first['r_hat']):.4f}, ESS "
            f"{_or_nan(first['ess']):,.0f}; means within {100 * _or_nan(first['largest_error']):.1f} % of a posterior "
            "standard deviation",
            f"bulk and tail ESS; {metrics['num_chains']} chains, each a replicate; {_rule(first)}",
            stopped["reached"] and _or_nan(first["r_hat"]) <= R_HAT and _or_nan(first["ess"]) >= ESS and first["holds"],
        ),
        Claim(
            "Extending it compiles nothing, and the means are the exact ones still.",
            "0 programs; errors fall like the root of the number of draws",
            f"{metrics['compilations']} programs; {more['num_draws']:,} draws a chain, means within "
            f"{100 * _or_nan(more['largest_error']):.1f} % of a posterior standard deviation",
            _rule(more),
            metrics["compilations"] == 0 and more["holds"],
        ),
    )


def _rule(found: Mapping[str, Any]) -> str:
    return f"largest |z| {_or_nan(found['worst']):.2f} (bound {found['bound']:.2f})"


def _errors(
    workspace: Workspace, names: tuple[str, ...], columns: np.ndarray, exact: regression.Exact, stopped_at: int
) -> Figure:
    k = names.index(SHOWN)
    count = np.arange(1, columns.shape[1] + 1)
    running = (np.cumsum(columns[..., k], axis=1) / count - exact.mean[k]) / exact.sd[k]
    together = running.mean(axis=0)
    error = running.std(axis=0, ddof=1) / math.sqrt(columns.shape[0])
    with canvas(height=2.9) as (figure, (axes,)):
        axes.plot(count, running.T, color=MUTED, linewidth=0.4, alpha=0.6)
        axes.fill_between(count, together - 2 * error, together + 2 * error, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(count, together, color=BLUE, label=f"all {columns.shape[0]} chains, ± 2 s.e.")
        axes.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="exact")
        axes.axvline(stopped_at, color=ORANGE, linewidth=1.2, label="stopped")
        axes.plot([], [], color=MUTED, linewidth=0.8, label="each chain")
        axes.set(xlabel="draws a chain", ylabel="error / posterior sd", ylim=(-0.25, 0.25), xlim=(1, count[-1]))
        axes.set(title=f"The mean of {SHOWN} so far")
        axes.legend(ncols=4, loc="upper right")
        caption = "Errors of the running means, in posterior standard deviations; behind the line the run was extended."
        alt = "Thin lines, one a chain, and a narrow band around their mean that closes in on zero."
        return workspace.figure("tour-stopping", figure, caption=caption, alt=alt)


def _table(metrics: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            name,
            f"{found['num_draws']:,}",
            f"{_or_nan(found['r_hat']):.4f}",
            f"{_or_nan(found['ess']):,.0f}",
            f"{found['steps']:.1f}",
            f"{_or_nan(found['largest_error']):.4f}",
            f"{_or_nan(found['error']):.4f}",
        )
        for name, found in (("stopped", metrics["first"]), ("extended", metrics["extended"]))
    )
    columns = (
        "",
        "draws a chain",
        "largest R-hat",
        "smallest ESS",
        "gradients a draw",
        "largest error",
        "largest s.e.",
    )
    caption = f"{metrics['num_chains']} interleaved chains; errors of the 12 means in posterior standard deviations."
    return Table(caption, columns, rows)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
