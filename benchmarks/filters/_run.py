"""`python -m benchmarks filters`: the bootstrap filter of every library on two problems and two sizes.

On the informative linear-Gaussian problem the guided and the auxiliary filter with the locally optimal proposal
run too, of us and of the peers that let a proposal look at the observation.
"""

import argparse
from collections.abc import Sequence

from benchmarks._competitors import Entry, competitors, peer_competitors
from benchmarks._harness import Case, Competitor, Row, measure
from benchmarks._report import COLUMNS, Outcome
from benchmarks.filters._bare import QUICK as BARE_QUICK
from benchmarks.filters._bare import VARIANTS as BARE_VARIANTS
from benchmarks.filters._problems import NAMES, make_problem
from benchmarks.filters._targets import gain_table, target_lines

RULES = ("always", "ess<.5")
# Proposals that look at the observation; at "always" they would be compared under a rule that nobody runs them by.
INFORMED = ("guided", "auxiliary")
OURS = [*(Entry(rule, rule) for rule in RULES), *(Entry(f"{name}/ess<.5", "ess<.5", name) for name in INFORMED)]
# The adapters of peers can be imported only in their own environments, so their variants are listed here too.
PEERS = {
    "blackjax": [Entry("vmap/always", "always"), Entry("one-key/always", "always")],
    "cuthbert": [
        *(Entry(f"{runner}/{rule}", rule) for rule in RULES for runner in ("offline", "online")),
        Entry("guided/ess<.5", "ess<.5", "guided"),
    ],
    "particles": OURS,
}
SIZES = {1_000: 15, 100_000: 5}  # particles to timed rounds
QUICK_SIZES = (1_000,)
PACKAGE = "benchmarks.filters"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    parser.add_argument("--problems", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--num-particles", nargs="+", type=lambda text: int(float(text)))
    parser.add_argument("--num-steps", type=int, default=1000)


def run(options: argparse.Namespace, *, say=print) -> Outcome:
    """Measures all competitors on every problem and size; one row a competitor and case."""
    bare = [Entry(name, BARE_VARIANTS[name]) for name in (BARE_QUICK if options.quick else BARE_VARIANTS)]
    listed = competitors(PACKAGE, {"probinf": OURS, "bare": bare})
    peers, absent = peer_competitors(PACKAGE, PEERS, options.peers, options.environments, say=say)
    sizes = options.num_particles or (QUICK_SIZES if options.quick else SIZES)
    rounds = {n: options.rounds or (5 if options.quick else SIZES.get(n, 5)) for n in sizes}
    rows = measure_filters([*listed, *peers], rounds, options.problems, options.num_steps, say=say)
    return Outcome("Particle filters", rows, COLUMNS, absent, [*target_lines(rows), *gain_table(rows)])


def measure_filters(
    listed: Sequence[Competitor], sizes: dict[int, int], problems: Sequence[str], num_steps: int, *, say=print
) -> list[Row]:
    """The rows of every problem and of every size, number of particles to timed rounds."""
    rows = []
    for name in problems:
        exact = make_problem(name, num_steps).log_evidence
        able = [one for one in listed if name == "linear_gaussian" or one.algorithm not in INFORMED]
        for num_particles, rounds in sizes.items():
            say(f"  {name}, T = {num_steps}, N = {num_particles}: {len(able)} competitors, {rounds} rounds")
            rows += measure(Case(name, num_steps, num_particles), able, exact, rounds=rounds, say=say)
    return rows
