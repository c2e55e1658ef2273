"""`python -m benchmarks filters`: the bootstrap filter of every library on two problems and two sizes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks._environments import environment_python
from benchmarks._harness import Case, Competitor, Row, measure
from benchmarks.filters._bare import QUICK as BARE_QUICK
from benchmarks.filters._bare import VARIANTS as BARE_VARIANTS
from benchmarks.filters._problems import NAMES, make_problem

OURS = {"always": "always", "ess<.5": "ess<.5"}
# The adapters of peers can be imported only in their own environments, so their variants are listed here too.
PEERS = {
    "blackjax": {"vmap/always": "always", "one-key/always": "always"},
    "cuthbert": {f"{runner}/{rule}": rule for rule in OURS for runner in ("offline", "online")},
    "particles": dict(OURS),
}
SIZES = {1_000: 15, 100_000: 5}  # particles to timed rounds


def competitors(
    peers: Sequence[str], folder: Path, *, quick: bool, say=print
) -> tuple[list[Competitor], dict[str, str]]:
    """Ours, the bare scans and the variants of `peers`, whose environments are built where absent.

    Returns:
        The competitors, and the reason for each peer whose environment could not be had.

    Raises:
        ValueError: an unknown peer.
    """
    unknown = sorted(set(peers) - set(PEERS))
    if unknown:
        raise ValueError(f"`peers` has {unknown}, known are {sorted(PEERS)}")
    bare = {name: BARE_VARIANTS[name] for name in (BARE_QUICK if quick else BARE_VARIANTS)}
    listed = [_competitor("probinf", name, rule, sys.executable) for name, rule in OURS.items()]
    listed += [_competitor("bare", name, rule, sys.executable) for name, rule in bare.items()]
    absent = {}
    for peer in peers:
        try:
            python = environment_python(peer, folder, say=say)
        except RuntimeError as error:
            absent[peer] = str(error)
            say(f"  {error}")
            continue
        listed += [_competitor(peer, name, rule, python) for name, rule in PEERS[peer].items()]
    return listed, absent


def run_filters(
    listed: Sequence[Competitor],
    sizes: dict[int, int],
    *,
    problems: Sequence[str] = NAMES,
    num_steps: int = 1000,
    say=print,
) -> list[Row]:
    """Measures all competitors on every problem and size; one row a competitor and case."""
    rows = []
    for name in problems:
        exact = make_problem(name, num_steps).log_evidence
        for num_particles, rounds in sizes.items():
            say(f"  {name}, T = {num_steps}, N = {num_particles}: {len(listed)} competitors, {rounds} rounds")
            rows += measure(Case(name, num_steps, num_particles), listed, exact, rounds=rounds, say=say)
    return rows


def _competitor(library: str, variant: str, rule: str, python: str) -> Competitor:
    return Competitor(library, variant, rule, f"benchmarks.filters._{library}", python)
