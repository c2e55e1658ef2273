"""`fingerprint_of`: equal for equal things, here and in another process; different for whatever changes the numbers.

Planted bugs that these tests catch (each was tried by editing the code): constants of the code left out; closures left
out; dtype left out; lengths not hashed (so that [[1], 2] equals [[1, 2]]); addresses kept in a `repr`; names of
attributes read as globals; methods of the class not read.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from probinf.core._fingerprint import fingerprint_of

SCALE = 2.0


def helper(x):
    return SCALE * x


def uses_helper(x):
    """A function that reads a global through another."""
    return helper(x) + 1


class Model(eqx.Module):
    a: jax.Array
    flag: bool = eqx.field(static=True, default=True)

    def __call__(self, x):
        return self.a * x


def closure(c):
    def inner(x):
        return c * x

    return inner


def named(source) -> dict[str, Any]:
    """A function compiled from source, as if its file had been edited."""
    space: dict[str, Any] = {"__name__": "user_module"}
    exec(source, space)
    return space


class Pair(NamedTuple):
    a: int
    b: int


class Other(NamedTuple):
    a: int
    b: int


DIFFERENT = {
    "values": (jnp.ones(3), jnp.full(3, 1.5)),
    "dtype": (jnp.ones(3, jnp.float32), jnp.ones(3, jnp.int32)),
    "shape": (np.ones((2, 3)), np.ones((3, 2))),
    "number types": (1, 1.0),
    "bool and int": (True, 1),
    "nesting": ([1, [2]], [[1], 2]),
    "where a list ends": ([[1], 2], [[1, 2]]),
    "list and tuple": ([1], (1,)),
    "dict values": ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
    "named tuple classes": (Pair(1, 2), Other(1, 2)),
    "array leaf": (Model(jnp.ones(2)), Model(jnp.zeros(2))),
    "static field": (Model(jnp.ones(2)), Model(jnp.ones(2), flag=False)),
    "closure": (closure(1.0), closure(2.0)),
    "closure over arrays": (closure(jnp.ones(2)), closure(jnp.zeros(2))),
    "partial": (functools.partial(helper, 1), functools.partial(helper, 2)),
    "tree partial": (jax.tree_util.Partial(helper, jnp.ones(1)), jax.tree_util.Partial(helper, jnp.zeros(1))),
    "keys": (jax.random.key(0), jax.random.key(1)),
    "key types": (jax.random.key(0), jax.random.key_data(jax.random.key(0))),
    "distributions": (dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0)),
    "functions of libraries": (jnp.sin, jnp.cos),
    "constants": (named("f = lambda x: x * 2")["f"], named("f = lambda x: x * 3")["f"]),
    "code": (named("f = lambda x: x * 2")["f"], named("f = lambda x: x + 2")["f"]),
    "defaults": (named("def f(x, y=1): return x")["f"], named("def f(x, y=2): return x")["f"]),
    "globals": (named("c = 1\ndef f(x): return c * x")["f"], named("c = 2\ndef f(x): return c * x")["f"]),
    "functions called": (
        named("def g(x): return x\ndef f(x): return g(x)")["f"],
        named("def g(x): return -x\ndef f(x): return g(x)")["f"],
    ),
    "methods": (
        named("class A:\n def __call__(self, x): return x")["A"](),
        named("class A:\n def __call__(self, x): return -x")["A"](),
    ),
    "inherited methods": (
        named("class B:\n def f(self, x): return x\nclass A(B): pass")["A"](),
        named("class B:\n def f(self, x): return -x\nclass A(B): pass")["A"](),
    ),
}

SAME = {
    "arrays of JAX and NumPy": (jnp.ones(3), np.ones(3, np.float32)),
    "order in a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "order in a set": ({"x", "yy", "zzz"}, {"zzz", "yy", "x"}),
    "closures": (closure(jnp.ones(2)), closure(jnp.ones(2))),
    "modules": (Model(jnp.ones(2)), Model(jnp.ones(2))),
    "compiled functions": (jax.jit(helper), jax.jit(helper)),
    "objects": (object(), object()),
    "docstrings": (
        named("def f(x):\n 'one'\n return x")["f"],
        named("def f(x):\n 'two'\n return x")["f"],
    ),
    "attributes named like globals": (
        named("a = 1\ndef f(x): return x.a")["f"],
        named("a = 2\ndef f(x): return x.a")["f"],
    ),
}


class TestFingerprint:
    @pytest.mark.parametrize("name", DIFFERENT)
    def test_different(self, name):
        one, two = DIFFERENT[name]
        assert fingerprint_of(one) != fingerprint_of(two)
        assert fingerprint_of(one) == fingerprint_of(one)

    @pytest.mark.parametrize("name", SAME)
    def test_same(self, name):
        one, two = SAME[name]
        assert fingerprint_of(one) == fingerprint_of(two)

    def test_a_global_behind_a_call(self, monkeypatch):
        before = fingerprint_of(uses_helper)
        monkeypatch.setitem(globals(), "SCALE", 3.0)
        assert fingerprint_of(uses_helper) != before

    def test_cycles_end(self):
        loop: list[Any] = [1]
        loop.append(loop)
        assert len(fingerprint_of(loop)) == 32

    def test_shared_and_equal_parts_are_told_apart_from_different_ones(self):
        part = [1, 2]
        assert fingerprint_of([part, part]) != fingerprint_of([part, [1, 3]])

    def test_another_process_agrees(self):
        program = (
            "import jax, jax.numpy as jnp, numpyro.distributions as dist\n"
            "from probinf.core._fingerprint import fingerprint_of\n"
            "from probinf.core._reducers import Moments\n"
            "print(fingerprint_of(Moments(), jnp.arange(3), {'b', 'a', 'c'}, dist.Normal(0.0, 1.0), jnp.sin))"
        )
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
        hashes = {
            subprocess.run(
                [sys.executable, "-c", program], env=environment | {"PYTHONHASHSEED": seed}, capture_output=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }  # fmt: skip
        assert len(hashes) == 1
