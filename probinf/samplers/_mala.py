r"""`mala`: the Metropolis-adjusted Langevin algorithm, HMC with one leapfrog step.

The proposal $x' = x + \tfrac{\epsilon^2}{2} M^{-1} \nabla\log\pi(x) + \epsilon M^{-1/2} z$ is the end of one
leapfrog step with momentum z, and the acceptance probabilities are the same (Roberts, Tweedie 1996; Neal 2011,
section 5.2).
"""

from typing import Any

from probinf.samplers._hmc import HMC, hmc


def mala(step_size: Any = 0.1, *, inverse_mass_matrix: Any = None, dense: bool = False, check: bool = False) -> HMC:
    """The Metropolis-adjusted Langevin algorithm, an instance of `mhg` through `hmc`.

    Leaves any target with a differentiable log density invariant; one gradient a step.

    Args:
        step_size: positive scalar; warm-up tunes it to an acceptance rate of .574 (Roberts, Rosenthal 1998).
        inverse_mass_matrix: the preconditioner, `[d]` or `[d, d]`; None is the identity. Warm-up learns it.
        dense: whether warm-up learns a full matrix; implied by a full `inverse_mass_matrix`.
        check: as for `mhg`.

    Returns:
        The kernel `hmc(num_steps=1)`, with that target acceptance rate.

    Raises:
        ValueError: as for `hmc`.
    """
    return hmc(
        step_size,
        1,
        inverse_mass_matrix=inverse_mass_matrix,
        jitter=False,
        dense=dense,
        check=check,
        target_accept=0.574,
    )
