"""Particle filters: the problems, the bare scan, and one adapter file per library.

An adapter is a module with `PACKAGES` (distributions whose versions are reported) and
`prepare(variant, problem, num_particles)`, which returns a function from seed to log evidence. Only that library,
numpy and the two small model modules are imported, so that an adapter runs in the library's own environment. The
variants are listed in `_run.py`, which cannot import the adapters of peers.
"""
