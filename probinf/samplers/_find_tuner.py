"""`find_tuner`: the tuner of a kernel, its own or the one of its kind."""

from typing import Any

from probinf.samplers._combine import Cycle, Mixture, Repeated, TunableRepeated
from probinf.samplers._combined_tuner import CombinedTuner, OnSitesTuner, parts_of
from probinf.samplers._low_rank_tuner import low_rank_tuner, refuse_rank
from probinf.samplers._on_sites import OnSites
from probinf.samplers._stan_tuner import TunableKernel, stan_tuner
from probinf.samplers._tuner import HasTuner, Tuner


def find_tuner(kernel: Any, num_steps: int, target_accept: float | None) -> Tuner | None:
    """The tuner of a kernel, or None where there is nothing to tune.

    Args:
        kernel: any; of a combined one, the parts.
        num_steps: length of the warm-up.
        target_accept: acceptance rate to aim at, of every part; None takes the kernel's.
    """
    if isinstance(kernel, type):
        return None
    if isinstance(kernel, HasTuner):
        return kernel.tuner(num_steps, target_accept)
    own = isinstance(kernel, TunableRepeated) and isinstance(kernel.kernel, HasTuner)
    if isinstance(kernel, TunableKernel) and not own:
        make = low_rank_tuner if getattr(kernel, "rank", 0) else stan_tuner
        return make(kernel, num_steps, target_accept)
    if isinstance(kernel, OnSites):
        refuse_rank(kernel.kernel)
        inner = find_tuner(kernel.kernel, num_steps, target_accept)
        return None if inner is None else OnSitesTuner(inner, kernel.sites)
    if isinstance(kernel, Cycle | Mixture | Repeated | TunableRepeated):
        for part in parts_of(kernel):
            refuse_rank(part)
        tuners = tuple(find_tuner(part, num_steps, target_accept) for part in parts_of(kernel))
        return None if all(tuner is None for tuner in tuners) else CombinedTuner(kernel, tuners)
    return None
