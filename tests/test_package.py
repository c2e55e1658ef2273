"""Hygiene of the package: tables of contents, docstrings, a quick and quiet import, lowering for every platform.

Planted bugs, run every time in `test_planted_*`: code in an `__init__`, a function without docstring, a docstring that
forgets a parameter, an import that starts a backend, a block that cannot be lowered.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests._blocks import BLOCKS

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[1]
INITS = sorted(ROOT.glob("probinf/**/__init__.py"))
ROOMS = sorted(path.parent.name for path in ROOT.glob("probinf/*/__init__.py"))
# Imports that would make `import probinf` slow; they are made where they are used.
HEAVY = ["arviz", "matplotlib", "pandas", "typer", "sklearn"]
PLATFORMS = ["cpu", "cuda", "tpu"]


def not_re_exports(source: str) -> list[str]:
    """The statements of an `__init__` that are neither its docstring nor `from probinf... import x as x`."""
    body = ast.parse(source).body
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return [ast.unparse(node) for node in body if not _is_re_export(node)]


def _is_re_export(node: ast.stmt) -> bool:
    if not (isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("probinf")):
        return False
    return all(alias.name == alias.asname for alias in node.names)


def faults_of_docstring(value: Any) -> list[str]:
    """What the docstring of a public function or class lacks."""
    text = inspect.getdoc(value) or ""
    if not text:
        return ["it has no docstring"]
    if inspect.isclass(value):
        return []
    parameters = [p for name, p in inspect.signature(value).parameters.items() if name not in ("self", "cls")]
    faults = []
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    if section:
        named = set(re.findall(r"[*`]*(\w+)[`]*(?=[,:]| and )", section[1]))
        faults += [f"`Args:` does not name `{p.name}`" for p in parameters if p.name not in named]
    else:
        bare = [p.name for p in parameters if p.annotation in (inspect.Parameter.empty, Any)]
        faults += [f"`{name}` has neither a type nor a line in `Args:`" for name in bare]
    if not re.search(r"^(Returns|Yields):", text, re.MULTILINE):
        result = inspect.signature(value).return_annotation
        if result in (inspect.Signature.empty, Any):
            faults.append("the result has neither a type nor a `Returns:`")
    return faults


def public_names() -> Iterator[tuple[str, Any]]:
    for init in INITS:
        module = ".".join(init.parent.relative_to(ROOT).parts)
        for name, value in vars(importlib.import_module(module)).items():
            if not name.startswith("_") and not isinstance(value, ModuleType):
                yield f"{module}.{name}", value


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def lower(function: Any, arguments: tuple[Any, ...]) -> Any:
    return jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)


# --- the rooms ---


def test_there_are_rooms():
    assert {"core", "samplers", "models", "validity", "experiments", "cli"} <= set(ROOMS)


@pytest.mark.parametrize("init", INITS, ids=lambda path: str(path.relative_to(ROOT)))
def test_init_only_re_exports(init):
    assert not_re_exports(init.read_text(encoding="utf-8")) == []


def test_public_names_are_documented():
    faults = {}
    for name, value in public_names():
        if callable(value) and getattr(value, "__module__", "").startswith("probinf"):
            found = faults_of_docstring(value)
            if found:
                faults[name] = found
    assert not faults, "\n".join(f"{name}: {'; '.join(found)}" for name, found in faults.items())


@pytest.mark.parametrize("path", sorted(ROOT.glob("probinf/**/_*.py")), ids=lambda path: path.stem)
def test_modules_open_with_a_docstring_and_stay_short(path):
    source = path.read_text(encoding="utf-8")
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(source)), f"{path} has no module docstring"
    assert source.count("\n") <= 600, f"{path} has over 600 lines: split it"


# --- the import ---


def test_import_is_silent_and_light():
    code = f"import sys, probinf; sys.exit(' '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)"
    result = run_python(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


STARTS_NO_BACKEND = "import jax; {code}; jax.config.update('jax_num_cpu_devices', 2)"  # refused once a backend runs


def test_import_starts_no_backend():
    modules = ", ".join(["probinf", *(f"probinf.{room}" for room in ROOMS)])
    result = run_python(STARTS_NO_BACKEND.format(code=f"import {modules}"))
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


# --- the pages ---


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_pages_name_only_what_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:probinf|tests|benchmarks|docs)/[\w./-]*)`", text))
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"`make ([a-z-]+)`", text))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in sorted(targets) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_architecture_names_every_room():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert [room for room in ROOMS if f"`{room}`" not in text] == []


# --- the compiled blocks ---


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.numpyro  # lowering traces NumPyro distributions; strictness is the business of each block's own tests
def test_block_lowers_for_every_platform(name):
    exported = lower(*BLOCKS[name]())
    assert sorted(exported.platforms) == PLATFORMS


# --- the planted bugs ---


def test_planted_code_in_init_is_caught():
    good = '"""Room."""\n\nfrom probinf.core._status import flag as flag\n'
    assert not_re_exports(good) == []
    assert not_re_exports(good + "LIMIT = 3\n") == ["LIMIT = 3"]
    assert not_re_exports(good + "from probinf.core._status import explain\n")
    assert not_re_exports(good + "import jax\n")


def test_planted_poor_docstrings_are_caught():
    def bare(x: int) -> int:
        return x

    def forgets(x: int, y: int) -> int:
        """Adds.

        Args:
            x: the one.

        Returns:
            The sum.
        """
        return x + y

    def untyped(x):
        """Does something."""
        return x

    def fine(x: int, *more: int) -> int:
        """Adds.

        Args:
            x: the one.
            *more: the others.
        """
        return x + sum(more)

    assert faults_of_docstring(bare) == ["it has no docstring"]
    assert faults_of_docstring(forgets) == ["`Args:` does not name `y`"]
    assert len(faults_of_docstring(untyped)) == 2
    assert faults_of_docstring(fine) == []


def test_planted_backend_start_is_caught():
    assert run_python(STARTS_NO_BACKEND.format(code="jax.numpy.zeros(3)")).returncode != 0


def test_planted_unsupported_lowering_is_caught():
    def one_platform_only(x):
        return jax.lax.platform_dependent(x, cpu=jnp.sin)  # no rule for CUDA and TPU

    with pytest.raises(NotImplementedError, match="platform"):
        lower(one_platform_only, (jnp.zeros(3),))
