"""What the adapters of JAX libraries share: the data as JAX arrays, and the count of compiled programs."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from benchmarks.mcmc._problems import Data

_COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **_: (
        _COMPILED.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
    )
)


def num_compiled() -> int:
    """Programs that XLA has compiled in this process since this module was imported."""
    return len(_COMPILED)


def jax_data(data: Data) -> Mapping[str, jax.Array]:
    """The data set in the default float type."""
    return {name: jnp.asarray(values, jnp.zeros(()).dtype) for name, values in data.items()}
