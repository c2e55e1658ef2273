"""Resampling, particle filters, Markov kernels, adaptation and the runners `particle_filter` and `sample`."""

from probinf.samplers._evidence import evidence_variance as evidence_variance
from probinf.samplers._filter_result import FilterResult as FilterResult
from probinf.samplers._filter_result import History as History
from probinf.samplers._hmc import HMC as HMC
from probinf.samplers._hmc import hmc as hmc
from probinf.samplers._mhg import MHG as MHG
from probinf.samplers._mhg import Auxiliary as Auxiliary
from probinf.samplers._mhg import Involution as Involution
from probinf.samplers._mhg import MHGInfo as MHGInfo
from probinf.samplers._mhg import MHGState as MHGState
from probinf.samplers._mhg import mhg as mhg
from probinf.samplers._mhg import relocate as relocate
from probinf.samplers._particle_filter import particle_filter as particle_filter
from probinf.samplers._random_walk import RandomWalk as RandomWalk
from probinf.samplers._random_walk import random_walk as random_walk
from probinf.samplers._resampling import ALL_SCHEMES as ALL_SCHEMES
from probinf.samplers._resampling import multinomial as multinomial
from probinf.samplers._resampling import residual as residual
from probinf.samplers._resampling import ssp as ssp
from probinf.samplers._resampling import stratified as stratified
from probinf.samplers._resampling import systematic as systematic
from probinf.samplers._sample import sample as sample
from probinf.samplers._scheme import AbstractScheme as AbstractScheme
from probinf.samplers._warmup import TunableKernel as TunableKernel
from probinf.samplers._warmup import warmup as warmup
