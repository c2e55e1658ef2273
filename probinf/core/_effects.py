r"""Random choices with a finite law, and the control flow that an enumerator can see through.

`choose` is the one door for such choices. Normally it draws; inside `enumerating` it returns one given
outcome and multiplies up its probability, so that `probinf.validity` can compute the exact law of a whole
algorithm (Scibior et al. 2018; the enumerator of monad-bayes). `cond`, `scan`, `repeat`, `repeat_while` and
`map_items` are `lax.cond`, `lax.scan`, `lax.fori_loop`, `lax.while_loop` and `vmap` outside an enumeration, and plain
Python inside one, where a choice must not be trapped in a sub-computation. `compiled` is `equinox.filter_jit` outside,
and nothing inside.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from probinf.core._types import PRNGKey


@runtime_checkable
class Choice(Protocol):
    r"""A random choice with a finite law.

    Law: `sample(key, *inputs)` is distributed as `outcomes[i]` with probability `probabilities[i]`, where
    `outcomes, probabilities = law(*inputs)`. The number of outcomes is static.
    """

    def sample(self, key: PRNGKey, *inputs: Any, **options: Any) -> PyTree:
        """One draw."""
        ...

    def law(self, *inputs: Any, **options: Any) -> tuple[PyTree, Float[Array, " m"]]:
        """All outcomes, stacked on a leading axis, and their probabilities."""
        ...


@runtime_checkable
class Handler(Protocol):
    """What an enumerator installs: it decides each choice in the order in which they are met."""

    def decide(self, outcomes: PyTree, probabilities: Float[Array, " m"]) -> PyTree:
        """The outcome to go on with."""
        ...


_HANDLER: contextvars.ContextVar[Handler | None] = contextvars.ContextVar("probinf_choice_handler", default=None)


@contextlib.contextmanager
def enumerating(handler: Handler | None) -> Iterator[None]:
    """Within the block every `choose` is decided by `handler` instead of drawn; None draws again."""
    token = _HANDLER.set(handler)
    try:
        yield
    finally:
        _HANDLER.reset(token)


def choose(key: PRNGKey, choice: Choice, *inputs: Any) -> PyTree:
    """Makes a random choice: `choice.sample(key, *inputs)`, unless an enumerator decides it.

    Args:
        key: PRNG key, consumed.
        choice: an object with `sample` and `law` (see `Choice`).
        *inputs: passed to both.

    Returns:
        One outcome.
    """
    handler = _HANDLER.get()
    if handler is None:
        return choice.sample(key, *inputs)
    return handler.decide(*choice.law(*inputs))


def cond(pred: Bool[Array, ""], true_fun: Callable, false_fun: Callable, *operands: Any) -> PyTree:
    """`lax.cond`; inside an enumeration both branches run and `pred` selects.

    Args:
        pred: which branch.
        true_fun: called if it holds.
        false_fun: called if not; results of the same structure.
        *operands: pytrees, passed to either.
    """
    if _HANDLER.get() is None:
        return jax.lax.cond(pred, true_fun, false_fun, *operands)
    # Summed over its outcomes, a choice made in the branch that is not taken has weight one: no harm.
    return jax.tree.map(lambda a, b: jnp.where(pred, a, b), true_fun(*operands), false_fun(*operands))


def cond_on_host(pred: Bool[Array, ""], true_fun: Callable, false_fun: Callable, *operands: Any) -> PyTree:
    """`cond` for parts that cannot be traced: runs one branch, in Python."""
    return (true_fun if bool(pred) else false_fun)(*operands)


def scan(body: Callable, carry: PyTree, xs: PyTree, length: int, *, traceable: bool = True) -> tuple[PyTree, PyTree]:
    """`lax.scan`; inside an enumeration, or if not traceable, a Python loop with the same results."""
    if traceable and _HANDLER.get() is None:
        return jax.lax.scan(body, carry, xs, length)
    outputs = []
    for i in range(length):
        carry, output = body(carry, jax.tree.map(lambda a, i=i: a[i], xs))
        outputs.append(output)
    if not outputs:
        with enumerating(None):  # the body is only looked at for its shapes
            return carry, jax.lax.scan(body, carry, xs, length)[1]
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def repeat(num_steps: Any, body: Callable[[Any, Any], Any], carry: PyTree) -> PyTree:
    """`lax.fori_loop` from 0; inside an enumeration a Python loop (`num_steps` must then be an integer).

    Args:
        num_steps: how often, an integer or an int32 scalar.
        body: `(i, carry) -> carry`.
        carry: pytree.
    """
    if _HANDLER.get() is None:
        return jax.lax.fori_loop(0, num_steps, body, carry)
    for i in range(int(num_steps)):
        carry = body(i, carry)
    return carry


def repeat_while(
    unfinished: Callable[[Any], Bool[Array, ""]], body: Callable[[Any, Any], Any], carry: PyTree, max_steps: int
) -> PyTree:
    """`lax.while_loop` of at most `max_steps` steps; inside an enumeration a Python loop of exactly that many.

    Args:
        unfinished: `carry -> bool`, looked at before each step.
        body: `(i, carry) -> carry`, which must change nothing where `unfinished` does not hold.
        carry: pytree.
        max_steps: the bound.

    Returns:
        The last carry. It has forward-mode derivatives (`jax.jvp`); asked for a reverse-mode one (`jax.grad`), JAX
        raises `ValueError`, for a loop whose end is not known before keeps nothing to go back by: take `scan`, or
        `repeat` with a fixed number of steps, where it is needed.
    """
    if _HANDLER.get() is not None:
        for i in range(max_steps):
            carry = body(i, carry)
        return carry

    def proceed(state: tuple[Array, PyTree]) -> Array:
        return (state[0] < max_steps) & unfinished(state[1])

    start = (jnp.zeros((), jnp.int32), carry)
    return jax.lax.while_loop(proceed, lambda state: (state[0] + 1, body(state[0], state[1])), start)[1]


def map_items(function: Callable, *items: PyTree, traceable: bool = True) -> PyTree:
    """`vmap` over the leading axis; inside an enumeration, or if not traceable, a Python loop over the items."""
    if traceable and _HANDLER.get() is None:
        return jax.vmap(function)(*items)
    count = jax.tree.leaves(items)[0].shape[0]
    outputs = [function(*jax.tree.map(lambda a, i=i: a[i], items)) for i in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def is_concrete(value: Any) -> bool:
    """Whether a value can be looked at on the host, so that a bad one can raise.

    Args:
        value: any pytree; False if a leaf is a tracer.
    """
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def compiled(function: Callable, *, donate: Literal["none", "all-except-first"] = "none") -> Callable:
    """`equinox.filter_jit(function)`; inside an enumeration `function` itself, traced afresh.

    Args:
        function: what to compile.
        donate: "all-except-first": arrays of all arguments but the first may be changed in place, and are gone for the
            caller.
    """
    jitted = eqx.filter_jit(function, donate=donate)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jitted(*args, **kwargs) if _HANDLER.get() is None else function(*args, **kwargs)

    return call
