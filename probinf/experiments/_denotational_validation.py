"""Experiment `denotational-validation`: every block keeps its law, and planted faults do not.

The blocks of the library are transformations of measures (Scibior et al. 2018). Each has a certificate: its law, by
exact enumeration where its choices are finite, by calibrated tests where they are not. What certificates are worth is
measured by faults of one line, planted in the library's own source.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probinf.experiments._certificates import CERTIFICATES
from probinf.experiments._claims import Claim, below
from probinf.experiments._page import Part, Section, Table
from probinf.experiments._planted_bug import PlantedBug
from probinf.experiments._planted_bugs import ALGORITHM_BUGS, JUMP_BUGS, PART_BUGS
from probinf.experiments._planted_bugs_kernels import KERNEL_BUGS, MCMC_BUGS
from probinf.experiments._planting import Verdict, run_certificate, run_planted
from probinf.experiments._processes import in_processes
from probinf.experiments._workspace import Workspace

BUGS: Mapping[str, tuple[PlantedBug, ...]] = {
    "kernels": KERNEL_BUGS,
    "mcmc": MCMC_BUGS,
    "jumps": JUMP_BUGS,
    "parts": PART_BUGS,
    "algorithms": ALGORITHM_BUGS,
}
LEAST_SHARE = 38 / 40
LARGEST_RATE = 1e-3


@dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
        seed: names the run only: certificates have seeds of their own, so that they say the same everywhere.
        every: of the planted faults of a kind, each so many-th is tried.
        blocks: of the certificates, each so many-th is run.
        variants: whether blocks are certified in every variant (those named after a comma).
        num_processes: how many run at once.
    """

    seed: int = 0
    every: int = 12
    blocks: int = 3
    variants: bool = False
    num_processes: int = 2


SCALES: Mapping[str, Config] = {"quick": Config(), "full": Config(every=1, blocks=1, variants=True)}


def run(config: Config, workspace: Workspace) -> dict[str, Part]:
    """The certificates, then the faults of each kind."""
    with in_processes(config.num_processes) as each:
        parts = {"certificates": workspace.part("certificates", _certificates, config, each)}
        for kind, bugs in BUGS.items():
            chosen = bugs if config.every == 1 else tuple(bug for bug in bugs[:: config.every] if not bug.survives)
            parts[kind] = workspace.part(kind, _planted, kind, chosen, each)
    return parts


def _certificates(config: Config, each: Callable[..., list[Any]], workspace: Workspace) -> Part:
    names = [name for name in CERTIFICATES if config.variants or "," not in name][:: config.blocks]
    workspace.say(f"{len(names)} certificates")
    rows = each(run_certificate, names)
    metrics = {
        "num": len(rows),
        "failed": [row.name for row in rows if not row.passed],
        "num_checks": sum(row.num_checks for row in rows),
        "false_alarm_rate": sum(row.false_alarm_rate for row in rows),
        "largest_kernel_error": float(np.max([row.kernel_error for row in rows])),
        "largest_algorithm_error": float(np.max([row.algorithm_error for row in rows])),
    }
    table = Table(
        "Certificates: a block, its checks, and the check that came nearest to its bound.",
        ("block", "checks", "nearest", "found / bound", "false alarms", "holds?"),
        tuple(
            (
                row.name,
                str(row.num_checks),
                row.nearest,
                f"{row.share:.2g}",
                f"{row.false_alarm_rate:.0e}",
                _mark(row.passed),
            )
            for row in rows
        ),
    )
    text = (
        "A block is a transformation of measures, and its law says which. Where all its random choices have finitely "
        "many outcomes, every one of them is gone through and the law holds to rounding; elsewhere it is tested with "
        "exact draws, or point by point.",
    )
    return Part(metrics, Section("Certificates", text, (table,)))


def _planted(kind: str, bugs: Sequence[PlantedBug], each: Callable[..., list[Any]], workspace: Workspace) -> Part:
    workspace.say(f"{kind}: {len(bugs)} planted faults")
    verdicts = each(run_planted, bugs)
    expected = [verdict for verdict in verdicts if not verdict.survives]
    metrics = {
        "num": len(expected),
        "caught": sum(verdict.caught for verdict in expected),
        "missed": [verdict.fault for verdict in expected if not verdict.caught],
        "harmless": [verdict.fault for verdict in verdicts if verdict.survives],
        "false_alarm_rate": sum(verdict.false_alarm_rate for verdict in verdicts),
    }
    caption = f"Faults planted in {kind}, one line of source each, and what the certificate found."
    columns = ("fault", "certificate", "found", "caught?")
    table = Table(caption, columns, tuple(_row(verdict) for verdict in verdicts))
    return Part(metrics, Section(f"Planted faults: {kind}", (), (table,)))


def _row(verdict: Verdict) -> tuple[str, ...]:
    found = f"{verdict.by}; {verdict.survives}" if verdict.survives else verdict.by
    return verdict.fault, verdict.certificate, found, _mark(verdict.caught)


def _mark(good: bool) -> str:
    return "✓" if good else "✗"


def _number(value: float | None) -> str:
    """What was not finite was stored as nothing."""
    return "not finite" if value is None else f"{value:.1e}"


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """What the certificates and the planted faults say."""
    found = metrics["certificates"]
    planted = [metrics[kind] for kind in BUGS]
    num, caught = (sum(part[name] for part in planted) for name in ("num", "caught"))
    missed = [fault for part in planted for fault in part["missed"]]
    harmless = [fault for part in planted for fault in part["harmless"]]
    rate = sum(part["false_alarm_rate"] for part in planted)
    return (
        Claim(
            "Blocks keep their laws.",
            "the law of each, by definition (Scibior et al. 2018)",
            f"{found['num'] - len(found['failed'])} of {found['num']} certificates, {found['num_checks']} checks",
            f"all checks pass; at most {found['false_alarm_rate']:.1g} chance of a false alarm"
            + (f"; failed: {', '.join(found['failed'])}" if found["failed"] else ""),
            not found["failed"],
        ),
        Claim(
            "Enumerated laws hold to rounding.",
            "kernels to 1e-12, algorithms to 1e-6",
            f"{_number(found['largest_kernel_error'])} and {_number(found['largest_algorithm_error'])}",
            "largest error of any enumerated law",
            below(found["largest_kernel_error"], 1e-12) and below(found["largest_algorithm_error"], 1e-6),
        ),
        Claim(
            "Planted faults are caught.",
            f"at least {100 * LEAST_SHARE:g} % (38 of 40)",
            f"{caught} of {num}"
            + (f"; missed: {', '.join(missed)}" if missed else "")
            + (f"; left out as harmless, with the reason: {', '.join(harmless)}" if harmless else ""),
            f"one line of source each; at most {rate:.1g} chance of any false alarm (bound {LARGEST_RATE:g})",
            caught >= LEAST_SHARE * num and rate <= LARGEST_RATE,
        ),
    )
