"""Bootstrap filters: the problems, the bare scan, and one adapter file per library.

An adapter is a module with `VARIANTS` (variant name to resampling rule), `QUICK` (the variants of a quick run),
`PACKAGES` (distributions whose versions are reported) and `prepare(variant, problem, num_particles)`, which returns
a function from seed to log evidence. Only that library, numpy and the two small model modules are imported, so that
an adapter runs in the library's own environment.
"""
