"""Log-Bessel functions of a million random pairs of order and argument, and one adapter file per library.

An adapter is a module with `PACKAGES` and `prepare(variant, problem, num_particles)`, where the variant is a dtype and
`num_particles` the number of pairs; what it returns evaluates all of them and hands back the mean of a few, so that
the numbers have reached the host, and the details of the run: the share of values that are not finite, and the first
values.
"""
