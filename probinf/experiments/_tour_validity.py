"""Are the parts right? A kernel is checked, and the same kernel without its Jacobian.

The move is x -> x e^v with v ~ N(0, .7^2), an instance of Metropolis-Hastings-Green (Green 1995) whose determinant is
e^(d v).
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probinf import samplers, validity
from probinf.core import Target, standard_normal
from probinf.experiments._claims import Claim
from probinf.experiments._page import Part, Section, Table
from probinf.experiments._workspace import Workspace
from probinf.validity import Report

NUM_CHAINS = 20_000


class Scaling(eqx.Module):
    """(x, v) -> (x e^v, -v) in every coordinate, of log-determinant d v, or none where it is forgotten."""

    forgotten: bool = eqx.field(static=True, default=False)

    def __call__(self, target: Target, state: Any, v: Array) -> tuple[Any, Array, Array]:
        moved = samplers.relocate(target, state, state.position * jnp.exp(v))
        return moved, -v, jnp.zeros_like(v) if self.forgotten else state.position.size * v


class Spread(eqx.Module):
    """v ~ N(0, .7^2)."""

    def sample(self, key: Array, target: Target, state: Any) -> Float[Array, ""]:
        """One draw."""
        del target
        return 0.7 * standard_normal(key, (), state.position.dtype)

    def log_prob(self, target: Target, state: Any, v: Array) -> Float[Array, ""]:
        """Log density up to a constant."""
        del target, state
        return -0.5 * (v / 0.7) ** 2


def scaling(*, forgotten: bool = False) -> samplers.MHG:
    """The kernel, right or without its Jacobian."""
    return samplers.mhg(Spread(), Scaling(forgotten))


def run(config: Any, workspace: Workspace) -> Part:
    """Both kernels through the same checks, on a skewed target with exact draws."""
    workspace.say("checks of a kernel, and of one without its Jacobian")
    exact = validity.exact_target("skewed")
    reports = []
    with jax.enable_x64(True):
        for forgotten in (False, True):
            kernel = scaling(forgotten=forgotten)
            reports.append(validity.check(kernel, exact.target, exact.draw, num_chains=NUM_CHAINS, seed=config.seed))
    metrics = {name: _metrics(report) for name, report in zip(("sound", "broken"), reports, strict=True)}
    text = (
        "A kernel must leave its target as it is. Whether it does is tested here: chains that start from exact draws "
        "must still have their law after two steps, and at single points the kernel must be in balance, where nothing "
        "is random. The same checks are run on a kernel from whose acceptance ratio the Jacobian is missing.",
    )
    return Part(metrics, Section("Validity: laws that run", text, (_table(*reports),)))


def _metrics(report: Report) -> dict[str, Any]:
    return {
        "num_checks": len(report.checks),
        "failed": [check.law for check in report.failures],
        "false_alarm_rate": report.false_alarm_rate,
        "found": [check.found for check in report.checks],
    }


def _table(sound: Report, broken: Report) -> Table:
    rows = tuple(
        (one.law, f"{one.bound:.2g}", f"{one.found:.2g}", f"{other.found:.2g}", "" if other.passed else "caught")
        for one, other in zip(sound.checks, broken.checks, strict=True)
    )
    caption = "The checks: what was found of the kernel as it should be, and of the one without its Jacobian."
    return Table(caption, ("law", "bound", "sound", "no Jacobian", ""), rows)


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Both verdicts."""
    sound, broken = metrics["sound"], metrics["broken"]
    return (
        Claim(
            "A Metropolis-Hastings-Green kernel leaves its target invariant, and without its Jacobian it is caught.",
            "alpha holds |det|, Green 1995",
            f"{sound['num_checks'] - len(sound['failed'])} of {sound['num_checks']} checks pass; without it these "
            f"fail: {', '.join(broken['failed']) or 'none'}",
            f"exact draws, {NUM_CHAINS:,} chains, and balance at 256 points; at most {sound['false_alarm_rate']:.0e} "
            "chance of a false alarm",
            not sound["failed"] and bool(broken["failed"]),
        ),
    )
