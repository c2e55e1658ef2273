"""`Report`: what the checks of this room found, as one table with the chance of a false alarm."""

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.special

# "All but surely seen", in every check of this room that says so: missed with probability at most 1e-3.
SURE = float(-scipy.special.ndtri(1e-3))


class Check(NamedTuple):
    """One law, checked once.

    Attributes:
        law: the law, such as "invariance".
        subject: what it was checked on, such as "skewed: E x[0]".
        found: the discrepancy, in the units of `bound`; NaN where it could not be computed, which never passes.
        bound: the largest that passes.
        false_alarm_rate: the probability that a sound block exceeds the bound; 0 for exact checks.
        detects: the size of fault that is all but surely seen, in words.
    """

    law: str
    subject: str
    found: float
    bound: float
    false_alarm_rate: float
    detects: str

    @property
    def passed(self) -> bool:
        """Whether what was found is at most the bound, and that is finite."""
        return bool(self.found <= self.bound < float("inf"))


@dataclass(frozen=True)
class Report:
    """The result of a check; `print` it for the table, add two for one of both.

    Attributes:
        checks: what was checked, in order.
        title: of the table.
    """

    checks: tuple[Check, ...]
    title: str = ""

    @property
    def passed(self) -> bool:
        """Whether there are checks and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def false_alarm_rate(self) -> float:
        """Bound on the probability that any check of sound blocks fails: the sum over checks."""
        return float(np.sum([check.false_alarm_rate for check in self.checks]))

    @property
    def table(self) -> str:
        """The checks as text, a line each."""
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120).print(self)
        return text.getvalue()

    def __add__(self, other: "Report") -> "Report":
        """Both, under the first title that is not empty."""
        return Report(self.checks + other.checks, self.title or other.title)

    def __str__(self) -> str:
        """The table."""
        return self.table

    def __rich__(self):
        """The table, for consoles of rich."""
        from rich.table import Table

        verdict = "passed" if self.passed else f"{len(self.failures)} of {len(self.checks)} failed"
        caption = f"{verdict}; at most {self.false_alarm_rate:.1g} chance of a false alarm"
        table = Table(title=self.title or None, caption=caption, title_justify="left", caption_justify="left")
        for name in ("law", "on", "found", "bound", "detects", ""):
            table.add_column(name, justify="right" if name in ("found", "bound") else "left")
        for check in self.checks:
            mark = "✓" if check.passed else "✗"
            row = (check.law, check.subject, f"{check.found:.3g}", f"{check.bound:.3g}", check.detects, mark)
            table.add_row(*row, style=None if check.passed else "bold red")
        return table

    def check(self) -> "Report":
        """Itself, if all passed.

        Raises:
            AssertionError: one did not; the message holds the table.
        """
        if not self.passed:
            raise AssertionError(f"a check failed:\n{self.table}")
        return self
