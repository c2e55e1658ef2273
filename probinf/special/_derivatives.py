"""Derivatives of functions of two arrays that work item by item."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Numbers = Float[Array, "..."]
ItemWise = Callable[[Numbers, Numbers], Numbers]


def slope_in_first(function: ItemWise, v: Numbers, x: Numbers) -> Numbers:
    """The derivative in the first argument."""
    return jax.jvp(lambda changed: function(changed, x), (v,), (jnp.ones_like(v),))[1]


def slope_in_second(function: ItemWise, v: Numbers, x: Numbers) -> Numbers:
    """The derivative in the second argument."""
    return jax.jvp(lambda changed: function(v, changed), (x,), (jnp.ones_like(x),))[1]


@cache
def item_wise(function: ItemWise) -> ItemWise:
    """The same function, whose derivatives of every order are taken with tangents of 1 and multiplied afterwards.

    A tangent that a mask has passed through is an array: carried through hundreds of terms, and squared for the second
    derivative, it makes programs several times as long as those with the constant 1.
    """
    wrapped = jax.custom_jvp(function)

    def rule(primals, tangents):
        v, x = primals
        first = tangent(lambda: item_wise(partial_of(slope_in_first, function))(v, x), tangents[0])
        second = tangent(lambda: item_wise(partial_of(slope_in_second, function))(v, x), tangents[1])
        return wrapped(v, x), total(x, first, second)

    wrapped.defjvp(rule, symbolic_zeros=True)
    return wrapped


@cache
def partial_of(operator: Callable[..., Numbers], function: ItemWise) -> ItemWise:
    """`partial(operator, function)`, the same object for the same arguments."""
    return partial(operator, function)


def tangent(slope: Callable[[], Numbers], change: Numbers | jax.custom_derivatives.SymbolicZero) -> Numbers | None:
    """`slope()` times the tangent `change`; None where that is known to be 0, so that nothing is computed."""
    return None if isinstance(change, jax.custom_derivatives.SymbolicZero) else slope() * change


def total(like: Numbers, *tangents: Numbers | None) -> Numbers:
    """The sum of the tangents that are not None."""
    found = [one for one in tangents if one is not None]
    return sum(found[1:], start=found[0]) if found else jnp.zeros_like(like)


@jax.custom_jvp
def divide(a: Numbers, b: Numbers) -> Numbers:
    """The quotient a / b, whose derivatives do not square b: that may overflow where they do not."""
    return a / b


@divide.defjvp
def _divide_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    value = divide(a, b)
    return value, (da - value * db) / b
