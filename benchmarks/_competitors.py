"""Lists of competitors: our own adapters run in our environment, peers in theirs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks._environments import environment_python
from benchmarks._harness import Competitor


class Entry(NamedTuple):
    """A variant of an adapter: which resampling rule and algorithm it is compared under."""

    variant: str
    rule: str
    algorithm: str = "bootstrap"


Entries = Mapping[str, Sequence[Entry]]  # of each library


def competitors(
    package: str, entries: Entries, *, environment: Sequence[tuple[str, str]] = (), python: str = sys.executable
) -> list[Competitor]:
    """The competitors whose adapters `package._LIBRARY` run under `python`, with variables `environment`."""
    return [
        Competitor(library, one.variant, one.rule, f"{package}._{library}", python, one.algorithm, tuple(environment))
        for library, variants in entries.items()
        for one in variants
    ]


def peer_competitors(
    package: str, entries: Entries, chosen: Sequence[str], folder: Path, *, say=print
) -> tuple[list[Competitor], dict[str, str]]:
    """The competitors of the chosen peers, whose environments are built where absent.

    Args:
        package: where the adapters are.
        entries: the variants of every peer of this benchmark.
        chosen: names of peers; must be keys of `entries`.
        folder: where environments live.
        say: called with a line of progress.

    Returns:
        The competitors, and a note for the report's header for each peer whose environment could not be had.

    Raises:
        ValueError: an unknown peer.
    """
    unknown = sorted(set(chosen) - set(entries))
    if unknown:
        raise ValueError(f"`peers` has {unknown}, known are {sorted(entries)}")
    listed, absent = [], {}
    for peer in chosen:
        try:
            python = environment_python(peer, folder, say=say)
        except RuntimeError as error:
            absent[f"{peer} is absent"] = str(error)
            say(f"  {error}")
            continue
        listed += competitors(package, {peer: entries[peer]}, python=python)
    return listed, absent
