"""Work in processes of its own: with other sources, or with other settings of XLA, which are read once a process."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


@contextlib.contextmanager
def in_processes(
    num_processes: int, environment: Mapping[str, str] | None = None
) -> Iterator[Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]]:
    """A function that maps as `map` does, in a few processes, in order.

    Args:
        num_processes: how many run at once. They are started when there is work, and kept.
        environment: variables that they have besides ours.
    """
    options = {"initializer": _set, "initargs": (dict(environment or {}),)}
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), **options) as pool:
        yield lambda function, items: list(pool.map(function, items))


def _set(environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
