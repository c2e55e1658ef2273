"""How fast many chains of reversible jump are in one program, against a compiled step called for each chain.

Three ways of doing the same steps, in turn, so that what else the machine does hits all alike: all chains in one
compiled loop; one chain whose compiled step is called from Python, as is usual; one chain in a compiled loop. Keys are
split and positions kept in every way. The first call of each, which compiles, is not counted.
"""

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
from probinf.experiments._workspace import Workspace
from probinf.samplers import TransDimensional


def speed(key: jax.Array, config: Any, workspace: Workspace) -> Part:
    """Steps a second of the three showcases, in three ways."""
    rows = []
    for number, (name, case) in enumerate(cases(key, config.num_chains).items()):
        workspace.say(f"speed: {name}")
        rows.append({"name": name} | race(jax.random.fold_in(key, number), case, config))
    metrics = {
        "rows": rows,
        "num_chains": config.num_chains,
        "num_steps": config.speed_steps,
        "num_rounds": config.speed_rounds,
    }
    return Part(metrics, page.speed_section(metrics))


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

    @jax.jit
    def together(key: jax.Array, states: Any) -> Any:
        def body(states: Any, i: jax.Array) -> Any:
            keys = jax.random.split(jax.random.fold_in(key, i), num_chains)
            states = jax.vmap(lambda key, state: kernel.step(key, target, state)[0])(keys, states)
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
    ways = ((together, states), (called, first), (looped, first))
    seconds = np.array([[_seconds(way, run_key, start) for way, start in ways] for _ in range(config.speed_rounds + 1)])
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
