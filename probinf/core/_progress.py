r"""What a run shows while it goes on: a rich bar on a terminal or in a notebook, a line every few seconds in a log."""

import contextlib
from collections.abc import Callable, Iterator

SECONDS_BETWEEN_LINES = 2.5

Report = Callable[[int, Callable[[], str]], None]


@contextlib.contextmanager
def progress_display(name: str, start: int, total: int, clock: Callable[[], float]) -> Iterator[Report]:
    """Shows progress on stderr; yields `report(num_done, text)`, to be called after each piece of work.

    A log gets a line as soon as `SECONDS_BETWEEN_LINES` have passed on `clock`: at least every 5 s, or at each report
    where a piece of work lasts longer.
    """
    from rich.console import Console  # here, so that a run without a display does not pay for the import

    console = Console(stderr=True)
    display = _bar if console.is_terminal or console.is_jupyter else _lines
    with display(console, name, start, total, clock) as report:
        yield report


@contextlib.contextmanager
def _bar(console, name: str, start: int, total: int, clock: Callable[[], float]) -> Iterator[Report]:
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[text]}"),
    )
    with progress.Progress(*columns, console=console, get_time=clock, refresh_per_second=4) as bar:
        task = bar.add_task(name, total=total, completed=start, text="")
        yield lambda done, text: bar.update(task, completed=done, text=text(), refresh=done == total)


@contextlib.contextmanager
def _lines(console, name: str, start: int, total: int, clock: Callable[[], float]) -> Iterator[Report]:
    del start  # a resumed run is paced by its own steps
    begun = last = clock()
    first: tuple[int, float] | None = None

    def report(done: int, text: Callable[[], str]) -> None:
        nonlocal first, last
        now = clock()
        if first is None:
            first = done, now  # the time before it was that of compilation, and says nothing about the rest
        if now - last < SECONDS_BETWEEN_LINES and done < total:
            return
        last = now
        pace = (now - first[1]) / (done - first[0]) if done > first[0] else None
        left = "" if pace is None or done == total else f", about {pace * (total - done):.0f} s left"
        share = f"{done}/{total} ({100 * done // max(1, total)} %)"
        console.print(
            f"{name}: {share}, {now - begun:.0f} s{left} {text()}".rstrip(),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    yield report
