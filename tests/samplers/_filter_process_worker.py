"""One of several processes of `jax.distributed` that run a particle filter together.

Arguments: its number, the number of processes, the port of the first one, and a file with the arrays of the run in a
single process. Prints as JSON what differs from it in the parts that this process holds.
"""

import json
import sys

import jax
import numpy as np

import probinf as pb
from probinf.samplers import particle_filter
from tests.samplers._filter_mesh_worker import NUM_PARTICLES, Skewed, arrays, gaps, mesh_of, observations, readable, run


def failed_run():
    """The name of what a run with a bad observation raises, and whether its flagged result can be read."""
    ys = observations().at[5].set(np.nan)
    try:
        particle_filter(
            jax.random.key(3),
            Skewed(ys),
            num_particles=NUM_PARTICLES,
            quantiles=(0.1, 0.5),
            history=True,
            mesh=mesh_of(jax.device_count()),
        )
    except pb.InferenceError as error:
        return [int(error.result.first_bad_step), int(error.result.num_nan), str(error)]


def main(number, num_processes, port, file):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=num_processes, process_id=number)
    result = run(jax.device_count())
    with np.load(file) as expected:
        found = {
            "devices": [jax.process_count(), jax.local_device_count(), jax.device_count()],
            "gaps": gaps(expected, arrays(result)),
            "held": [name for name, leaf in named(result) if readable(leaf)],
            "spread": [name for name, leaf in named(result) if not readable(leaf)],
            "summary": result.summary(),
            "log_evidence": float(result.log_evidence),
            "failed": failed_run(),
        }
    print(json.dumps(found))


def named(result):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(result)]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
