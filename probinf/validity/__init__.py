"""Executable laws: exact enumeration of algorithms."""

from probinf.validity._enumerate import Law as Law
from probinf.validity._enumerate import enumerate_algorithm as enumerate_algorithm
from probinf.validity._report import Check as Check
from probinf.validity._report import Report as Report
