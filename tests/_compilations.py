"""What XLA has compiled in this process, so that tests can count it."""

import jax

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **_: (
        COMPILED.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
    )
)
