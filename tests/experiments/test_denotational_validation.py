"""Certificates and planted faults: a few of each, how faults are planted, and how claims judge them."""

import sys
from pathlib import Path

import jax
import pytest

import probinf
from probinf.experiments import CERTIFICATES, certify
from probinf.experiments import _denotational_validation as experiment
from probinf.experiments._planted_bug import PlantedBug
from probinf.experiments._planted_bugs import PLANTED_BUGS
from probinf.experiments._planting import planted, run_certificate, run_planted
from probinf.experiments._processes import in_processes

pytestmark = pytest.mark.no_key_reuse

QUICK = ("choices", "verbs", "resample", "finite kernel", "auxiliary filter")
CHEAP = (
    "proposal ratio upside down",
    "evidence not banked",
    "look-ahead of another particle",
    "NaN counts as one",
)


@pytest.mark.parametrize("name", QUICK)
def test_certificate(name: str) -> None:
    report = certify(name)
    assert report.passed, report.table
    assert report.false_alarm_rate <= 3e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CERTIFICATES if name not in QUICK])
def test_other_certificate(name: str) -> None:
    report = certify(name)
    assert report.passed, report.table


def test_an_unknown_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="needed one of"):
        certify("no such block")


def by_name(fault: str) -> PlantedBug:
    return next(bug for bug in PLANTED_BUGS if bug.fault == fault)


def verdicts(faults):
    """In processes of their own: the type checker of the tests would take the mutant's classes for strangers."""
    with in_processes(1) as each:
        return each(run_planted, [by_name(fault) for fault in faults])


@pytest.mark.slow
def test_planted_faults_are_caught() -> None:
    for verdict in verdicts(CHEAP):
        assert verdict.caught, verdict


@pytest.mark.slow
def test_other_planted_faults() -> None:
    for verdict in verdicts([bug.fault for bug in PLANTED_BUGS if bug.fault not in CHEAP]):
        assert verdict.caught == (not verdict.survives), verdict


def test_every_fault_is_different_and_in_its_module_once() -> None:
    assert len({bug.fault for bug in PLANTED_BUGS}) == len(PLANTED_BUGS) >= 40
    for bug in PLANTED_BUGS:
        assert bug.certificate in CERTIFICATES
        text = Path(probinf.__file__).parent.joinpath(*bug.module.split(".")).with_suffix(".py").read_text()
        assert text.count(bug.old) == 1, bug.fault


def test_planting_leaves_the_library_alone() -> None:
    before = {name: module for name, module in sys.modules.items() if name.startswith("probinf")}
    with planted(by_name("evidence not banked")) as mutant:
        assert "resample" in mutant.CERTIFICATES
        assert sys.modules["probinf.core._resample"] is not before["probinf.core._resample"]
    after = {name: module for name, module in sys.modules.items() if name.startswith("probinf")}
    assert before == after
    assert probinf is sys.modules["probinf"]


def test_a_text_that_is_not_there_is_refused() -> None:
    bug = PlantedBug("nothing", "core._resample", "no such text", "", "resample")
    with pytest.raises(ValueError, match="occurs 0 times"), planted(bug):
        pass


def test_a_certificate_in_short() -> None:
    with jax.enable_x64(True):
        row = run_certificate("finite kernel")
    assert row.passed
    assert row.kernel_error < 1e-12
    assert row.false_alarm_rate == 0


PLANTED = {"num": 20, "caught": 20, "missed": [], "harmless": [], "false_alarm_rate": 1e-5}
FOUND = {
    "num": 30,
    "failed": [],
    "num_checks": 200,
    "false_alarm_rate": 1e-5,
    "largest_kernel_error": 1e-16,
    "largest_algorithm_error": 1e-15,
}


def judged(**changes):
    metrics = {
        "certificates": FOUND,
        "kernels": PLANTED,
        "mcmc": PLANTED,
        "jumps": PLANTED,
        "parts": PLANTED,
        "algorithms": PLANTED,
    } | changes
    return [claim.holds for claim in experiment.claims(metrics)]


def test_claims() -> None:
    assert judged() == [True, True, True]
    assert judged(certificates=FOUND | {"failed": ["hmc"]}) == [False, True, True]
    assert judged(certificates=FOUND | {"largest_kernel_error": 1e-11}) == [True, False, True]
    assert judged(certificates=FOUND | {"largest_algorithm_error": None}) == [True, False, True]
    assert judged(parts=PLANTED | {"caught": 14, "missed": ["a"]}) == [True, True, False]
    assert judged(parts=PLANTED | {"caught": 16, "missed": ["a"]}) == [True, True, True]
    assert judged(parts=PLANTED | {"false_alarm_rate": 2e-3}) == [True, True, False]
