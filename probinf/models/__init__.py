"""Models, and the exact answers that samplers are checked against."""

from probinf.models import reference as reference
from probinf.models._conditionally_linear import ConditionallyLinear as ConditionallyLinear
from probinf.models._conditionally_linear import RaoBlackwellised as RaoBlackwellised
from probinf.models._conditionally_linear import RaoBlackwellisedModel as RaoBlackwellisedModel
from probinf.models._ensemble_kalman import EnsembleKalmanFiltered as EnsembleKalmanFiltered
from probinf.models._ensemble_kalman import ensemble_kalman_filter as ensemble_kalman_filter
from probinf.models._guided import AuxiliaryModel as AuxiliaryModel
from probinf.models._guided import GuidedModel as GuidedModel
from probinf.models._hmm import HMMPosterior as HMMPosterior
from probinf.models._hmm import ViterbiPath as ViterbiPath
from probinf.models._hmm import hmm_forward_backward as hmm_forward_backward
from probinf.models._hmm import hmm_viterbi as hmm_viterbi
from probinf.models._kalman import KalmanFiltered as KalmanFiltered
from probinf.models._kalman import KalmanForecast as KalmanForecast
from probinf.models._kalman import KalmanSmoothed as KalmanSmoothed
from probinf.models._kalman import kalman_filter as kalman_filter
from probinf.models._kalman import kalman_smoother as kalman_smoother
from probinf.models._linear_gaussian import LinearGaussian as LinearGaussian
from probinf.models._linear_regression import ConjugatePosterior as ConjugatePosterior
from probinf.models._linear_regression import GaussianPosterior as GaussianPosterior
from probinf.models._linear_regression import conjugate_regression as conjugate_regression
from probinf.models._linear_regression import known_noise_regression as known_noise_regression
from probinf.models._state_space import BootstrapModel as BootstrapModel
from probinf.models._state_space import StateSpaceModel as StateSpaceModel
