"""Adaptive tempered SMC on a target with two modes: the problem, and one adapter file per library.

Adapters are as in `benchmarks.filters`, but that `prepare(...)` returns a function from seed to the log evidence and a
function without arguments for `num_temperatures` and `mode_weight_error`, which is called off the clock.
"""
