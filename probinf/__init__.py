"""probinf: composable inference building blocks in JAX."""

from probinf import core as core
from probinf.core import Draws as Draws
from probinf.core import FeynmanKac as FeynmanKac
from probinf.core import InferenceError as InferenceError
from probinf.core import InferenceWarning as InferenceWarning
from probinf.core import Kernel as Kernel
from probinf.core import Population as Population
from probinf.core import Status as Status
from probinf.core import Target as Target
from probinf.core import adapt as adapt
from probinf.core import choose as choose
from probinf.core import ess_below as ess_below
from probinf.core import extend as extend
from probinf.core import iterate as iterate
from probinf.core import move as move
from probinf.core import observe as observe
from probinf.core import propagate as propagate
from probinf.core import resample as resample
from probinf.core import reweight as reweight
from probinf.core import sequence as sequence
from probinf.core import spawn as spawn
from probinf.core import trace_back as trace_back
