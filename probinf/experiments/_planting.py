"""Planting of faults: the library is imported again with one line of its source changed, and certified.

The mutant lives beside the library that is running: its modules are loaded under the same names while they are in
`sys.modules`, which is put back afterwards. Mutants are shared among processes.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from probinf.experiments._planted_bug import PlantedBug

PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).parents[1]


class Verdict(NamedTuple):
    """What a certificate said of a mutant.

    Attributes:
        fault: the fault, in words.
        certificate: the certificate that was run.
        caught: whether a check failed; a mutant that raises an error is not counted.
        by: the law that failed first, and what was found; or the error.
        false_alarm_rate: of the certificate.
        survives: why no check could see it; empty where one should.
    """

    fault: str
    certificate: str
    caught: bool
    by: str
    false_alarm_rate: float
    survives: str


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with a line changed."""

    def __init__(self, name: str, path: str, bug: PlantedBug) -> None:
        super().__init__(name, path)
        self.bug = bug

    def get_code(self, fullname: str) -> Any:
        """The code of the changed source; never read from, or written to, the cache of compiled files."""
        text = Path(self.path).read_text()
        if text.count(self.bug.old) != 1:
            raise ValueError(f"{self.bug.fault!r}: its text occurs {text.count(self.bug.old)} times in {fullname}")
        return compile(text.replace(self.bug.old, self.bug.new), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the changed module."""

    def __init__(self, bug: PlantedBug) -> None:
        self.bug = bug

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """The spec of the changed module, None for others."""
        del path, target
        if fullname != f"{PACKAGE}.{self.bug.module}":
            return None
        file = str(ROOT.joinpath(*self.bug.module.split(".")).with_suffix(".py"))
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, file, self.bug))


def _ours() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}


@contextlib.contextmanager
def planted(bug: PlantedBug) -> Iterator[ModuleType]:
    """The module of certificates of a library with the fault; the library itself is untouched.

    Args:
        bug: the fault.

    Raises:
        ValueError: its text does not occur once in its module.
    """
    kept, finder = _ours(), _Finder(bug)
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module(f"{PACKAGE}.experiments._certificates")
    finally:
        sys.meta_path.remove(finder)
        for name in _ours():
            del sys.modules[name]
        sys.modules.update(kept)


def run_planted(bug: PlantedBug) -> Verdict:
    """Plants a fault and runs the certificate that should see it."""
    with planted(bug) as certificates:
        try:
            report = certificates.certify(bug.certificate)
        except (ValueError, TypeError, ArithmeticError, IndexError) as error:
            said = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            return Verdict(bug.fault, bug.certificate, False, said, 0.0, bug.survives)
    failed = report.failures
    by = f"{failed[0].law}: {failed[0].found:.3g} > {failed[0].bound:.3g}" if failed else "nothing"
    return Verdict(bug.fault, bug.certificate, bool(failed), by, report.false_alarm_rate, bug.survives)


class Certified(NamedTuple):
    """What the certificate of a block said.

    Attributes:
        name: of the certificate.
        passed: whether all checks did.
        num_checks: how many there are.
        nearest: the check that came nearest to its bound.
        share: what it found over its bound.
        false_alarm_rate: of the certificate.
        kernel_error, algorithm_error: the largest error of an enumerated kernel, and of an enumerated algorithm.
    """

    name: str
    passed: bool
    num_checks: int
    nearest: str
    share: float
    false_alarm_rate: float
    kernel_error: float
    algorithm_error: float


KERNEL_LAWS = ("rows sum to 1", "invariance", "reversibility")
ALGORITHM_LAWS = ("expected measure", "unbiased evidence", "law of paths")


def run_certificate(name: str) -> Certified:
    """Runs one certificate of the library as it is."""
    from probinf.experiments._certificates import certify

    report = certify(name)
    shares = [check.found / check.bound for check in report.checks if check.bound > 0]
    bounded = [check for check in report.checks if check.bound > 0]
    at = max(range(len(shares)), key=shares.__getitem__)
    exact = [check for check in report.checks if check.false_alarm_rate == 0]
    return Certified(
        name,
        report.passed,
        len(report.checks),
        f"{bounded[at].law}, {bounded[at].subject}",
        shares[at],
        report.false_alarm_rate,
        _largest([check.found for check in exact if check.law in KERNEL_LAWS]),
        _largest([check.found for check in exact if check.law in ALGORITHM_LAWS]),
    )


def _largest(values: list[float]) -> float:
    return float(np.max(values, initial=0.0))  # NaN if one is
