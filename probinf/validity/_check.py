"""`check`: all that can be checked of a kernel, in one report."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from probinf.core import Kernel, PRNGKey, Target
from probinf.validity._arguments import rate_between
from probinf.validity._balance import Involutive, balance
from probinf.validity._derivatives import gradient_check
from probinf.validity._keys import key_reuse
from probinf.validity._report import Report
from probinf.validity._stationarity import stationarity
from probinf.validity._targets import TARGETS, ExactTarget, exact_target


def check(
    kernel: Any,
    target: Target | None = None,
    draw: Callable[[PRNGKey], PyTree] | None = None,
    *,
    num_steps: int = 2,
    num_chains: int = 20_000,
    reversible: bool | None = None,
    false_alarm_rate: float = 1e-6,
    seed: int = 0,
) -> Report:
    """Checks that a Markov kernel leaves its target invariant.

    What starts from exact draws must keep their law; kernels made by `mhg` are in balance at every point; keys are used
    once; the gradient of a given target is right. Without a target the kernel is run on some of this room with unit
    scales, a skewed one among them: give it a step size for such.

    Args:
        kernel: a `Kernel`, ours or yours.
        target: what it is for; None is the targets of this room.
        draw: key -> position, exactly from `target`. Without it a kernel made by `mhg` is checked at draws of the
            prior: their law of the target at temperature zero, balance and gradient of `target` itself.
        num_steps: steps of each chain.
        num_chains: chains, at least 1000; four times as many see faults half as large.
        reversible: whether it is tested for reversibility; None tests kernels made by `mhg`.
        false_alarm_rate: of the whole report.
        seed: of all random numbers.

    Returns:
        A `Report`: `passed`, `table`, `false_alarm_rate`, and `check()` to raise.

    Raises:
        TypeError: `kernel` is no `Kernel`.
        ValueError: neither exact draws nor a prior to draw from, or a bad size or rate.
    """
    if isinstance(kernel, type) or not isinstance(kernel, Kernel):
        raise TypeError(f"`kernel` is {kernel!r}; needed an object with `init(key, target, position)` and `step`")
    rate_between("false_alarm_rate", false_alarm_rate)
    involutive = isinstance(kernel, Involutive)
    cases = _cases(target, draw, involutive=involutive)
    _check_states(kernel, cases[0][2])
    options = {
        "num_steps": num_steps,
        "num_chains": num_chains,
        "reversible": involutive if reversible is None else reversible,
    }
    report = Report((), type(kernel).__name__)
    for number, (name, whole, exact) in enumerate(cases):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), 4)
        law_key, point_key, gradient_key, step_key = keys
        rate = false_alarm_rate / (len(TARGETS) if target is None else 1)
        found = stationarity(law_key, kernel, exact.target, exact.draw, false_alarm_rate=rate, subject=name, **options)
        if involutive:
            found = found + balance(point_key, kernel, whole, exact.draw, subject=name)
        checks = (key_reuse(_one_step(kernel, exact), step_key, subject=name),)
        if target is not None and _is_continuous(exact):
            checks = (*checks, gradient_check(gradient_key, whole, exact.draw, subject=name))
        report = report + found + Report(checks)
    return report


def _cases(target: Target | None, draw: Callable | None, *, involutive: bool) -> list[tuple[str, Target, ExactTarget]]:
    """Name, the target, and what there are exact draws of."""
    if target is None and draw is not None:
        raise ValueError("`draw` draws from `target`, which is not given: pass both")
    if target is None:
        return [(name, exact.target, exact) for name, exact in zip(TARGETS, map(exact_target, TARGETS), strict=True)]
    if not isinstance(target, Target):
        raise TypeError(f"`target` is a {type(target).__name__}; needed a `Target`, or None")
    if draw is not None:
        return [("draws", target, ExactTarget(target, draw))]
    if target.sample_prior is None:
        raise ValueError("`target` has no `sample_prior`: pass `draw`, which draws from the target exactly")
    if not involutive:
        raise ValueError(
            "`draw` is not given, and without exact draws of `target` only kernels with `as_mhg()` can be checked: "
            "pass `draw`, or leave out `target` for targets that have exact draws"
        )
    return [("target (laws of draws at the prior)", target, ExactTarget(target.at_temperature(0.0), target.draw_prior))]


def _check_states(kernel: Kernel, exact: ExactTarget) -> None:
    state = jax.eval_shape(lambda key: kernel.init(key, exact.target, exact.draw(key)), jax.random.key(0))
    missing = [name for name in ("position", "status") if not hasattr(state, name)]
    if missing:
        raise TypeError(f"`kernel.init` returns {state!r} without {', '.join(missing)}: states need both, see `Kernel`")


def _is_continuous(exact: ExactTarget) -> bool:
    """Whether all leaves of a position are floating."""
    position = jax.eval_shape(exact.draw, jax.random.key(0))
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(position))


def _one_step(kernel: Kernel, exact: ExactTarget) -> Callable:
    def one_step(key: PRNGKey) -> PyTree:
        draw_key, init_key, step_key = jax.random.split(key, 3)
        state = kernel.init(init_key, exact.target, exact.draw(draw_key))
        return kernel.step(step_key, exact.target, state)

    return one_step
