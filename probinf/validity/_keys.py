"""Keys: that no random key is used twice, which makes draws equal that should be independent."""

from collections.abc import Callable
from typing import Any

import jax

from probinf.validity._report import Check


def key_reuse(function: Callable[..., Any], *args: Any, subject: str = "") -> Check:
    """Whether a function uses each of its keys once, as JAX's key-reuse checker sees it.

    Args:
        function: draws with typed keys (`jax.random.key`); it is traced afresh.
        *args: its arguments.
        subject: a name for the table.

    Returns:
        A `Check` that found 0, or 1 for a key that is used twice.
    """
    name = subject or getattr(function, "__name__", type(function).__name__)
    with jax.debug_key_reuse(True):
        try:
            jax.block_until_ready(jax.jit(lambda *args: function(*args))(*args))
            found = 0.0
        except jax.errors.KeyReuseError:
            found = 1.0
    return Check("keys", f"{name}: keys used twice", found, 0.0, 0.0, "any")
