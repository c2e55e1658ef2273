"""Aliases shared by every room."""

from typing import Any

from jaxtyping import Array, Float, Int, Key, PyTree, UInt32

PRNGKey = Key[Array, ""] | UInt32[Array, "2"]
Position = PyTree[Any]
LogWeights = Float[Array, " n"]
Ancestors = Int[Array, " n"]
StatusBits = UInt32[Array, ""]
