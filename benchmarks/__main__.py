"""The command line: `python -m benchmarks NAME [--quick] [--rounds R] [--out DIR]`, NAME one of `BENCHMARKS`."""

import argparse
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import _large, _scaling
from benchmarks._harness import ROOT, machine
from benchmarks._report import write
from benchmarks.bessel import _run as bessel
from benchmarks.filters import _run as filters
from benchmarks.llm import _run as llm
from benchmarks.mcmc import _run as mcmc
from benchmarks.tempered import _run as tempered

BENCHMARKS = {
    "filters": filters,
    "tempered": tempered,
    "mcmc": mcmc,
    "llm": llm,
    "bessel": bessel,
    "scaling": _scaling,
    "large": _large,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark, writes its results and prints where they are; 1 if a competitor failed."""
    options = _parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    about = {"command": f"`{command}`", "started": datetime.now(UTC).isoformat(timespec="seconds")}
    about |= {"machine": str(machine())}
    outcome = BENCHMARKS[options.benchmark].run(options)
    notes = {**about, "load at the end": str(machine()["load"]), **outcome.notes}
    print(write(options.benchmark, outcome._replace(notes=notes), options.out))
    return int(any(row.fault for row in outcome.rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, description=benchmark.__doc__)
        command.add_argument("--quick", action="store_true", help="fewer particles or rounds, a few minutes at most")
        command.add_argument("--rounds", type=int, help="timed rounds in place of the defaults")
        command.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
        peers = getattr(benchmark, "PEERS", None)
        if peers is not None:
            where = ROOT / ".bench"
            command.add_argument("--peers", nargs="*", default=list(peers), choices=list(peers))
            command.add_argument("--environments", type=Path, default=where, help="where peers' environments live")
        benchmark.add_options(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
