"""The harness: starts competitors as worker processes, runs them interleaved, and reduces the timings.

Interleaved means one run of each competitor in turn, round after round, the starting competitor moving by one each
round. So a slow minute of the machine is shared by all, and ratios are taken within a round before their median.
"""

import contextlib
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 1800.0  # seconds that a call may take


class Competitor(NamedTuple):
    """One way of solving the problem.

    Attributes:
        library: "probinf", "bare" or a peer.
        variant: a name that the adapter's `prepare` knows.
        rule: the resampling rule; only equal rules are compared.
        adapter: module name of the adapter.
        python: the interpreter of its environment.
        algorithm: what it runs; ratios are taken between equal algorithms.
        environment: variables of its process, `(name, value)` each, beyond ours.
    """

    library: str
    variant: str
    rule: str
    adapter: str
    python: str
    algorithm: str = "bootstrap"
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """`library:variant`."""
        return f"{self.library}:{self.variant}"


class Case(NamedTuple):
    """One problem size: `size` is its number of time steps T, or whatever `unit` says."""

    problem: str
    size: int
    num_particles: int
    unit: str = "T"

    def __str__(self) -> str:
        return f"{self.problem}, {self.unit} = {self.size}, N = {self.num_particles}"


class Run(NamedTuple):
    """One timed run; times in seconds. `details` are what the adapter tells beyond the evidence."""

    wall: float
    cpu: float
    log_evidence: float
    peak_rss_mb: float
    details: dict[str, Any] = {}  # noqa: RUF012 (never written to)


class Row(NamedTuple):
    """All that was measured of one competitor on one case.

    Attributes:
        case, competitor: what was measured.
        versions: of the adapter's `PACKAGES`.
        device: the accelerator, or "cpu".
        exact: the log evidence that errors are measured from.
        firsts: the first call of each fresh process.
        runs: the timed runs, one a round.
        fault: last words of a competitor that failed, else empty.
    """

    case: Case
    competitor: Competitor
    versions: dict[str, str]
    device: str
    exact: float
    firsts: tuple[Run, ...]
    runs: tuple[Run, ...]
    fault: str = ""

    @property
    def wall(self) -> list[float]:
        """Wall seconds, one entry a round."""
        return [run.wall for run in self.runs]

    @property
    def cpu(self) -> list[float]:
        """CPU seconds of the whole process, one entry a round."""
        return [run.cpu for run in self.runs]

    @property
    def errors(self) -> list[float]:
        """Log evidence minus the exact one, one entry a round."""
        return [run.log_evidence - self.exact for run in self.runs]

    @property
    def rmse(self) -> float:
        """Root mean square of `errors`."""
        return math.sqrt(statistics.fmean(error * error for error in self.errors))

    @property
    def compile_wall(self) -> float:
        """Wall seconds of a first call beyond a later one, medians of both."""
        return self._compile("wall")

    @property
    def compile_cpu(self) -> float:
        """CPU seconds of a first call beyond a later one, medians of both."""
        return self._compile("cpu")

    def _compile(self, clock: str) -> float:
        if not (self.firsts and self.runs):
            return math.nan
        return statistics.median(getattr(one, clock) for one in self.firsts) - statistics.median(getattr(self, clock))


class WorkerError(RuntimeError):
    """A worker died or ran past its limit."""


class Worker:
    """A competitor's process; a context manager that ends it.

    The environment of the process turns JAX's persistent compilation cache off, so that a first call compiles.
    """

    def __init__(self, python: str, *, environment: Sequence[tuple[str, str]] = (), limit_s: float = LIMIT_S) -> None:
        self._limit = limit_s
        self._errors: IO[str] = tempfile.TemporaryFile("w+")
        fixed = {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks._worker"],
            cwd=ROOT,
            env={**os.environ, **fixed, **dict(environment)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise WorkerError("the process has no pipes")
        self._stdin: IO[str] = self._process.stdin
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends one request and waits for its answer.

        Raises:
            WorkerError: the process ended, or gave no answer within the limit.
        """
        try:
            self._stdin.write(json.dumps(request) + "\n")
            self._stdin.flush()
            line = self._lines.get(timeout=self._limit)
        except queue.Empty as error:
            self.stop()
            raise WorkerError(f"no answer within {self._limit:.0f} s") from error
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(self.stop() or "the process ended")
        return json.loads(line)

    def stop(self) -> str:
        """Ends the process, which holds nothing worth keeping; returns its last line of errors."""
        if self._errors.closed:
            return ""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        self._errors.close()
        # Closing flushes, and a process that died early has left a broken pipe behind.
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        return lines[-1] if lines else ""

    def _read(self, answers: IO[str]) -> None:
        with answers:
            for line in answers:
                self._lines.put(line)
        self._lines.put("")


def measure(
    case: Case,
    competitors: Sequence[Competitor],
    exact: float,
    *,
    rounds: int,
    warm_up: int = 1,
    starts: int = 1,
    limit_s: float = LIMIT_S,
    environment: Sequence[tuple[str, str]] = (),
    reduced: Callable[[Competitor, Run], Run] = lambda _, run: run,
    line: Callable[[Run], str] | None = None,
    say=print,
) -> list[Row]:
    """Runs all competitors on one case, interleaved; a competitor that fails is reported and left out.

    Args:
        case: problem and size.
        competitors: each gets a fresh process.
        exact: the log evidence that errors are measured from.
        rounds: timed runs each.
        warm_up: runs after the first that are not timed.
        starts: fresh processes whose first call is timed; the last of them does the runs.
        limit_s: seconds that a call may take; a competitor that takes longer is ended, keeps what it had and says so.
        environment: variables of every process, `(name, value)` each.
        reduced: makes of a run what is kept of it.
        line: what to say of every run, for runs that take long; without it every twentieth of the rounds is told.
        say: called with a line of progress.
    """
    workers: dict[Competitor, Worker] = {}
    prepared: dict[Competitor, dict[str, Any]] = {}
    firsts: dict[Competitor, list[Run]] = {one: [] for one in competitors}
    runs: dict[Competitor, list[Run]] = {one: [] for one in competitors}
    faults: dict[Competitor, str] = {}

    def attempt(one: Competitor, **request: Any) -> dict[str, Any] | None:
        try:
            return workers[one].ask(**request)
        except WorkerError as error:
            faults[one] = str(error)
            say(f"    {one.name}: {error}")
            return None

    def start(one: Competitor) -> None:
        if one in workers:
            workers[one].stop()
        workers[one] = Worker(one.python, environment=(*one.environment, *environment), limit_s=limit_s)
        size = {"problem": case.problem, "size": case.size, "num_particles": case.num_particles}
        details = attempt(one, do="prepare", adapter=one.adapter, variant=one.variant, **size)
        if details:
            prepared[one] = details
        reply = details and attempt(one, do="run", seed=0)
        if reply:
            firsts[one].append(reduced(one, Run(**reply)))
            say(f"    {one.name}: first call {reply['wall']:.2f} s")

    try:
        for one in competitors:
            for _ in range(starts):
                if one not in faults:
                    start(one)
            for seed in range(1, 1 + warm_up):
                if one not in faults:
                    attempt(one, do="run", seed=seed)
        for index in range(rounds):
            shift = index % len(competitors)
            for one in [*competitors[shift:], *competitors[:shift]]:
                reply = None if one in faults else attempt(one, do="run", seed=1 + warm_up + index)
                if reply:
                    runs[one].append(reduced(one, Run(**reply)))
                    if line:
                        say(f"    {one.name}: {line(runs[one][-1])}")
            if not line and (index + 1) % math.ceil(rounds / 20) == 0:
                say(f"    round {index + 1} of {rounds}")
    finally:
        for worker in workers.values():
            worker.stop()
    return [
        Row(
            case,
            one,
            prepared.get(one, {}).get("versions", {}),
            prepared.get(one, {}).get("device", ""),
            exact,
            tuple(firsts[one]),
            tuple(runs[one]),
            faults.get(one, ""),
        )
        for one in competitors
    ]


def pair_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Divides theirs by ours within each round; above 1 we are faster."""
    return [b / a for a, b in zip(ours, theirs, strict=False)]


def machine() -> dict[str, Any]:
    """What the timings were taken on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else ""
    return {"cpu": model, "cores": cores, "load": list(os.getloadavg()), "python": sys.version.split()[0]}
