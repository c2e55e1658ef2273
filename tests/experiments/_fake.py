"""An experiment for tests: two parts that compute almost nothing, and can be told to fail or to be interrupted."""

import dataclasses
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from probinf.experiments import Claim, Experiment, Part, Section, Table, below, canvas
from probinf.experiments import _registry as registry

CALLS: list[str] = []
INTERRUPT_AT: list[str] = []


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    size: int = 3
    truth: float = 0.0


def first(config, workspace):
    CALLS.append("first")
    values = np.random.default_rng(config.seed).normal(size=config.size)
    with canvas() as (figure, (axes,)):
        axes.plot(values, label="values")
        drawn = workspace.figure("first", figure, caption="A <caption>.", alt='An "alt" text.')
    table = Table("Some values.", ("name", "value"), (("a & b", "-1.5"), ("c", "1,200.25")))
    return Part({"values": values, "error": abs(config.truth)}, Section("First", ("Text at 5 %.",), (drawn, table)))


def second(config, workspace):
    CALLS.append("second")
    if "second" in INTERRUPT_AT:
        raise KeyboardInterrupt
    return Part({"count": config.size, "bad": float("nan")}, Section("Second", (), ()))


def run(config, workspace):
    return {
        "first": workspace.part("first", first, config),
        "second": workspace.part("second", second, config),
    }


def claims(metrics):
    error = metrics["first"]["error"]
    return (Claim("The error is small.", "0 <exact>", f"{error:.2f}", "by looking", below(error, 0.5)),)


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, *, truth: float = 0.0) -> Iterator[None]:
    """The registry knows this experiment as `fake` within the block; `truth` above 0.5 breaks its claim."""
    module = types.ModuleType("fake_experiment")
    scales = {"quick": Config(truth=truth), "full": Config(size=300, truth=truth)}
    vars(module).update(SCALES=scales, run=run, claims=claims)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        entry = Experiment("fake", "Fakes are quick.", "Nobody 1900", module.__name__)
        patch.setitem(registry._BY_NAME, "fake", entry)
        CALLS.clear()
        INTERRUPT_AT.clear()
        yield
