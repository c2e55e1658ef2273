"""Warm-up and sampling of whole Markov chains: four posteriors, and one adapter file per library.

An adapter holds `PACKAGES` and `prepare(variant, problem, num_chains)`, which returns a function from seed to a number
that means nothing here and a function of details, called off the clock. It samples `problem.num_draws` draws after as
many steps of warm-up; a negative seed asks for the second data set, of the same shapes. Details are what
`_adapter.finished` gives: the file of the draws, gradients a draw, divergences, and for JAX the programs compiled.
"""
