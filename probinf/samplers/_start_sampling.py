"""`start_sampling`: `sample` in a thread, to look at, hold, and end while it runs."""

import atexit
import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from probinf.core._control import Remote
from probinf.core._draws import Draws
from probinf.core._kernel import Kernel
from probinf.core._status import check_status
from probinf.core._target import Target
from probinf.core._types import PRNGKey
from probinf.samplers._draw import divergences
from probinf.samplers._sample import SampleJob, checked, run_job, sample

# Settings of JAX that `with` sets for one thread; those of the starting thread hold in the new one too.
_SETTINGS = (
    "enable_x64",
    "default_matmul_precision",
    "default_device",
    "default_prng_impl",
    "threefry_partitionable",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "debug_nans",
    "debug_infs",
    "debug_key_reuse",
)


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        phase: "starting", "warmup", "draws" or "done".
        num_done: finished steps of the phase: of warm-up, or draws a chain.
        num_steps: how many there are to be, or may be with a stop rule; 0 while it is starting.
        paused: whether it waits, or will after the compiled call in progress.
    """

    phase: str
    num_done: int
    num_steps: int
    paused: bool


class SamplingRun:
    """A run of `sample` in the background; `start_sampling` makes it.

    Pausing and looking change no draw. A compiled call lasts about half a second, two for interleaved chains and
    longer for the first one, which compiles; `pause` and `abort` take effect after it. As a context manager it aborts
    what still runs when the block is left. When the program ends it is aborted too, and a `checkpoint` is written.
    """

    def __init__(self, job: SampleJob):
        self._job, self._remote, self._outcome, self._settings = job, Remote(), Future(), _settings()
        arguments = (job, self._remote, self._outcome, self._settings)
        self._thread = threading.Thread(target=_work, args=arguments, name="probinf sampling", daemon=True)
        # A thread that computes while the interpreter is taken down would crash it.
        atexit.register(self._close)
        self._outcome.add_done_callback(lambda _: atexit.unregister(self._close))
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self._outcome.done()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        latest, paused = self._remote.latest, self._remote.held
        if latest is None:
            return Progress("done" if self.done else "starting", 0, 0, paused)
        _, present = latest
        phase = "draws" if present.name == "sample" else present.name
        return Progress("done" if self.done else phase, present.num_done, present.num_steps, paused)

    def draws(self) -> Draws:
        """The draws so far, which stay as they are while the run goes on.

        During warm-up there are none; before it, this waits for the chains to have their starting points. Nothing is
        raised or warned of for their flags.

        Raises:
            BaseException: what ended the run, if it failed before there were any.
        """
        self._remote.seen.wait()
        if self._remote.latest is None or (self.done and self._outcome.exception() is None):
            return self._outcome.result()
        view, present = self._remote.latest
        with _restored(self._settings):
            draws = view(present)
        return dataclasses.replace(draws, samples=_copied(draws.samples), info=_copied(draws.info))

    def pause(self) -> None:
        """Has the run wait after the compiled call in progress. One that has ended is left alone."""
        self._remote.hold()

    def resume(self) -> None:
        """Has a paused run go on."""
        self._remote.release()

    def abort(self) -> Draws:
        """Ends the run after the compiled call in progress and waits for that.

        Returns:
            The draws so far, flagged `INTERRUPTED`; all of them if it had ended before. Nothing is raised or warned of
            for their flags.

        Raises:
            BaseException: what ended the run, if it failed.
        """
        self._remote.end()
        return self._outcome.result()

    def result(self, timeout: float | int | None = None) -> Draws:
        """Waits for the end of the run and returns what `sample` would. A paused run must be resumed first.

        Ctrl-C while waiting leaves the run alone.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: it still runs; ask again, or `abort`.
            InferenceError: as from `sample`, if it was started with `throw=True`.
            BaseException: whatever else ended the run.
        """
        try:
            draws = self._outcome.result(timeout)
        except TimeoutError as error:
            if self.done:
                raise
            mend = "it is paused: call `resume()`" if self._remote.held else "ask again, or call `abort()`"
            raise TimeoutError(f"the run has not ended after {timeout} seconds ({self.progress}); {mend}") from error
        if self._job.throw:
            check_status(draws.status, what="sample", counts=divergences(draws), result=draws)
        return draws

    def __enter__(self) -> "SamplingRun":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._remote.end()
        self._thread.join()


def start_sampling(key: PRNGKey, kernel: Kernel, target: Target, **options: Any) -> SamplingRun:
    """Starts `sample` in a thread of its own and returns at once, with a hold on the run.

    Law: `start_sampling(...).result()` has the same bits as `sample(...)`, paused or not.

        with start_sampling(key, nuts(), target, num_samples=10_000) as run:
            while not run.done:
                time.sleep(10)
                print(run.progress, run.draws().summary())
                ...  # run.pause(), run.resume(), run.abort()
            draws = run.result()

    Settings of JAX that hold in this thread (`jax.enable_x64` and the like) hold in the other too. NumPyro keeps its
    handlers in one stack for all threads: call no model of it while the first call of a run compiles another.

    Args:
        key: as for `sample`, like all others.
        kernel: such as `nuts()`.
        target: density to draw from.
        **options: `num_samples` and all other options of `sample`.

    Returns:
        A `SamplingRun`.

    Raises:
        ValueError: a bad argument, as far as it is seen at once; what `sample` raises later comes from `result()`.
        TypeError: an unknown option, or an argument of a wrong type.
    """
    bound = inspect.signature(sample).bind(key, kernel, target, **options)
    bound.apply_defaults()
    return SamplingRun(checked(SampleJob(**bound.arguments), "start_sampling"))


def _work(job: SampleJob, remote: Remote, outcome: "Future[Draws]", settings: Mapping[str, Any]) -> None:
    try:
        with _restored(settings):
            draws = run_job(job, remote)
    except BaseException as error:  # raised again in the thread that asks for the result
        outcome.set_exception(error)
    else:
        outcome.set_result(draws)
    finally:
        remote.seen.set()


def _settings() -> dict[str, Any]:
    return {name: getattr(jax.config, f"jax_{name}") for name in _SETTINGS}


@contextlib.contextmanager
def _restored(settings: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block the settings hold; those that do already are left alone, as JAX would compile again for them."""
    present = _settings()
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            if present[name] != value:
                stack.enter_context(getattr(jax, name)(value))
        yield


def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(np.array, tree)
