"""Settings for every test: strict JAX, reproducible keys, a compilation cache, and which tests run by default."""

import gc
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

# Before matplotlib is first imported by anything: tests draw figures, but have no screen.
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import jax
import pytest

# `probinf` must not be imported here: the jaxtyping hook has to see its first import in the tests.

DEFAULT_SEED = 20_240_229

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# No deadline: the first example pays for a compilation. Derandomised: a red run means a change of code.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.register_profile("vary", derandomize=False, deadline=None, print_blob=True, max_examples=200)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("probinf")
    group.addoption("--seed", type=int, default=DEFAULT_SEED, help="seed of the `key` fixture")
    group.addoption("--vary-seed", action="store_true", help="draw a new seed (printed in the header) and new examples")


def pytest_configure(config: pytest.Config) -> None:
    # The worker processes of pytest-xdist get these options from the first process, so all see one seed.
    if config.option.vary_seed and not hasattr(config, "workerinput"):
        config.option.seed = secrets.randbelow(2**31)
    hypothesis.settings.load_profile("vary" if config.option.vary_seed else "ci")


def pytest_report_header(config: pytest.Config) -> str:
    return f"probinf: jax {jax.__version__}, repeat this run's keys with --seed={config.option.seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drops compiled programs between files: all of them together would exceed the 65,530 mappings of a process."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A fresh key from the run's seed: the same in every test, and consumed once by each."""
    return jax.random.key(request.config.option.seed)


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _strict_jax(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks for reused keys; lifts the strict settings where a marker says that code of others needs it."""
    node = request.node
    with ExitStack() as stack:
        if node.get_closest_marker("numpyro"):
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        elif not node.get_closest_marker("no_key_reuse"):
            stack.enter_context(jax.debug_key_reuse(True))
        yield
