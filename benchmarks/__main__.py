"""The command line: `python -m benchmarks filters|large [--quick] [--peers ...] [--out DIR]`."""

import argparse
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks._harness import ROOT, machine
from benchmarks._large import lines_of, run_large
from benchmarks._report import write
from benchmarks.filters._problems import NAMES
from benchmarks.filters._run import PEERS, SIZES, competitors, run_filters
from benchmarks.filters._targets import target_lines


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark, writes its results and prints where they are; 1 if a competitor failed."""
    options = _parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    about = {"command": f"`{command}`", "started": datetime.now(UTC).isoformat(timespec="seconds")}
    about |= {"machine": machine()}
    if options.benchmark == "filters":
        about = {"title": "Bootstrap filters", **about}
        listed, absent = competitors(options.peers, options.environments, quick=options.quick)
        about |= {f"{peer} is absent": reason for peer, reason in absent.items()}
        sizes = {options_n: options.rounds or rounds for options_n, rounds in _sizes(options).items()}
        rows = run_filters(listed, sizes, problems=options.problems, num_steps=options.num_steps)
    else:
        about = {"title": "Ten million particles in float32", **about}
        rows = run_large(num_particles=1_000_000 if options.quick else 10_000_000, rounds=options.rounds or 3)
        print("\n".join(lines_of(rows)))
    more = target_lines(rows) if options.benchmark == "filters" else ()
    path = write(options.benchmark, rows, {**about, "load at the end": machine()["load"]}, options.out, more)
    print(path)
    return int(any(row.fault for row in rows))


def _sizes(options: argparse.Namespace) -> dict[int, int]:
    chosen = options.num_particles or ([1_000] if options.quick else list(SIZES))
    return {n: 5 if options.quick or n not in SIZES else SIZES[n] for n in chosen}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=("filters", "large"))
    parser.add_argument("--quick", action="store_true", help="filters: N = 1e3, 5 rounds; large: N = 1e6")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--problems", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--num-particles", nargs="+", type=lambda text: int(float(text)))
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, help="timed rounds in place of the defaults")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--environments", type=Path, default=ROOT / ".bench", help="where peers' environments live")
    return parser


if __name__ == "__main__":
    sys.exit(main())
