"""What `probinf generate` shows on standard error while it runs: steps, ESS, pace, and the best text so far."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from probinf import llm
from probinf.core._progress import progress_display
from probinf.llm._generations_table import shorten


class Watcher:
    """Takes the reports of a run, keeps the last one, and passes each on to a display.

    Attributes:
        first: the first report, None before the first step is done.
        last: the last one.
        show: the display.
    """

    def __init__(self) -> None:
        self.first: llm.StepReport | None = None
        self.last: llm.StepReport | None = None
        self.show: Callable[[llm.StepReport, str], None] = lambda report, text: None

    def __call__(self, report: llm.StepReport) -> None:
        """Is called by the run after each step."""
        self.first, self.last = self.first or report, report
        self.show(report, self.numbers(report))

    def numbers(self, report: llm.StepReport) -> str:
        """ESS, how many texts have ended, and the pace since the first step, which had to be compiled."""
        parts = [f"ESS {report.ess:.1f}", f"{report.num_finished} ended"]
        if self.first is not None and report.seconds > self.first.seconds:
            pace = (report.tokens_used - self.first.tokens_used) / (report.seconds - self.first.seconds)
            parts.append(f"{pace:,.0f} tokens/s")
        return ", ".join(parts)


@contextlib.contextmanager
def watching(name: str, max_steps: int) -> Iterator[Watcher]:
    """A display for the time of a run: alive on a terminal, a line every few seconds elsewhere.

    Args:
        name: of the method.
        max_steps: the bound on steps.
    """
    console = Console(stderr=True)
    watcher = Watcher()
    display = _alive if console.is_terminal else _lines
    with display(console, name, max_steps) as show:
        watcher.show = show
        yield watcher


@contextlib.contextmanager
def _alive(console: Console, name: str, max_steps: int) -> Iterator[Callable[[llm.StepReport, str], None]]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
    )
    task = bar.add_task(name, total=max_steps, text="compiling")
    best = Text("", style="dim", no_wrap=True, overflow="ellipsis")

    def show(report: llm.StepReport, text: str) -> None:
        bar.update(task, completed=report.step, text=text)
        best.plain = shorten(report.best_text, 2 * console.width)

    with Live(Group(bar, best), console=console, refresh_per_second=8, transient=True):
        yield show


@contextlib.contextmanager
def _lines(console: Console, name: str, max_steps: int) -> Iterator[Callable[[llm.StepReport, str], None]]:
    del console
    with progress_display(name, 0, max_steps, time.perf_counter) as report_progress:

        def show(report: llm.StepReport, text: str) -> None:
            report_progress(report.step, lambda: f"{text}, best: {shorten(report.best_text, 60)}")

        yield show
