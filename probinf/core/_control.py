r"""What a run asks between its compiled calls: whether to go on, to wait, or to end. One concept with three uses.

Ctrl-C (`interrupts`), another thread (`Remote`) and a rule that looks at the draws are each a `Control`. None of them
can change a number: they see what is done and say where the run ends.
"""

import contextlib
import enum
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import PyTree

MAX_STEPS = 2**31 - 1  # the step index is an int32


class Present(NamedTuple):
    """Where a run is, as its controls see it.

    Attributes:
        name: of the run.
        num_done: number of finished steps.
        num_steps: number of steps asked for.
        state: after step `num_done`.
        records: pytree of NumPy arrays, leading axis `num_done`, views of what the run keeps; None if not collected.
        accumulated: the reducer's accumulator, or None.
    """

    name: str
    num_done: int
    num_steps: int
    state: PyTree
    records: PyTree
    accumulated: PyTree


class Ending(enum.Enum):
    """Why a run ends before its last step: nothing more is needed, or somebody wants it to."""

    STOPPED = "stopped"
    INTERRUPTED = "interrupted"


@runtime_checkable
class Control(Protocol):
    """Decides between the compiled calls of a run whether it goes on.

    Law: a control that answers `STOPPED` does so by `num_done`, `num_steps` and the records alone, at counts that
    `border` named; then the end of a run depends on neither the speed of the machine nor a resume.
    """

    def border(self, num_done: int) -> int:
        """The next count of steps, over `num_done`, that no call crosses; `MAX_STEPS` for none."""
        ...

    def __call__(self, present: Present) -> Ending | None:
        """Asked before the first call and after every one, the last included. None goes on; it may also wait."""
        ...


class Interrupt:
    """Ends the run once `requested`."""

    requested = False

    def border(self, num_done: int) -> int:
        """No border."""
        del num_done
        return MAX_STEPS

    def __call__(self, present: Present) -> Ending | None:
        """`INTERRUPTED` if it was requested."""
        del present
        return Ending.INTERRUPTED if self.requested else None


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Inside the block the first Ctrl-C only sets `requested`; a second one raises `KeyboardInterrupt`.

    Only where Ctrl-C has Python's own meaning: another handler, or another thread, is left alone.
    """
    interrupt = Interrupt()
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )

    def request(number: int, frame: Any) -> None:
        del number, frame
        interrupt.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if ours:
        signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Remote(Interrupt):
    """Lets another thread see where a run is, hold it, and end it; one may serve several runs in a row.

    Attributes:
        view: what makes something to look at of a `Present`; set by the thread of the run before each run.
        latest: that function, and where the run was last; set together, so that they belong to each other.
        seen: set once there is a `latest`.
    """

    def __init__(self) -> None:
        self._free = threading.Event()
        self._free.set()
        self.view: Callable[[Present], Any] = lambda present: present
        self.latest: tuple[Callable[[Present], Any], Present] | None = None
        self.seen = threading.Event()

    def __call__(self, present: Present) -> Ending | None:
        """Tells where the run is, and waits while it is held."""
        self.latest = (self.view, present)
        self.seen.set()
        if present.num_done < present.num_steps:
            self._free.wait()
        return super().__call__(present)

    @property
    def held(self) -> bool:
        """Whether the run waits, or will after the call in progress."""
        return not self._free.is_set()

    def hold(self) -> None:
        """Has the run wait after the call in progress."""
        self._free.clear()
        if self.requested:
            self._free.set()

    def release(self) -> None:
        """Has it go on."""
        self._free.set()

    def end(self) -> None:
        """Has it end after the call in progress, held or not."""
        self.requested = True
        self._free.set()
