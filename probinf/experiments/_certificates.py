"""Certificates: every block of the library with the checks of its law, by name.

All of them run in float64, where enumeration is right to twelve digits.
"""

from collections.abc import Callable, Mapping

import jax

from probinf.experiments._certificates_algorithms import ALGORITHMS
from probinf.experiments._certificates_jumps import JUMPS
from probinf.experiments._certificates_kernels import KERNELS
from probinf.experiments._certificates_mcmc import MCMC
from probinf.experiments._certificates_parts import PARTS
from probinf.experiments._certificates_tempering import TEMPERING
from probinf.validity import Report

CERTIFICATES: Mapping[str, Callable[[], Report]] = {**PARTS, **KERNELS, **MCMC, **TEMPERING, **JUMPS, **ALGORITHMS}


def certify(name: str) -> Report:
    """The report of one block, under its name.

    Args:
        name: a key of `CERTIFICATES`.

    Raises:
        ValueError: there is no certificate of that name.
    """
    if name not in CERTIFICATES:
        raise ValueError(f"`name` is {name!r}; needed one of {', '.join(CERTIFICATES)}")
    with jax.enable_x64(True):
        return Report(CERTIFICATES[name]().checks, name)
