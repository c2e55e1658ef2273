"""Posteriors of posteriordb with known means and standard deviations, for samplers to be checked against."""

from probinf.models.reference._catalogue import MODELS as MODELS
from probinf.models.reference._catalogue import NAMES as NAMES
from probinf.models.reference._folder import ReferenceSummary as ReferenceSummary
from probinf.models.reference._posterior import Posterior as Posterior
from probinf.models.reference._posterior import posterior as posterior
