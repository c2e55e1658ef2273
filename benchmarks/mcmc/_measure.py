"""What is measured: compilation on short runs, then whole calls, interleaved, each under a time limit.

Times of compilation are of runs of `SHORT` draws: of a run of minutes, the first call less a later one would be the
noise of the sampling.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._harness import Case, Competitor, Row, Run, Worker, WorkerError, measure
from benchmarks.mcmc._adapter import FOLDER
from benchmarks.mcmc._diagnose import ess_per_second, reduced
from benchmarks.mcmc._problems import labels

SHORT, SHORT_CHAINS = 50, 4
UNIT, ALGORITHM = "draws a chain", "warm-up and draws of N chains"


class Compiled(NamedTuple):
    """Compilation of one competitor on one problem.

    Attributes:
        wall, cpu: seconds of the first call of a fresh process beyond the same call again, medians.
        again: programs compiled by that second call; None for libraries without XLA.
        new_data: programs compiled by a third call with new data of the same shapes.
    """

    wall: float
    cpu: float
    again: int | None
    new_data: int | None


def measure_compilation(
    problem: str, competitors: Sequence[Competitor], *, starts: int, limit_s: float, say=print
) -> dict[Competitor, Compiled]:
    """The compilation of each competitor that gets through; `starts` fresh processes each."""
    case = Case(problem, SHORT, SHORT_CHAINS, UNIT)
    found: dict[Competitor, list[Compiled]] = {one: [] for one in competitors}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(starts):
            for one in competitors:
                try:
                    found[one].append(_compiled(case, one, Path(folder), limit_s))
                except WorkerError as error:
                    say(f"    {one.name}, compilation: {error}")
    medians = {}
    for one, all_of in found.items():
        if all_of:
            wall, cpu = (statistics.median(getattr(each, clock) for each in all_of) for clock in ("wall", "cpu"))
            medians[one] = all_of[-1]._replace(wall=wall, cpu=cpu)
            say(f"    {one.name}: compiles in {cpu:.2f} CPU s; programs by a call with new data: {all_of[-1].new_data}")
    return medians


def _compiled(case: Case, one: Competitor, folder: Path, limit_s: float) -> Compiled:
    with Worker(one.python, environment=(*one.environment, *_environment(folder)), limit_s=limit_s) as worker:
        size = {"problem": case.problem, "size": case.size, "num_particles": case.num_particles}
        worker.ask(do="prepare", adapter=one.adapter, variant=one.variant, **size)
        first, second, third = (worker.ask(do="run", seed=seed) for seed in (0, 0, -1))
    again, new_data = (call["details"].get("num_compilations") for call in (second, third))
    return Compiled(first["wall"] - second["wall"], first["cpu"] - second["cpu"], again, new_data)


def measure_calls(
    case: Case, competitors: Sequence[Competitor], *, rounds: int, limit_s: float, extra: Any = None, say=print
) -> list[Row]:
    """Runs all competitors on one case, interleaved, after a first call that counts for nothing.

    Args:
        case: problem, draws and chains.
        competitors: each gets a fresh process.
        rounds: timed runs each.
        limit_s: seconds that a call may take; a competitor that takes longer is ended, keeps what it had and says so.
        extra: numbers for the details of every run, by competitor.
        say: called with a line of progress.
    """

    def kept(one: Competitor, run: Run) -> Run:
        return run._replace(details={**reduced(run.details, labels(case.problem)), **(extra or {}).get(one, {})})

    def line(run: Run) -> str:
        return f"{run.wall:.2f} s, {ess_per_second(run):.3g} ESS/s"

    with tempfile.TemporaryDirectory() as folder:
        return measure(
            case,
            competitors,
            0.0,
            rounds=rounds,
            warm_up=0,
            limit_s=limit_s,
            environment=_environment(Path(folder)),
            reduced=kept,
            line=line,
            say=say,
        )


def _environment(folder: Path) -> tuple[tuple[str, str], ...]:
    # With JAX's filter on, the last line of a traceback is a remark on the filter.
    return ((FOLDER, str(folder)), ("JAX_TRACEBACK_FILTERING", "off"))
