"""`fingerprint_of`: equal for equal things, here and in another process; different for whatever changes the numbers.

Planted bugs that these tests catch (each was tried by editing the code): constants of the code left out; closures left
out; dtype left out; lengths not hashed (so that [[1], 2] equals [[1, 2]]); addresses kept in a `repr`; names of
attributes read as globals; methods of the class not read; class constants, instances of libraries, partials and
entries of modules not read.
"""

import enum
import functools
import logging
import os
import subprocess
import sys
import types
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


def with_global(value):
    """A function that reads a global of this value."""
    space = named("def f(x): return c(x)")
    space["c"] = value
    return space["f"]


def with_module(source, deeper=""):
    """A function that reads `m.c`, `m.g` and `m.deep.c` of a module with this source."""
    space = named("def f(x): return m.c + m.g(x) + m.deep.c")
    space["m"], inside = types.ModuleType("mine"), types.ModuleType("mine.deep")
    exec(source, vars(space["m"]))
    exec(deeper, vars(inside))
    vars(space["m"])["deep"], vars(inside)["m"] = inside, space["m"]
    return space["f"]


class Pair(NamedTuple):
    a: int
    b: int


class Other(NamedTuple):
    a: int
    b: int


LAZY = dist.Categorical(logits=jnp.zeros(3))
LAZY_PROBABILITIES = getattr(LAZY, "probs")  # noqa: B009 - kept by the distribution in its `__dict__`

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
    "methods of modules": (
        named("import equinox\nclass A(equinox.Module):\n def __call__(self, x): return x")["A"](),
        named("import equinox\nclass A(equinox.Module):\n def __call__(self, x): return -x")["A"](),
    ),
    "class constants": (
        named("import equinox\nclass A(equinox.Module):\n S = 1.0\n def f(self, x): return self.S * x")["A"](),
        named("import equinox\nclass A(equinox.Module):\n S = 3.0\n def f(self, x): return self.S * x")["A"](),
    ),
    "global instances of libraries": (
        with_global(dist.Normal(0.0, 1.0)),
        with_global(dist.Normal(0.0, 5.0)),
    ),
    "global partials": (with_global(functools.partial(helper, 1)), with_global(functools.partial(helper, 2))),
    "constants of modules": (with_module("c = 1"), with_module("c = 2")),
    "functions of modules": (with_module("def g(x): return x"), with_module("def g(x): return -x")),
    "constants of modules in modules": (with_module("", "c = 1"), with_module("", "c = 2")),
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
    "modules read elsewhere": (with_module("z = 1"), with_module("z = 2")),
    "loggers": (with_global(logging.getLogger("one")), with_global(logging.getLogger("two"))),
    "lazily computed attributes": (with_global(LAZY), with_global(dist.Categorical(logits=jnp.zeros(3)))),
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


class Flags(enum.IntFlag):
    ONE = 1
    TWO = 2


class TestFingerprint:
    def test_flags_that_were_combined(self):
        before = fingerprint_of(Flags)
        assert int(Flags.ONE | Flags.TWO) == 3  # Python keeps the combination in the class
        assert fingerprint_of(Flags) == before
        assert fingerprint_of(named("import enum\nclass E(enum.Enum):\n A = 1")["E"]) != fingerprint_of(
            named("import enum\nclass E(enum.Enum):\n A = 2")["E"]
        )

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
            "from probinf.core._target import Target\n"
            "from probinf.samplers._hmc import hmc\n"
            "prior = dist.Categorical(logits=jnp.zeros(3))\n"
            "def f(x): return prior.log_prob(x)\n"
            "print(fingerprint_of(Moments(), hmc(), Target(f)))\n"
            "print(fingerprint_of(jnp.arange(3), {'b', 'a', 'c'}, dist.Normal(0.0, 1.0), jnp.sin))"
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
