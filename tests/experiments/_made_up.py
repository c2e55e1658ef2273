"""Made-up tallies of the chains task, whose accuracy at every N is what a function says."""

import math

import numpy as np

from probinf.experiments import _particle_inference_chains as chains


def curve_of(sizes, function, problems=400, tokens=24.0, seed=0):
    """Tallies whose accuracy at N is `function(N)`, problems in the order of their difficulty."""
    ranks = (np.random.default_rng(seed).permutation(problems) + 0.5) / problems
    rows = {}
    for size in sizes:
        solved = (ranks < function(size)).astype(float)
        cost = np.full(problems, tokens * size)
        rows[size] = chains.Tally(solved, solved, solved, cost, cost, np.zeros(problems))
    return rows


def rising(factor, start=0.1):
    """An accuracy that is linear in the logarithm of N, of a method `factor` times as fast as best-of-N."""
    return lambda size: min(1.0, start + 0.1 * math.log2(factor * size))
