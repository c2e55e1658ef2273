"""Calls of a user's function on the host: side by side, with a time limit, and what they raise handed over as data.

Threads are daemons, so that a call that never returns keeps neither the run nor the interpreter from ending.
"""

import contextvars
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What a call returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None


def call_all(
    function: Callable[..., Any], arguments: Sequence[tuple], *, timeout: float | None = None, num_workers: int = 1
) -> list[Outcome]:
    """Calls `function(*arguments[i])` for every i.

    What is no `Exception`, such as Ctrl-C, is raised here at once. A call that takes too long goes on in its thread,
    which cannot be stopped; its outcome is a `TimeoutError`, and another call takes its place.

    Args:
        function: what is called; from several threads if `num_workers` > 1, and from another one if there is a limit.
        arguments: a tuple a call.
        timeout: seconds that one call may take, or None.
        num_workers: how many calls go on at a time.

    Returns:
        An outcome a call, in order.
    """
    if timeout is None and num_workers == 1:
        return [_raise_unless_exception(_outcome(function, one)) for one in arguments]
    limit = math.inf if timeout is None else timeout
    outcomes, waiting = [Outcome()] * len(arguments), deque(range(len(arguments)))
    running: dict[int, float] = {}
    done: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
    while waiting or running:
        while waiting and len(running) < num_workers:
            index = waiting.popleft()
            running[index] = time.monotonic() + limit
            work = (contextvars.copy_context(), function, arguments[index], index, done)
            threading.Thread(target=_work, args=work, name="probinf-verifier", daemon=True).start()
        # Woken now and then: not on every platform does Ctrl-C reach a thread that waits.
        pause = min(0.5, max(0.0, min(running.values()) - time.monotonic()))
        try:
            index, outcome = done.get(timeout=pause)
        except queue.Empty:
            now = time.monotonic()
            for index in [index for index, end in running.items() if end <= now]:
                del running[index]
                outcomes[index] = Outcome(error=TimeoutError(f"it took over {timeout:g} s"))
            continue
        if running.pop(index, None) is not None:  # else it was given up before
            outcomes[index] = _raise_unless_exception(outcome)
    return outcomes


def _work(
    context: contextvars.Context, function: Callable[..., Any], arguments: tuple, index: int, done: queue.SimpleQueue
) -> None:
    done.put((index, context.run(_outcome, function, arguments)))


def _outcome(function: Callable[..., Any], arguments: tuple) -> Outcome:
    try:
        return Outcome(function(*arguments))
    except BaseException as error:  # handed to the caller's thread, which raises what is not an `Exception`
        return Outcome(error=error)


def _raise_unless_exception(outcome: Outcome) -> Outcome:
    if outcome.error is not None and not isinstance(outcome.error, Exception):
        raise outcome.error
    return outcome
