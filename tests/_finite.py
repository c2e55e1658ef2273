"""Shorthands for the finite models of `probinf.validity`, and a planted bug."""

import numpy as np

from probinf.validity import FiniteAhead as Ahead
from probinf.validity import FiniteModel as Finite
from probinf.validity import measure as masses
from probinf.validity import path_masses, skewed_model

__all__ = ["Ahead", "Finite", "Swapped", "as_kind", "exact_evidence", "measure", "skewed_model", "tables"]


class Swapped(Finite):
    """Planted: the arguments of the transition density swapped."""

    def log_transition(self, t, x_prev, x):
        return super().log_transition(t, x, x_prev)


def as_kind(kind, model):
    """The same numbers in another class."""
    return kind(model.initial, model.transition, model.potentials)


def tables(model):
    """Initial law, transition matrix and potentials in double precision."""
    return tuple(np.asarray(leaf, np.float64) for leaf in (model.initial, model.transition, model.potentials))


def exact_evidence(model):
    """The sum over all paths in NumPy."""
    return float(path_masses(model).sum())


def measure(population):
    """The mass on each of two states."""
    return masses(population, 2)
