"""Executable laws: exact enumeration of algorithms and kernels, calibrated tests, and one report for all of them."""

from probinf.validity._algorithms import evidence_law as evidence_law
from probinf.validity._algorithms import measure as measure
from probinf.validity._algorithms import measure_law as measure_law
from probinf.validity._algorithms import path_kernel_law as path_kernel_law
from probinf.validity._algorithms import path_law as path_law
from probinf.validity._balance import Involutive as Involutive
from probinf.validity._balance import balance as balance
from probinf.validity._check import check as check
from probinf.validity._choice import choice_agreement as choice_agreement
from probinf.validity._derivatives import gradient_check as gradient_check
from probinf.validity._enumerate import Law as Law
from probinf.validity._enumerate import enumerate_algorithm as enumerate_algorithm
from probinf.validity._finite import FiniteAhead as FiniteAhead
from probinf.validity._finite import FiniteModel as FiniteModel
from probinf.validity._finite import path_masses as path_masses
from probinf.validity._finite import skewed_model as skewed_model
from probinf.validity._kernel_matrix import KernelMatrix as KernelMatrix
from probinf.validity._kernel_matrix import enumerate_kernel as enumerate_kernel
from probinf.validity._kernel_matrix import invariance as invariance
from probinf.validity._kernel_matrix import transition_matrix as transition_matrix
from probinf.validity._keys import key_reuse as key_reuse
from probinf.validity._report import Check as Check
from probinf.validity._report import Report as Report
from probinf.validity._stationarity import stationarity as stationarity
from probinf.validity._targets import TARGETS as TARGETS
from probinf.validity._targets import ExactTarget as ExactTarget
