"""Resampling, particle filters, Markov kernels, adaptation and the runners `particle_filter` and `sample`."""

from probinf.samplers._filter_result import FilterResult as FilterResult
from probinf.samplers._filter_result import History as History
from probinf.samplers._particle_filter import particle_filter as particle_filter
from probinf.samplers._resampling import ALL_SCHEMES as ALL_SCHEMES
from probinf.samplers._resampling import AbstractScheme as AbstractScheme
from probinf.samplers._resampling import multinomial as multinomial
from probinf.samplers._resampling import residual as residual
from probinf.samplers._resampling import ssp as ssp
from probinf.samplers._resampling import stratified as stratified
from probinf.samplers._resampling import systematic as systematic
