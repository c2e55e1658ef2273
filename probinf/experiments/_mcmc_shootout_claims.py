"""The claims of the experiment on Markov chain kernels: a pure function of its metrics."""

import math
from collections.abc import Mapping
from typing import Any

from probinf.experiments._claims import Claim, below, student_bound

HARD = 100.0  # the condition number on which claims are made
LEAST_GAIN = 5.0  # of nuts over a random walk, effective draws for an evaluation
LARGEST_BIAS = 0.1  # of the smallest variance by `mclmc` with its default energy error
LEAST_SPEEDUPS = {4: 1.5, 64: 3.0}
LARGEST_SHARE = 0.5  # of what lockstep wastes, that interleaved chains may waste


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """What the runs say, each with its rule."""
    gaussians, crowds = metrics["conditioning"], metrics["schools"]
    return (
        _exact(gaussians),
        _gain(gaussians),
        _bias(gaussians),
        _means(crowds),
        *(_speed(crowds, num_chains, least) for num_chains, least in LEAST_SPEEDUPS.items()),
        _compilations(gaussians, crowds),
        _waiting(metrics["lockstep"]),
    )


def _exact(found: Mapping[str, Any]) -> Claim:
    rows = found["rows"]
    size = 2 * len(rows[0]["variance"])
    bound = student_bound(size * len(rows), found["num_chains"])
    worst = max(rows, key=lambda row: _or(row["worst"], math.inf))
    largest = max(abs(_or(value, math.inf) - 1) for row in rows for value in row["variance"])
    kernels = len({row["kernel"] for row in rows})
    return Claim(
        f"{kernels} kernels that leave their target invariant find its means and variances, however badly scaled.",
        f"0 and 1 along each of {size // 2} principal axes, exact",
        f"largest |z| {_or(worst['worst']):.1f} ({worst['kernel']}, condition {worst['condition']:g}); variances "
        f"within {100 * largest:.1f} %",
        f"{len(rows)} runs of {found['num_chains']} chains, each chain a replicate; largest of {size * len(rows)} |z| "
        f"at most {bound:.1f}, which Student's t exceeds with probability 1e-6",
        all(below(row["worst"], bound) for row in rows),
    )


def _gain(found: Mapping[str, Any]) -> Claim:
    def of(kernel: str) -> float:
        (row,) = (row for row in found["rows"] if row["kernel"] == kernel and row["condition"] == HARD)
        return _or(row["ess_per_1000"])

    nuts, walk = of("nuts"), of("random_walk")
    gain = nuts / walk if walk > 0 else math.nan
    return Claim(
        f"At a condition number of {HARD:g} a gradient is worth many evaluations of the density.",
        "trajectories cost the root of the condition number, random walks the number itself (Neal 2011)",
        f"nuts {nuts:.3g}, random walk {walk:.2g} effective draws for 1000 gradients or evaluations: {gain:.0f} times",
        f"smallest bulk ESS of the principal axes and their squares; at least {LEAST_GAIN:g} times, for a gradient "
        "costs 2 to 4 evaluations",
        below(LEAST_GAIN, gain),
    )


def _bias(found: Mapping[str, Any]) -> Claim:
    rows = found["biased"]
    bound = student_bound(1, found["num_chains"])
    excess, error = ([_or(row[name]) for row in rows] for name in ("excess", "error"))
    sure = abs(excess[-1]) / error[-1] if error[-1] > 0 else math.nan
    return Claim(
        "Without its Metropolis correction `mclmc` is biased, and by its energy error one chooses by how much.",
        "bias of the order of the square of the step (Robnik et al. 2023); none at 0",
        f"the smallest variance off by {', '.join(f'{100 * value:+.1f}' for value in excess)} % at energy variances "
        f"{', '.join(format(row['energy_variance'], 'g') for row in rows)}",
        f"condition {found['bias_condition']:g}; the last is off by more than {bound:.1f} standard errors "
        f"({sure:.1f}), the first by at most {100 * LARGEST_BIAS:g} % and as many",
        below(bound, sure) and below(abs(excess[0]), LARGEST_BIAS + bound * error[0]),
    )


def _means(found: Mapping[str, Any]) -> Claim:
    most = max(row["num_chains"] for row in found["rows"])
    rows = [row for row in found["rows"] if row["num_chains"] == most and row["sampler"] != "NumPyro"]
    exact = found["exact"]
    return Claim(
        "On eight schools the posterior means are those of quadrature.",
        f"mu {exact[0]:.4f}, tau {exact[1]:.4f}, school 1 {exact[2]:.4f}, exact",
        "; ".join(f"{row['sampler']} " + ", ".join(f"{_or(value):.3f}" for value in row["mean"][:3]) for row in rows),
        f"{most} chains, each a replicate; largest |z| of {len(exact)}: "
        + ", ".join(f"{_or(row['worst']):.2f}" for row in rows)
        + f" (bound {rows[0]['bound']:.2f} each)",
        all(row["holds"] for row in rows),
    )


def _speed(found: Mapping[str, Any], num_chains: int, least: float) -> Claim:
    rates = {row["sampler"]: _or(row["ess_per_second"]) for row in found["rows"] if row["num_chains"] == num_chains}
    ours, theirs = rates.get("nuts", math.nan), rates.get("NumPyro", math.nan)
    ratio = ours / theirs if theirs > 0 else math.nan
    draws = f"{found['num_draws']:,} + {found['num_draws']:,}"
    return Claim(
        f"With {num_chains} chains a whole call of nuts gives at least {least:g} times NumPyro's effective draws a "
        "second.",
        f"at least {least:g}; NumPyro's `MCMC.run` compiles anew at every call",
        f"{ours:,.0f} and {theirs:,.0f} a second: {ratio:.1f} times",
        f"eight schools, {draws} draws a chain, second calls and later; smallest bulk ESS of {len(found['exact'])} "
        "quantities over wall time on this machine",
        below(least, ratio),
    )


def _compilations(gaussians: Mapping[str, Any], crowds: Mapping[str, Any]) -> Claim:
    ours = [row["compilations"] for row in (*gaussians["rows"], *gaussians["biased"])]
    ours += [count for row in crowds["rows"] if row["sampler"] != "NumPyro" for count in row["compilations"]]
    theirs = [count for row in crowds["rows"] if row["sampler"] == "NumPyro" for count in row["compilations"]]
    return Claim(
        "A second call with new data of the same shape compiles nothing.",
        "0",
        f"{sum(ours)} programs in {len(ours)} calls; NumPyro {sum(theirs) / max(1, len(theirs)):.0f} a call",
        "compilations that JAX reports during the calls, each with data of its own",
        sum(ours) == 0,
    )


def _waiting(found: Mapping[str, Any]) -> Claim:
    rows = {name: rows[-1] for name, rows in found["rows"].items() if name in found["ours"]}
    pairs = [(_or(row["lockstep"]), _or(row["interleaved"])) for row in rows.values()]
    return Claim(
        "Interleaved chains waste less by waiting than chains in lockstep would.",
        "lockstep costs the sum of maxima, chains on their own the maximum of sums (Dance et al. 2025)",
        "; ".join(
            f"{name}, {row['num_chains']} chains: {one:.2f} and {other:.2f} times the mean work"
            for (name, row), (one, other) in zip(rows.items(), pairs, strict=True)
        ),
        f"from the recorded trajectories; what is over 1 at most {LARGEST_SHARE:g} times that of lockstep, on each",
        all(below(other - 1, LARGEST_SHARE * (one - 1)) for one, other in pairs),
    )


def _or(value: float | None, other: float = math.nan) -> float:
    return other if value is None else float(value)
