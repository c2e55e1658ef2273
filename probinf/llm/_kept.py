"""`kept`: small parts of a run that are made once of plain numbers and names, and used again in later runs.

Putting a number on the device takes as long as hundreds of operations of a compiled program, and a run has a dozen.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
PLAIN = (int, float, bool, str, type(None))


def kept(make: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function itself, whose results for plain arguments (numbers, texts, None) are kept; errors are not.

    Args:
        make: depends on its arguments alone; its result must not be changed.
    """

    @functools.lru_cache(maxsize=128, typed=True)
    def known(x64: bool, args: tuple[Any, ...], types: tuple[type, ...]) -> Result:
        del x64, types  # what arrays are made of them
        # Within a trace arrays would be tracers, which must not outlive it.
        with jax.ensure_compile_time_eval():
            return make(*args)  # pyright: ignore[reportCallIssue]

    @functools.wraps(make)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        types = tuple(map(type, args))
        if kwargs or not all(one in PLAIN for one in types):
            return make(*args, **kwargs)
        return known(jax.config.jax_enable_x64, args, types)  # pyright: ignore[reportAttributeAccessIssue]

    return call


@kept
def real(value: Any) -> Float[Array, ""]:
    """A number as an array of JAX's default float."""
    return jnp.asarray(value, jnp.result_type(float))
