"""How fast many chains of reversible jump are in one program, against a compiled step called for each chain.

Three ways of doing the same steps, in turn, so that what else the machine does hits all alike: all chains in one
compiled loop; one chain whose compiled step is called from Python, as is usual; one chain in a compiled loop. Keys are
split and positions kept in every way. The first call of each, which compiles, is not counted. Chains are split over the
devices, of which there is one a core: within a device XLA would hand parts of every small sum from core to core.
"""

import functools
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probinf.experiments import _reversible_jump_changes as changes_model
from probinf.experiments import _reversible_jump_mixture as mixture_model
from probinf.experiments import _reversible_jump_page as page
from probinf.experiments import _reversible_jump_selection as selection_model
from probinf.experiments._page import Part
from probinf.experiments._processes import in_processes
from probinf.experiments._workspace import Workspace
from probinf.samplers import TransDimensional

SHOWCASES = ("variables", "change points", "mixture")


def speed(key: jax.Array, config: Any, workspace: Workspace) -> Part:
    """Steps a second of the showcases, in three ways."""
    workspace.say("speed: " + ", ".join(SHOWCASES))
    cores = os.cpu_count() or 1
    num_devices = max(number for number in range(1, cores + 1) if config.num_chains % number == 0)
    # The number of CPU devices is read when a process first uses JAX.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}".strip()
    with in_processes(1, {"XLA_FLAGS": flags}) as each:
        rows = each(functools.partial(measure, np.asarray(jax.random.key_data(key)), config), SHOWCASES)
    metrics = {
        "rows": rows,
        "num_chains": config.num_chains,
        "num_steps": config.speed_steps,
        "num_rounds": config.speed_rounds,
        "num_devices": num_devices,
    }
    return Part(metrics, page.speed_section(metrics))


def measure(words: np.ndarray, config: Any, name: str) -> dict[str, Any]:
    """The race of one showcase, with its name."""
    key = jax.random.wrap_key_data(jnp.asarray(words))
    run_key = jax.random.fold_in(key, SHOWCASES.index(name))
    return {"name": name} | race(run_key, cases(key, config.num_chains)[name], config)


def cases(key: jax.Array, num_chains: int) -> dict[str, tuple[Any, Any, TransDimensional]]:
    """Kernel, target and starting points of each showcase."""
    data, counts = selection_model.diabetes(), changes_model.coal()
    p = len(data.names)
    return {
        "variables": (
            selection_model.selection_kernel(p),
            selection_model.selection_target(data),
            TransDimensional(jnp.zeros((num_chains, p), bool), ()),
        ),
        "change points": (
            changes_model.changes_kernel(counts),
            changes_model.changes_target(counts, (0,)),
            changes_model.one_segment(counts, num_chains),
        ),
        "mixture": (
            mixture_model.mixture_kernel(),
            mixture_model.mixture_target(mixture_model.galaxies()),
            mixture_model.starts(jax.random.fold_in(key, 99), num_chains),
        ),
    }


def race(key: jax.Array, case: tuple[Any, Any, TransDimensional], config: Any) -> dict[str, Any]:
    """Steps of chains a second in the three ways, medians over rounds, and ratios of the rates of a round."""
    kernel, target, positions = case
    num_steps, num_chains = config.speed_steps, config.num_chains
    step = jax.jit(lambda key, state: kernel.step(key, target, state))

    devices = jax.devices() if num_chains % jax.device_count() == 0 else jax.devices()[:1]
    mesh, spec = jax.sharding.Mesh(np.array(devices), ("chains",)), jax.sharding.PartitionSpec

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=spec("chains"),
        out_specs=(spec("chains"), spec(None, "chains")),
        check_vma=False,
    )
    def together(keys: jax.Array, states: Any) -> Any:
        def body(states: Any, i: jax.Array) -> Any:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
            states = jax.vmap(lambda key, state: kernel.step(key, target, state)[0])(step_keys, states)
            return states, states.position

        return jax.lax.scan(body, states, jnp.arange(num_steps))

    def called(key: jax.Array, state: Any) -> Any:
        kept = []
        for _ in range(num_steps):
            key, step_key = jax.random.split(key)
            state, _ = step(step_key, state)
            kept.append(state.position)
        return state, kept

    @jax.jit
    def looped(key: jax.Array, state: Any) -> Any:
        def body(state: Any, i: jax.Array) -> Any:
            state, _ = kernel.step(jax.random.fold_in(key, i), target, state)
            return state, state.position

        return jax.lax.scan(body, state, jnp.arange(num_steps))

    init_key, run_key = jax.random.split(key)
    init_keys = jax.random.split(init_key, num_chains)
    states = jax.vmap(lambda key, position: kernel.init(key, target, position))(init_keys, positions)
    first = jax.tree.map(lambda leaf: leaf[0], states)
    split = jax.sharding.NamedSharding(mesh, spec("chains"))
    keys, states = jax.device_put((jax.random.split(run_key, num_chains), states), split)
    ways = ((together, keys, states), (called, run_key, first), (looped, run_key, first))
    seconds = np.array([[_seconds(*way) for way in ways] for _ in range(config.speed_rounds + 1)])
    rates = np.array([num_chains, 1, 1]) * num_steps / seconds[1:]
    return {
        "rates": np.median(rates, axis=0),
        "ratio": float(np.median(rates[:, 0] / rates[:, 1])),
        "lowest": float(np.min(rates[:, 0] / rates[:, 1])),
        "loop_ratio": float(np.median(rates[:, 0] / rates[:, 2])),
    }


def _seconds(function: Any, key: jax.Array, start: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(function(key, start))
    return time.perf_counter() - begin
