"""Distributions on the sphere, processes and heavy tails that NumPyro lacks, as NumPyro distributions."""

from probinf.distributions._concentration import concentration_from_resultant as concentration_from_resultant
from probinf.distributions._generalized_inverse_gaussian import GeneralizedInverseGaussian as GeneralizedInverseGaussian
from probinf.distributions._matern import matern as matern
from probinf.distributions._matern import pairwise_distance as pairwise_distance
from probinf.distributions._normal_inverse_gaussian import NormalInverseGaussian as NormalInverseGaussian
from probinf.distributions._power_spherical import PowerSpherical as PowerSpherical
from probinf.distributions._sphere_mixture import MixtureFit as MixtureFit
from probinf.distributions._sphere_mixture import fit_mixture as fit_mixture
from probinf.distributions._sphere_reparam import SphereReparam as SphereReparam
from probinf.distributions._von_mises_fisher import VonMisesFisher as VonMisesFisher
