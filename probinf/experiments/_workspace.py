"""`Workspace`: the folder of one run, safe to interrupt, to resume and to run twice.

A folder belongs to one run, named by its *identity*: experiment, configuration with its seed, versions, precision and
source. The identity is written first. A run with the same identity takes up what is finished; a run with another one
is refused and touches nothing, unless it was told to overwrite. Two processes cannot hold a folder at once.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from probinf.core import Draws, Status
from probinf.core._files import locked, write_file
from probinf.experiments._figures import to_svg
from probinf.experiments._page import Figure, Part, decode, encode, plain

# What a run writes; nothing else in a folder is ever removed.
IDENTITY, LOCK, METRICS, REPORT = "run.json", "lock", "metrics.json", "report.html"
FOLDERS = ("parts", "figures", "draws", "checkpoints")


class FolderError(ValueError):
    """The folder cannot be used for this run; the message says why and what to do. Nothing was touched."""


class Workspace:
    """Where the parts of one run put what they make. Get one from `open_workspace`.

    Attributes:
        folder: the run's folder.
        say: tells the user what is going on, one short line.
        progress: whether long loops should show a bar of their own.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], *, progress: bool):
        self.folder = folder
        self.say = say
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []

    def part(self, name: str, compute: Callable[..., Part], *args: Any) -> Part:
        """The part `name`: read from disk if it is finished, else `compute(*args, self)`, then stored.

        Args:
            name: also the file name.
            compute: a function that ends by returning a `Part`.
            *args: passed before the workspace.
        """
        file = self.folder / "parts" / f"{name}.json"
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            self.seconds[name] = stored["seconds"]
            self.reused.append(name)
            self.say(f"{name}: already done")
            return decode(stored)
        start = time.perf_counter()
        data = encode(compute(*args, self))
        self.seconds[name] = round(time.perf_counter() - start, 2)
        write_json(file, data | {"seconds": self.seconds[name]})
        # Reading back what was written makes a resumed run and an uninterrupted one show the same page.
        return decode(data)

    def figure(self, name: str, canvas: Canvas, *, caption: str, alt: str) -> Figure:
        """Stores a figure as SVG and returns its place in the report."""
        file = f"figures/{name}.svg"
        write_text(self.folder / file, to_svg(canvas, name=name))
        return Figure(file, caption, alt)

    def checkpoint(self, name: str) -> Path:
        """The folder for the checkpoints of a long loop, so that a resumed run goes on inside it."""
        return self.folder / "checkpoints" / name

    def keep(self, name: str, draws: Draws) -> Draws:
        """Stores draws as NetCDF; an interrupted run is not kept here (its checkpoint is) but ends the experiment.

        Raises:
            KeyboardInterrupt: the draws are those of an interrupted run.
        """
        if np.any(np.asarray(draws.status) & int(Status.INTERRUPTED)):
            raise KeyboardInterrupt
        file = self.folder / "draws" / f"{name}.nc"
        file.parent.mkdir(parents=True, exist_ok=True)
        draws.save(file)
        return draws


@contextmanager
def open_workspace(
    folder: Path,
    identity: Mapping[str, Any],
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: bool = False,
) -> Iterator[Workspace]:
    """Takes hold of a folder for the run that `identity` names, and lets go of it at the end.

    Args:
        folder: made if it is absent.
        identity: flat mapping; the run resumes only where every entry agrees.
        overwrite: remove the files of a different run that the folder holds.
        say: receives one line for each thing worth telling.
        progress: passed on to the workspace.

    Raises:
        FolderError: the folder holds a different run, or files that no run of ours wrote.
        ValueError: another process holds the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"`{folder}` is a file: give `--out` a folder")
    _refuse_strangers(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        wanted = plain(identity)
        changes = differences(folder, wanted)
        if changes and not overwrite:
            raise FolderError(
                f"`{folder}` holds a different run ({'; '.join(changes)}). Nothing was touched. Give another folder "
                "with `--out`, or `--overwrite` to replace what is there"
            )
        if changes:
            say(f"replacing the run in {folder} ({'; '.join(changes)})")
            _clear(folder)
        write_json(folder / IDENTITY, wanted)
        yield Workspace(folder, say, progress=progress)


def differences(folder: Path, identity: Mapping[str, Any]) -> list[str]:
    """How the run that a folder holds differs from `identity`, in words; empty where it does not, or holds none."""
    file = folder / IDENTITY
    if not file.is_file():
        return []
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return [f"its {IDENTITY} cannot be read"]
    names = sorted(held.keys() | identity.keys())
    return [
        f"{name}: there {held.get(name)}, asked for {identity.get(name)}"
        for name in names
        if held.get(name) != identity.get(name)
    ]


def write_text(file: Path, text: str) -> None:
    """Writes a text file whole or not at all, making its folder where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, lambda stream: stream.write(text.encode()))


def write_json(file: Path, data: Any) -> None:
    """Writes JSON whole or not at all; numbers that are not finite must have become null (`plain`)."""
    write_text(file, json.dumps(data, indent=2, allow_nan=False) + "\n")


def _refuse_strangers(folder: Path) -> None:
    """A folder with files but without a run of ours is somebody else's."""
    if not folder.is_dir() or (folder / IDENTITY).exists():
        return
    strangers = sorted(item.name for item in folder.iterdir() if item.name != LOCK)
    if strangers:
        raise FolderError(
            f"`{folder}` is not empty and holds no run of probinf ({', '.join(strangers[:3])} …). Nothing was touched. "
            "Give an empty or new folder with `--out`"
        )


def _clear(folder: Path) -> None:
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (METRICS, REPORT, IDENTITY):
        (folder / name).unlink(missing_ok=True)
