"""The compilation cache: where it is, and that a folder that cannot be had is no error."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from probinf.cli._cache import cache_folder, enable_cache


def test_the_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere/else")
    assert cache_folder() == Path("/somewhere/else")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/mine")
    assert cache_folder() == Path("/var/mine/probinf/xla")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "probinf" / "xla"


@pytest.fixture
def no_cache():
    """As a fresh process, in which JAX has been told nothing."""
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_cache")
def test_a_folder_that_cannot_be_made_turns_the_cache_off(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "inside"))
    assert enable_cache().startswith("off: ")


def test_a_choice_already_made_is_kept():
    assert enable_cache() == str(jax.config.jax_compilation_cache_dir)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    code = (
        "from probinf.cli._cache import enable_cache; import jax, jax.numpy as jnp; print(enable_cache());"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0);"
        "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(tmp_path / "probinf" / "xla")
    assert any((tmp_path / "probinf" / "xla").iterdir())
