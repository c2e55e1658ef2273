"""How long random pairs take: ours in both precisions beside SciPy's scaled functions, call by call in turn."""

import time
from typing import Any

import jax
import numpy as np
import scipy.special

from probinf import special
from probinf.experiments import _log_bessel_page as page
from probinf.experiments._log_bessel_accuracy import plane
from probinf.experiments._page import Part
from probinf.experiments._workspace import Workspace

PAIRS = {"I": (special.log_iv, scipy.special.ive), "K": (special.log_kv, scipy.special.kve)}


def run(config: Any, workspace: Workspace) -> Part:
    """Wall and processor seconds; SciPy's are those of `ive` and `kve` alone, without the logarithm."""
    workspace.say(f"speed: {config.num_rounds} calls of {config.num_timed:,} pairs each")
    pairs = plane(np.random.default_rng([config.seed, 2]), config.num_timed)
    metrics: dict[str, Any] = {"num_pairs": config.num_timed, "num_rounds": config.num_rounds, "rows": {}}
    with jax.enable_x64(True):
        for name, (own, peer) in PAIRS.items():
            calls = {"SciPy": lambda peer=peer: peer(*pairs)}
            for dtype in ("float64", "float32"):
                calls[dtype] = compiled(own, pairs, dtype)
            metrics["rows"][name] = compare(measure(calls, config.num_rounds), config.num_timed)
    return Part(metrics, page.speed_section(metrics))


def compiled(function: Any, pairs: tuple[np.ndarray, np.ndarray], dtype: str) -> Any:
    """A call whose arguments lie on the device, and which ends when the values are there."""
    run = jax.jit(function)
    v, x = jax.device_put(tuple(a.astype(dtype) for a in pairs))
    return lambda: run(v, x).block_until_ready()


def measure(calls: dict[str, Any], num_rounds: int) -> dict[str, np.ndarray]:
    """Wall and processor seconds of each call, [rounds, 2], in turn; the first call of each is not counted."""
    for call in calls.values():
        call()
    seconds = {name: [] for name in calls}
    for _ in range(num_rounds):
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            call()
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: np.array(rows) for name, rows in seconds.items()}


def compare(seconds: dict[str, np.ndarray], count: int) -> dict[str, Any]:
    """Medians, and the median over rounds of SciPy's time over ours."""
    return {
        name: {
            "wall": float(np.median(rows[:, 0])),
            "processor": float(np.median(rows[:, 1])),
            "rate": count / float(np.median(rows[:, 0])),
            "scipy_over_this": float(np.median(seconds["SciPy"][:, 0] / rows[:, 0])),
        }
        for name, rows in seconds.items()
    }
