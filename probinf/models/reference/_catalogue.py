"""The reference posteriors by name: their models, and the quantities that the reference summarises."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from probinf.models.reference._latent import eight_schools_noncentered, gp_pois_regr, low_dim_gauss_mix
from probinf.models.reference._regressions import (
    blr,
    diamonds,
    kidscore_interaction,
    kidscore_momiq,
    logearn_interaction,
    logmesquite,
    nes,
)
from probinf.models.reference._series import autoregression, garch11, hmm_example

# A posterior is named DATA-MODEL.
MODELS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "arK-arK": autoregression,
        "diamonds-diamonds": diamonds,
        "earnings-logearn_interaction": logearn_interaction,
        "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
        "garch-garch11": garch11,
        "gp_pois_regr-gp_pois_regr": gp_pois_regr,
        "hmm_example-hmm_example": hmm_example,
        "kidiq-kidscore_interaction": kidscore_interaction,
        "kidiq-kidscore_momiq": kidscore_momiq,
        "low_dim_gauss_mix-low_dim_gauss_mix": low_dim_gauss_mix,
        "mesquite-logmesquite": logmesquite,
        "nes1976-nes": nes,
        "sblrc-blr": blr,
    }
)

NAMES: tuple[str, ...] = tuple(MODELS)

# Standard normal sites of a reparametrisation, which the reference does not summarise.
AUXILIARY = frozenset({"theta_trans", "f_tilde"})

# Rubin (1981): the effects of coaching on the SAT score, and their standard errors, in points.
EIGHT_SCHOOLS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"y": (28, 8, -3, 7, -1, 1, 18, 12), "sigma": (15, 10, 16, 11, 9, 11, 10, 18)}
)

# Posteriors whose data are in the package.
SHIPPED: Mapping[str, Mapping[str, Any]] = MappingProxyType({"eight_schools-eight_schools_noncentered": EIGHT_SCHOOLS})
