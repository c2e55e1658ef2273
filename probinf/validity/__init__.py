"""Executable laws: exact enumeration of algorithms."""

from probinf.validity._enumerate import Law as Law
from probinf.validity._enumerate import enumerate_law as enumerate_law
