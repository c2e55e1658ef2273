"""The commands. Results go to standard output, the course of things to standard error.

Exit codes: 0 all is well; 1 a claim does not hold, a run failed, or the self-test failed; 2 the command cannot be
done as asked (unknown name, folder taken); 130 interrupted.
"""

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import jax
import typer
from rich.console import Console
from rich.table import Table

from probinf.cli._cache import enable_cache
from probinf.cli._check import BadNameError, load_kernel
from probinf.cli._doctor import checks, facts
from probinf.cli._generate import generate
from probinf.core import InferenceError
from probinf.experiments import (
    CERTIFICATES,
    EXPERIMENTS,
    Claim,
    Outcome,
    certify,
    collect_reports,
    find,
    run_experiment,
)
from probinf.validity import Report
from probinf.validity import check as validity_check

app = typer.Typer(
    name="probinf",
    help="Probabilistic inference made of parts whose laws are tests.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)


def main() -> None:
    """The entry point of the `probinf` command."""
    app()


@app.callback()
def _prepare() -> None:
    enable_cache()


@app.command("list")
def list_experiments() -> None:
    """Show every experiment: its name, what it claims, and the paper."""
    table = Table(title="Experiments", title_justify="left", title_style="bold", show_lines=False, pad_edge=False)
    table.add_column("name", style="bold cyan", no_wrap=True)
    table.add_column("claim")
    table.add_column("paper", style="dim")
    for experiment in EXPERIMENTS.values():
        table.add_row(experiment.name, experiment.claim, experiment.paper)
    _out().print(table)
    _out().print("Run one with [bold]probinf run NAME[/bold]; add [bold]--scale full[/bold] for the long version.")


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="An experiment of `probinf list`.", show_default=False)],
    scale: Annotated[str, typer.Option(help="`quick` (at most 2 minutes on 2 cores) or `full`.")] = "quick",
    seed: Annotated[int, typer.Option(help="Seed of every random number of the run.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="results/NAME")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a different run in the folder.")] = False,
) -> None:
    """Run an experiment; its report's path is the last line printed.

    The same run into the same folder takes up what is finished there (after Ctrl-C, for instance). A run with another
    seed, scale or version is refused, and touches nothing, unless `--overwrite` is given. The exit code is 1 when a
    claim does not hold.
    """
    folder = out if out is not None else Path("results") / name
    start = time.perf_counter()

    def say(text: str) -> None:
        _err().print(f"[dim]{time.perf_counter() - start:6.1f} s[/dim]  {text}", highlight=False)

    try:
        find(name)
        outcome = run_experiment(
            name, scale=scale, seed=seed, out=folder, overwrite=overwrite, say=say, progress=sys.stderr.isatty()
        )
    except KeyboardInterrupt:
        _interrupted(name, scale, seed, folder)
    except InferenceError as error:
        _stop(f"{name} failed: {error}", code=1)
    except ValueError as error:
        _stop(str(error), code=2)
    _conclude(outcome)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs.")] = Path("results"),
) -> None:
    """Collect every finished run below a folder into one page; its path is the last line printed."""
    try:
        page = collect_reports(folder)
    except ValueError as error:
        _stop(str(error), code=2)
    typer.echo(page)


@app.command()
def doctor() -> None:
    """Show versions, devices and caches, and run a short self-test; the exit code is 1 when it fails."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in (facts() | {"compilation cache": enable_cache()}).items():
        table.add_row(name, value)
    _out().print(table)
    sound = True
    for check in checks():
        sound &= check.passed
        mark = "[green]✓[/green]" if check.passed else "[red]✗[/red]"
        _out().print(f"{mark} {check.name}: ", end="")
        _out().print(check.detail, markup=False, highlight=False)
    if not sound:
        _stop("the self-test failed: results of this installation cannot be relied on", code=1)
    _out().print("[green]All is well.[/green]")


@app.command()
def check(
    kernel: Annotated[str, typer.Argument(help="`module:name` of a kernel, or of a function that makes it.")] = "",
    target: Annotated[str, typer.Option(help="`module:name` of its target.")] = "",
    draw: Annotated[str, typer.Option(help="`module:name` of a function key -> position, exact draws of it.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of every random number.")] = 0,
) -> None:
    """Check that a Markov kernel leaves its target invariant; without a kernel, the certified blocks of this library.

    Runs in float64. Without a target the kernel is run on three of unit scale. The exit code is 1 when a check fails.
    """
    if kernel:
        with jax.enable_x64(True):
            try:
                found = load_kernel(kernel, target=target or None, draw=draw or None)
            except BadNameError as error:
                _stop(str(error), code=2)
            reports = {kernel: Report(validity_check(*found, seed=seed).checks, kernel)}
        _out().print(reports[kernel])
    else:
        reports = {}
        for name in CERTIFICATES:
            reports[name] = certify(name)
            mark = "[green]✓[/green]" if reports[name].passed else "[red]✗[/red]"
            _out().print(f"{mark} {name}: {len(reports[name].checks)} checks", highlight=False)
            if not reports[name].passed:
                _out().print(reports[name])
        rate = sum(report.false_alarm_rate for report in reports.values())
        _out().print(f"{len(reports)} certificates; at most {rate:.1g} chance of a false alarm", highlight=False)
    broken = [name for name, report in reports.items() if not report.passed]
    if broken:
        _stop(f"failed: {', '.join(broken)}", code=1)


app.command()(generate)


def _conclude(outcome: Outcome) -> None:
    if outcome.reused:
        _err().print(f"[dim]taken from disk: {', '.join(outcome.reused)}[/dim]")
    _out().print(_claims_table(outcome.claims))
    broken = [claim.text for claim in outcome.claims if not claim.holds]
    if broken:
        _err().print(f"[bold red]{len(broken)} of {len(outcome.claims)} claims do not hold:[/bold red]")
        for text in broken:
            _err().print(f"  {text}", markup=False)
    # Not through rich, which would wrap a long path.
    typer.echo(outcome.report)
    if broken:
        raise typer.Exit(1)


def _claims_table(claims: tuple[Claim, ...]) -> Table:
    table = Table(show_lines=True, pad_edge=False)
    for column in ("claim", "paper", "ours", "holds?"):
        table.add_column(column)
    for claim in claims:
        verdict = "[green]✓ holds[/green]" if claim.holds else "[bold red]✗ no[/bold red]"
        table.add_row(claim.text, claim.paper, claim.ours, verdict)
    return table


def _interrupted(name: str, scale: str, seed: int, folder: Path) -> NoReturn:
    done = sorted(file.stem for file in (folder / "parts").glob("*.json"))
    command = f"probinf run {name} --scale {scale} --seed {seed} --out {shlex.quote(str(folder))}"
    _stop(
        f"interrupted. Finished parts: {', '.join(done) or 'none'}; what is done is kept in {folder}.\n"
        f"Go on with: {command}",
        code=130,
    )


def _stop(message: str, *, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def _out() -> Console:
    return Console()


def _err() -> Console:
    return Console(stderr=True)
