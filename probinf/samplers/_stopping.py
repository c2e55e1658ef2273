r"""Rules that end a run of chains once its draws are good enough: `converged`, and any function of the `Draws` so far.

They look at fixed counts of draws $n_1 = e,\ n_{k+1} = \max(n_k + e, \lceil 1.2\, n_k \rceil_e)$ with e = `every` and
$\lceil\cdot\rceil_e$ rounding up to multiples of e, so that where a run ends depends on its draws alone: not on the
speed of the machine, nor on how often it was interrupted and resumed. All looks together cost about six of the last.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from probinf.core._arguments import whole_number
from probinf.core._control import MAX_STEPS, Ending, Present
from probinf.core._draws import Draws

EVERY = 100


@runtime_checkable
class StopRule(Protocol):
    """Whether the draws so far are enough; deterministic. It may have an attribute `every` (100 if not).

    Law: the answer depends on the draws it is shown alone.
    """

    def __call__(self, draws: Draws, /) -> bool:
        """Whether to stop."""
        ...


@dataclasses.dataclass(frozen=True)
class Converged:
    """The rule made by `converged`."""

    r_hat: float | int | None
    ess: float | int | None
    mcse: float | int | None
    names: tuple[str, ...] | None
    every: int

    def __call__(self, draws: Draws) -> bool:
        """Whether every row that is looked at fulfils every condition; what is NaN fulfils none."""
        table = draws.summary()
        # What is the same number in all draws of all chains has no error; what is not finite has sd NaN.
        rows = self._chosen(table.names) & (table["sd"] != 0)
        wanted = (
            (self.r_hat, table["r_hat"]),
            (self.mcse, table["mcse"]),
            (None if self.ess is None else -self.ess, -np.minimum(table["ess_bulk"], table["ess_tail"])),
        )
        return bool(rows.any()) and all(np.all(value[rows] <= most) for most, value in wanted if most is not None)

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown = {
            name: value for name, value in values.items() if value is not None and (name, value) != ("every", EVERY)
        }
        return f"converged({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def check(self, draws: Draws) -> None:
        """Raises `ValueError` where the rule can never hold for draws with these names and chains."""
        if self.r_hat is not None and draws.num_chains == 1:
            raise ValueError(
                "`converged` looks at r_hat, which one chain does not have: pass `num_chains` of at least 2, or "
                "`r_hat=None`"
            )
        self._chosen(draws.summary().names)

    def _chosen(self, rows: tuple[str, ...]) -> np.ndarray:
        if self.names is None:
            return np.ones(len(rows), bool)
        hits = {name: np.array([_is_of(row, name) for row in rows], bool) for name in self.names}
        for name, hit in hits.items():
            if not hit.any():
                raise ValueError(f"`names` of `converged` holds {name!r}, but the draws have {', '.join(rows[:20])}")
        return np.any(list(hits.values()), axis=0)


def converged(
    r_hat: float | int | None = 1.01,
    ess: float | int | None = 400,
    mcse: float | int | None = None,
    *,
    names: tuple[str, ...] | list[str] | None = None,
    every: int = EVERY,
) -> Converged:
    r"""A rule for `stop=`: R-hat, effective sample size and Monte Carlo error of all parameters are good enough.

    The diagnostics are those of `Draws.summary` (Vehtari et al. 2021: R-hat up to 1.01 and an effective sample size of
    400, bulk and tail, are what estimates of quantiles and of the error itself need). Parameters that never change are
    left out; one that is not finite, or not in every chain moving, keeps the rule from holding.

    A rule that looks at an estimated error stops rather where that estimate happens to be too small, so the
    errors of a stopped run are slightly optimistic. It is asymptotically valid as the bound goes to zero (Glynn, Whitt
    1992; Jones et al. 2006; Vats, Flegal, Jones 2019), and the more so the more draws it asks for: that is why the
    bound on `ess` stays beside one on `mcse`, and why looks are few. A run that was stopped on R-hat can still have
    missed a mode that no chain has found.

    Args:
        r_hat: largest rank-normalised split R-hat, over 1; None for any.
        ess: least effective sample size of all chains together, both bulk and tail; None for any.
        mcse: largest Monte Carlo standard error of a posterior mean, in units of the parameter; None for any.
        names: parameters that are looked at, such as `["beta", "tau[3]"]`; None for all.
        every: draws a chain before the first look; later looks are at multiples of it, each about a fifth later than
            the one before.

    Returns:
        A function of `Draws`, for `sample(..., stop=)`, `start_sampling` and `Draws.extend`.

    Raises:
        ValueError: no condition is left, or one can never hold.
        TypeError: `every` is not an integer, or `names` is a single string.
    """
    if r_hat is ess is mcse is None:
        raise ValueError("`converged` has no condition: pass `r_hat`, `ess` or `mcse`")
    for name, value, least in (("r_hat", r_hat, 1.0), ("ess", ess, 0.0), ("mcse", mcse, 0.0)):
        if value is not None and not (value > least and math.isfinite(value)):
            raise ValueError(f"`{name}` is {value}; needed a number over {least:g}, or None for any")
    if isinstance(names, str):
        raise TypeError(f"`names` is the string {names!r}: pass a list, such as [{names!r}]")
    chosen = None if names is None else tuple(names)
    return Converged(r_hat, ess, mcse, chosen, whole_number("every", every, 4, ", of which diagnostics can be made"))


def next_look(done: int, every: int) -> int:
    """The first count over `done` at which a rule looks."""
    look = every
    while look <= done:
        look = max(look + every, -(-6 * look // (5 * every)) * every)
    return look


class Looks:
    """The `Control` that asks a rule; `view` makes the `Draws` it sees, of which `before` were there at the start.

    It is also asked at the end of the run, and at the start of an extension.
    """

    def __init__(self, rule: StopRule, view: Callable[[Present], Draws], before: int):
        self._rule, self._view, self._before = rule, view, before
        self._every = whole_number("every", getattr(rule, "every", EVERY), 1)
        self.name = getattr(rule, "__qualname__", None) or repr(rule)

    def border(self, num_done: int) -> int:
        """The next look."""
        return min(MAX_STEPS, next_look(self._before + num_done, self._every) - self._before)

    def __call__(self, present: Present) -> Ending | None:
        """`STOPPED` if the rule holds."""
        total, at_edge = self._before + present.num_done, present.num_done in (0, present.num_steps)
        if total == 0 or not (at_edge or next_look(total - 1, self._every) == total):
            return None
        return Ending.STOPPED if self._rule(self._view(present)) else None


def _is_of(row: str, name: str) -> bool:
    return row == name or row.startswith((f"{name}[", f"{name}."))
