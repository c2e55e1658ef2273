"""`probinf generate`: texts of a language model, weighed and resampled, and the posterior of their answers.

The posterior (with `--json` everything) goes to standard output, progress and flags go to standard error.
"""

from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer
from rich.console import Console

from probinf import llm
from probinf.cli._generate_display import Watcher, watching
from probinf.cli._generate_output import as_json, flag_text, print_posterior
from probinf.cli._generate_request import METHODS, Request, default_of, read_request
from probinf.core import InferenceError, Status, is_fatal

PLOTS = (".pdf", ".png", ".svg")


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to go on from; `-` reads it from standard input.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="A model of this library by its name, or a folder.")] = "chains",
    scorer: Annotated[
        str | None, typer.Option(help="What judges the steps: a model, a folder, or `module:function` of texts.")
    ] = None,
    potential: Annotated[
        str | None, typer.Option(help="How: `odds`, `prob`, `ratio`, `final`, `judge`, `self_certainty` or `none`.")
    ] = None,
    twist: Annotated[
        str | None, typer.Option(help="What guesses the rest, for twisted-smc: a model or a function, as `--scorer`.")
    ] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "particle-filter",
    particles: Annotated[int, typer.Option(help="How many texts.")] = 32,
    step: Annotated[
        str | None,
        typer.Option(
            help="The text that ends a step (`\\n` is a line break), or `block:16` for steps of 16 tokens.",
            show_default="; for the chains models, else \\n\\n",
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text that ends a text, or the name of a special token; may be given several times."),
    ] = None,
    max_steps: Annotated[int, typer.Option(help="The most steps of a text.")] = 40,
    max_tokens: Annotated[
        int | None, typer.Option(help="The most tokens of a text.", show_default="what the context holds")
    ] = None,
    ess_threshold: Annotated[
        float | None,
        typer.Option(
            help="Resample when ESS / N is below it; 1 for every step, 0 for never.",
            show_default=default_of("ess_threshold"),
        ),
    ] = None,
    resampling: Annotated[
        str | None, typer.Option(help="Resampling scheme.", show_default=default_of("resampling"))
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Passes of particle-gibbs and parallel-tempering.", show_default="16")
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Continuations that beam and dvts try of each text.", show_default=default_of("width")),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the law of tokens.", show_default="1.0")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens.", show_default="all")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Only the likeliest tokens of this mass.", show_default="1.0")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Only tokens of this share of the likeliest one.", show_default="0.0")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The aim: `proposal`, the law of tokens as above, or `model`, with weights that correct for it.",
            show_default=default_of("base"),
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random number.")] = 0,
    answer: Annotated[
        str | None,
        typer.Option(
            help="Regular expression whose last match (its group 1, if it has one) is the answer of a text.",
            show_default="the last result for the chains models, else the whole text",
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            "--select",
            help="Also choose one text: `argmax` (best score), `sample`, `majority` or `weighted`.",
            show_default="argmax for best-of-n, beam and dvts",
        ),
    ] = None,
    aggregate: Annotated[
        str | None,
        typer.Option(help="How the scores of steps become one: `last`, `min`, `prod`, `mean`.", show_default="last"),
    ] = None,
    as_data: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="File for the result, which `llm.Generations.load` reads.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="File for the genealogy, such as `tree.svg`.", show_default=False)
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress; most methods are then one program, which Ctrl-C loses.")
    ] = False,
) -> None:
    """Write texts with a language model, weigh their steps, and print the posterior of their answers.

    Ctrl-C ends the run and prints what there is: the steps that are done, or of particle-gibbs and parallel-tempering
    the iterations. Where all is one program (waste-free; with --quiet all methods but those two) it is heard at the
    end, and nothing is left. The exit code is 130 after Ctrl-C, 1 when the run failed or no text has any weight, and 2
    when it cannot be done as asked.
    """
    options = {
        "num_particles": particles,
        "max_steps": max_steps,
        "scorer": scorer,
        "potential": potential,
        "max_tokens": max_tokens,
        "ess_threshold": ess_threshold,
        "resampling": resampling,
        "num_iterations": iterations,
        "width": width,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "base": base,
        "stop": stop or None,
        "twist": twist,
    }
    try:
        _check_files(out, plot)
        request = read_request(
            prompt=prompt,
            model=model,
            method=method,
            seed=seed,
            step=step,
            answer=answer,
            rule=rule,
            aggregate=aggregate,
            options=options,
        )
        found = _run(request, method, max_steps, quiet=quiet)
    except InferenceError as error:
        _stop(f"{method} failed: {error}", code=1)
    except (TypeError, ValueError, ImportError, OSError) as error:
        _stop(str(error), code=2)
    _conclude(found, request, as_data=as_data, out=out, plot=plot)


def _run(request: Request, method: str, max_steps: int, *, quiet: bool) -> llm.Generations:
    """Runs it; Ctrl-C gives what there is, marked as interrupted."""
    watcher, watched = Watcher(), request.can_be_watched and not quiet
    try:
        if not watched:
            return request.run(progress=not quiet)
        with watching(method, max_steps) as watcher:
            return request.run(watcher)
    except KeyboardInterrupt as error:
        if not watched:
            mend = ": without --quiet the steps that are done are printed" if request.can_be_watched else ""
            _stop(
                f"interrupted: {str(error) or f'{method} ran as one program, of which nothing is kept{mend}'}", code=130
            )
        if watcher.last is None:
            _stop("interrupted before the first step was done: there is nothing to show", code=130)
        found = watcher.last.generations()
        return found.with_status(Status.INTERRUPTED)


def _conclude(found: llm.Generations, request: Request, *, as_data: bool, out: Path | None, plot: Path | None) -> None:
    """Prints, stores and draws the result; the exit code says what it is worth."""
    interrupted, steps = bool(found.status & Status.INTERRUPTED), int(np.max(found.num_steps, initial=0))
    if interrupted and steps == 0:
        _stop("interrupted before the first step was done: there is nothing to show", code=130)
    if found.status & ~Status.INTERRUPTED:
        typer.echo(flag_text(found), err=True)
    if is_fatal(np.uint32(found.status)):
        _write(found, request, out, None)
        raise typer.Exit(1)
    try:
        chosen = request.select(found)
    except ValueError as error:
        _write(found, request, out, plot)
        _stop(f"{error}", code=2)
    if as_data:
        typer.echo(as_json(found, request.extract, request.rule, chosen))
    else:
        print_posterior(Console(), found, request.extract, request.rule, chosen)
    _write(found, request, out, plot)
    if interrupted:
        where = f" in step {steps + 1}" if request.can_be_watched else ""
        _stop(f"interrupted{where}: this is what there is", code=130)
    if not np.any(found.weights > 0):
        _stop("no text has any weight, so there is no posterior", code=1)


def _write(found: llm.Generations, request: Request, out: Path | None, plot: Path | None) -> None:
    """Writes the files that were asked for, and says so; what was printed before is not lost if one cannot be."""
    try:
        if out is not None:
            typer.echo(f"result: {found.save(out)}", err=True)
        if plot is not None:
            found.plot(request.extract).savefig(plot)
            typer.echo(f"genealogy: {plot}", err=True)
    except OSError as error:
        _stop(f"a file could not be written: {error}", code=1)


def _check_files(out: Path | None, plot: Path | None) -> None:
    """Refuses files that cannot be written before anything is run.

    Raises:
        ValueError: a folder that is not there, or a figure of an unknown kind.
    """
    for name, file in (("out", out), ("plot", plot)):
        if file is not None and not file.resolve().parent.is_dir():
            raise ValueError(f"`--{name}` {file} lies in a folder that does not exist: make {file.parent} first")
    if plot is not None and plot.suffix not in PLOTS:
        raise ValueError(f"`--plot` {plot} must end in one of {', '.join(PLOTS)}")


def _stop(message: str, *, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
