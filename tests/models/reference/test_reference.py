"""Every reference posterior by HMC, NUTS and ChEES against posteriordb, where a folder with its data is present.

The folder is that of the environment variable `PROBINF_POSTERIORDB`, or `../shared/reference` beside the repository.
It is no part of the repository: without it these tests are skipped.

Means, and variances as means of squares around our mean, are compared at 4 standard errors of the difference: ours from
ArviZ, the reference's from its number of draws, which posteriordb thins to be nearly independent. For a new seed a
comparison is a false alarm with probability 6e-5, so the 164 of a kernel together with at most 1e-2. That is more than
the house's 1e-6, and the seed is fixed for it; the reference's part of the error does not change with the seed. A mean
that is off by 8 standard errors, which is .15 standard deviations or less, passes with probability 4e-5.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from probinf.core import Draws
from probinf.models.reference import NAMES, posterior
from probinf.samplers import chees_hmc, hmc, nuts, sample
from tests.models.reference._near_mode import near_mode

ENVIRONMENT = "PROBINF_POSTERIORDB"
FOLDER = Path(os.environ.get(ENVIRONMENT) or Path(__file__).parents[3].parent / "shared" / "reference")
pytestmark = [
    pytest.mark.numpyro,
    pytest.mark.skipif(
        not FOLDER.is_dir(), reason=f"no folder {FOLDER}: set {ENVIRONMENT} to a posteriordb folder to run this"
    ),
]


class Settings(NamedTuple):
    num_steps: int = 8  # of HMC; the others choose their own
    num_warmup: int = 600
    num_samples: int = 1000
    target_accept: float = 0.8


# The coefficients of regressions in raw units have correlations up to .999, and so have ordered means: all learn a
# dense matrix. Eight schools has a funnel. Where alpha of the Gaussian process is large, f_tilde is so stiff that long
# steps are rejected there: at an acceptance of .95, with 3 divergences in 10,000 draws, sd(alpha) is 5 % too small.
# So a divergence, of which `sample` warns, fails these tests.
SETTINGS = {
    "arK-arK": Settings(),
    "earnings-logearn_interaction": Settings(),
    "eight_schools-eight_schools_noncentered": Settings(10, 600, 1000, 0.95),
    "garch-garch11": Settings(),
    "gp_pois_regr-gp_pois_regr": Settings(64, 1000, 4000, 0.99),
    "hmm_example-hmm_example": Settings(16, 600, 1000, 0.95),
    "kidiq-kidscore_interaction": Settings(),
    "kidiq-kidscore_momiq": Settings(),
    "low_dim_gauss_mix-low_dim_gauss_mix": Settings(),
    "mesquite-logmesquite": Settings(),
    "nes1976-nes": Settings(),
    "sblrc-blr": Settings(),
}
FAST = {"eight_schools-eight_schools_noncentered", "kidiq-kidscore_momiq", "sblrc-blr"}
NO_DATA = {"diamonds-diamonds"}
# Chains that share what they learn: ChEES needs more of them, and as many draws in all.
NUM_CHAINS = {"hmc": 8, "nuts": 8, "chees_hmc": 32}
CASES = [
    pytest.param(kernel, name, marks=[] if kernel == "hmc" and name in FAST else pytest.mark.slow)
    for kernel in NUM_CHAINS
    for name in SETTINGS
]


def kernel_of(name: str, settings: Settings) -> Any:
    """A kernel that learns a dense matrix."""
    if name == "hmc":
        return hmc(num_steps=settings.num_steps, dense=True)
    return {"nuts": nuts, "chees_hmc": chees_hmc}[name](dense=True)


def summary_of(arrays: dict[str, np.ndarray]) -> Any:
    num_chains = next(iter(arrays.values())).shape[0]
    return Draws(arrays, {}, np.zeros(num_chains, np.uint32)).summary()


def test_every_posterior_has_settings() -> None:
    assert set(SETTINGS) | NO_DATA == set(NAMES)


@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_a_kernel_agrees_with_the_reference(kernel: str, name: str, x64: None, key: Any) -> None:
    settings, reference, num_chains = SETTINGS[name], posterior(name, FOLDER), NUM_CHAINS[kernel]
    assert reference.summary is not None
    key_begin, key_start, key_run = jax.random.split(key, 3)
    begin = jax.tree.map(lambda a: a[0], reference.initial_position(key_begin, 1))
    draws = sample(
        key_run,
        kernel_of(kernel, settings),
        reference.target,
        num_samples=settings.num_samples * NUM_CHAINS["hmc"] // num_chains,
        num_warmup=settings.num_warmup,
        num_chains=num_chains,
        initial_position=near_mode(key_start, reference.target, begin, num_chains),
        target_accept=settings.target_accept,
    )
    values = {k: np.asarray(v) for k, v in reference.quantities(draws.samples).items()}
    assert set(reference.summary) <= set(values)

    found = summary_of(values)
    squares = summary_of({k: (v - v.mean()) ** 2 for k, v in values.items()})
    assert np.max(found["r_hat"]) < 1.02
    worst = {}
    for parameter, known in reference.summary.items():
        ours, spread = found.row(parameter), squares.row(parameter)
        error = np.hypot(ours["mcse"], known.sd / np.sqrt(known.num_draws))
        worst[parameter, "mean"] = abs(ours["mean"] - known.mean) / error
        error = np.hypot(spread["mcse"], spread["sd"] / np.sqrt(known.num_draws))
        worst[parameter, "variance"] = abs(spread["mean"] - known.sd**2) / error
    assert max(worst.values()) < 4, worst
    ess = found["ess_bulk"].min()
    print(f"{kernel}, {name}: {len(worst)} comparisons, largest {max(worst.values()):.2f}, ess {ess:.0f}")
