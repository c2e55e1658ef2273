"""A worker: one competitor in its own process, driven line by line through JSON on stdin and stdout.

Requests: `{"do": "prepare", "adapter", "variant", "problem", "size", "num_particles"}`, `{"do": "run", "seed"}`,
`{"do": "stop"}`. Each is answered by one line. A fault ends the process with a traceback on stderr, which the
harness reports: nothing is caught here.

The adapter is a module with `PACKAGES` and `prepare(variant, problem, num_particles)`; the problem is that of
`make_problem(name, size, solve=False)` in the module `_problems` beside it. What `prepare` returns takes a seed and
returns the log evidence, or that and a function for the other numbers of the run, which is called off the clock.
"""

import importlib
import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from typing import Any


def main() -> None:
    """Answers requests until "stop" or the end of input."""
    # Libraries may print: their lines go to stderr, and the protocol keeps the real stdout for itself.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "stop":
            return
        if request["do"] == "prepare":
            reply, run = _prepare(request)
        else:
            reply = _run(run, request["seed"])
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _prepare(request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    start = time.perf_counter()
    adapter = importlib.import_module(request["adapter"])
    problems = importlib.import_module(request["adapter"].rpartition(".")[0] + "._problems")
    problem = problems.make_problem(request["problem"], request["size"], solve=False)
    run = adapter.prepare(request["variant"], problem, request["num_particles"])
    reply = {
        "versions": {name: version(name) for name in adapter.PACKAGES},
        "python": platform.python_version(),
        "import_wall": time.perf_counter() - start,
        "device": _device(),
    }
    return reply, run


def _run(run: Any, seed: int) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = run(seed)
    times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    log_evidence, details = found if isinstance(found, tuple) else (found, dict)
    # The peak is read before `details`, which may run more than the competitor does.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**times, "log_evidence": log_evidence, "peak_rss_mb": peak, "details": details()}


def _device() -> str:
    """The accelerator that JAX would use, or "cpu" where the library does not use JAX."""
    if "jax" not in sys.modules:
        return "cpu"
    device = sys.modules["jax"].devices()[0]
    return "cpu" if device.platform == "cpu" else device.device_kind


if __name__ == "__main__":
    main()
