"""Aliases shared by the models."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import ArrayLike

# What `jnp.asarray` takes. Functions that say so check shapes at the door, with a message that names the mend.
Numbers = ArrayLike | Sequence[Any]
