"""`python -m benchmarks mcmc`: warm-up and sampling by NUTS of every library, on four posteriors, 4 and 64 chains."""

import argparse
from typing import Any

from benchmarks._competitors import Entry, competitors, peer_competitors
from benchmarks._harness import Case, Competitor
from benchmarks._report import Outcome, target_table
from benchmarks.mcmc._measure import ALGORITHM, UNIT, measure_calls, measure_compilation
from benchmarks.mcmc._problems import NAMES
from benchmarks.mcmc._targets import COLUMNS, agreement_table, target_lines

PACKAGE = "benchmarks.mcmc"
# The first of each form of the density is held against the targets; new kernels go here and into `_probinf.KERNELS`.
OURS = ("nuts", "nuts/density", "chees_hmc")
PEERS = {
    "numpyro": [Entry(name, "", ALGORITHM) for name in ("MCMC.run", "scan")],
    "blackjax": [Entry("nuts", "", ALGORITHM)],
    "nutpie": [Entry("numba", "", ALGORITHM)],
}
CHAINS = {4: 5, 64: 3}  # chains to timed rounds
DRAWS, QUICK_DRAWS, QUICK_ROUNDS = 1000, 200, 2
STARTS = 3  # fresh processes to time the compilation of
SLOW, SLOW_ROUNDS = "stochastic_volatility", {4: 2, 64: 1}  # a call takes a minute with 4 chains, many with 64
LIMIT_S = 900


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    parser.add_argument("--problems", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--num-chains", nargs="+", type=int)
    parser.add_argument("--num-draws", type=int, help="a chain, and as many steps of warm-up (1000; --quick: 200)")
    parser.add_argument("--ours", nargs="+", default=list(OURS), choices=OURS)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds that one call may take")
    parser.add_argument("--no-compilation", action="store_true", help="leave out the times of compilation")


def run(options: argparse.Namespace, *, say=print) -> Outcome:
    """Measures all competitors on every problem and number of chains; one row each."""
    ours = competitors(PACKAGE, {"probinf": [Entry(name, "", ALGORITHM) for name in options.ours]})
    peers, absent = peer_competitors(PACKAGE, PEERS, options.peers, options.environments, say=say)
    listed = [*ours, *peers]
    num_draws = options.num_draws or (QUICK_DRAWS if options.quick else DRAWS)
    rows = []
    for name in options.problems:
        compiled: dict[Competitor, dict[str, Any]] = {}
        if not options.no_compilation:
            say(f"  {name}: compilation")
            compiled = _compilation(name, listed, options, say)
        for num_chains in options.num_chains or ((4,) if options.quick else CHAINS):
            rounds = options.rounds or _rounds(name, num_chains, options.quick)
            case = Case(name, num_draws, num_chains, UNIT)
            say(f"  {case}: {len(listed)} competitors, {rounds} rounds")
            rows += measure_calls(case, listed, rounds=rounds, limit_s=options.limit, extra=compiled, say=say)
    notes = {
        **absent,
        "draws a chain, and steps of warm-up": str(num_draws),
        "limit of a call": f"{options.limit:g} s",
        "N": "number of chains; ESS is the least bulk ESS of the scalars that all libraries share",
        "compile": "short runs of 4 chains: the first call of a fresh process less the same call again",
    }
    more = [*target_table(target_lines(rows)), *agreement_table(rows)]
    return Outcome("Markov chains: warm-up and sampling", rows, COLUMNS, notes, more)


def _rounds(name: str, num_chains: int, quick: bool) -> int:
    if quick:
        return QUICK_ROUNDS
    return (SLOW_ROUNDS if name == SLOW else CHAINS).get(num_chains, 1)


def _compilation(
    name: str, listed: list[Competitor], options: argparse.Namespace, say: Any
) -> dict[Competitor, dict[str, Any]]:
    """What goes into the details of every run; the numbers of programs only where they are known."""
    starts = 1 if options.quick else STARTS
    found = measure_compilation(name, listed, starts=starts, limit_s=options.limit, say=say)
    details = {}
    for one, compiled in found.items():
        details[one] = {"compile_wall": compiled.wall, "compile_cpu": compiled.cpu}
        if compiled.again is not None:
            details[one] |= {"compiled_again": compiled.again, "compiled_by_new_data": compiled.new_data}
    return details
