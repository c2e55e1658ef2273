"""`python -m benchmarks bessel`: log I and log K of a million random pairs, of us, SciPy and TensorFlow Probability."""

import argparse

from benchmarks._competitors import Entry, competitors, peer_competitors
from benchmarks._harness import Case, measure
from benchmarks._report import Outcome
from benchmarks.bessel._problems import NAMES
from benchmarks.bessel._targets import COLUMNS, compared, target_lines

PACKAGE = "benchmarks.bessel"
DTYPES = ("float64", "float32")
# The dtype stands as the algorithm: rows are compared within it. SciPy comes with us and needs no environment.
OURS = {library: [Entry(dtype, "", dtype) for dtype in DTYPES] for library in ("probinf", "scipy")}
PEERS = {"tfp": OURS["probinf"]}
COUNT, QUICK_COUNT = 1_000_000, 100_000
ROUNDS, QUICK_ROUNDS = 9, 3
SEED = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    parser.add_argument("--problems", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--count", type=lambda text: int(float(text)), help="pairs (1e6; --quick: 1e5)")


def run(options: argparse.Namespace, *, say=print) -> Outcome:
    """Measures all competitors on both functions, both precisions interleaved; one row each."""
    peers, absent = peer_competitors(PACKAGE, PEERS, options.peers, options.environments, say=say)
    listed = [*competitors(PACKAGE, OURS), *peers]
    count = options.count or (QUICK_COUNT if options.quick else COUNT)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    rows = []
    for name in options.problems:
        case = Case(name, SEED, count, "seed")
        say(f"  {case}: {len(listed)} competitors, {rounds} rounds")
        rows += measure(case, listed, 0.0, rounds=rounds, say=say)
    rows = compared(rows)
    notes = {
        **absent,
        "pairs": "v = 10^U(-1, 5), x = 10^U(-3, 6)",
        "SciPy": "times are those of ive and kve alone, without the logarithm; it computes in float64 for either dtype",
        "difference": "from ours in float64, over max(1, |value|, sqrt(v^2 + x^2)), at the first 512 pairs",
        "CPU": "seconds of all threads: SciPy has one, JAX as many as there are cores",
    }
    return Outcome("Log-Bessel functions of random orders and arguments", rows, COLUMNS, notes, target_lines(rows))
