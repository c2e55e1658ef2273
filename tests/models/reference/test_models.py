"""The reference models against their formulas, written out with SciPy on small made-up data.

Log densities are compared in double precision on the unconstrained space, with the Jacobian of `constrain` by automatic
differentiation, so that a flat prior on a constrained site without its log-Jacobian is seen. Eight schools is also
sampled and compared with quadrature.

Planted bugs, each seen to fail here: the log-Jacobian left out; a normal density with the variance for the scale; the
product of the interaction left out; the age groups shifted by one; the lags reversed; the GARCH recursion started one
step late; `Uniform(0, 1 - alpha1)` for the flat beta1; the transition matrix transposed; the two weights of the mixture
swapped; the columns of diamonds not centred; no positivity in the order of the hidden Markov model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats as st

from probinf.core import Draws, Target
from probinf.models.reference import MODELS, NAMES, posterior
from probinf.models.reference._ordered import OrderedNormal
from probinf.models.reference._posterior import starts
from probinf.samplers import hmc, sample
from tests._slow import slow_after

pytestmark = pytest.mark.numpyro


class Case(NamedTuple):
    data: Callable[[np.random.Generator], dict[str, Any]]
    # Log density of the constrained sites and the data, flat sites counting as zero.
    formula: Callable[[dict[str, np.ndarray], dict[str, Any]], Any]


def normal(y: Any, mean: Any, sd: Any) -> float:
    return float(np.sum(st.norm.logpdf(y, mean, sd)))


def kidiq(rng: np.random.Generator) -> dict[str, Any]:
    return {"kid_score": rng.normal(86, 20, 9), "mom_hs": rng.integers(0, 2, 9) * 1.0, "mom_iq": rng.normal(100, 15, 9)}


def momiq(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    b = x["beta"]
    return normal(d["kid_score"], b[0] + b[1] * d["mom_iq"], x["sigma"]) + st.halfcauchy.logpdf(x["sigma"], scale=2.5)


def interaction(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    b, hs, iq = x["beta"], d["mom_hs"], d["mom_iq"]
    mean = b[0] + b[1] * hs + b[2] * iq + b[3] * hs * iq
    return normal(d["kid_score"], mean, x["sigma"]) + st.halfcauchy.logpdf(x["sigma"], scale=2.5)


def earnings(rng: np.random.Generator) -> dict[str, Any]:
    male = np.array([0.0, 1, 1, 0, 1, 0, 0])
    return {"earn": rng.lognormal(9, 1, 7), "height": rng.normal(67, 4, 7), "male": male}


def logearn(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    b, h, m = x["beta"], d["height"], d["male"]
    return normal(np.log(d["earn"]), b[0] + b[1] * h + b[2] * m + b[3] * h * m, x["sigma"])


SIZES = ("diam1", "diam2", "canopy_height", "total_height", "density")


def mesquite(rng: np.random.Generator) -> dict[str, Any]:
    sizes = {name: rng.lognormal(0, 1, 8) for name in ("weight", *SIZES)}
    return sizes | {"group": np.array([0.0, 1, 0, 1, 1, 0, 1, 0])}


def logmesquite(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    b = x["beta"]
    mean = b[0] + sum(b[i + 1] * np.log(d[name]) for i, name in enumerate(SIZES)) + b[6] * d["group"]
    return normal(np.log(d["weight"]), mean, x["sigma"])


def nes_data(rng: np.random.Generator) -> dict[str, Any]:
    names = ("partyid7", "real_ideo", "race_adj", "educ1", "gender", "income")
    return {name: rng.integers(1, 6, 8) * 1.0 for name in names} | {
        "age_discrete": np.array([1.0, 2, 3, 4, 4, 3, 2, 1])
    }


def nes(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    b, age = x["beta"], d["age_discrete"]
    mean = b[0] + b[1] * d["real_ideo"] + b[2] * d["race_adj"] + b[3] * (age == 2) + b[4] * (age == 3)
    mean = mean + b[5] * (age == 4) + b[6] * d["educ1"] + b[7] * d["gender"] + b[8] * d["income"]
    return normal(d["partyid7"], mean, x["sigma"])


def blr(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    prior = normal(x["beta"], 0, 10) + st.halfnorm.logpdf(x["sigma"], scale=10)
    return prior + normal(d["y"], d["X"] @ x["beta"], x["sigma"])


def diamonds(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    prior = normal(x["b"], 0, 1) + st.t.logpdf(x["Intercept"], 3, 8, 10)
    prior += st.t.logpdf(x["sigma"], 3, 0, 10) + np.log(2)
    columns = d["X"][:, 1:]
    centred = columns - columns.mean(0)
    np.testing.assert_allclose(x["b_Intercept"], x["Intercept"] - columns.mean(0) @ x["b"])
    return prior + normal(d["Y"], x["Intercept"] + centred @ x["b"], x["sigma"])


def ark(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    total = normal(x["alpha"], 0, 10) + normal(x["beta"], 0, 10) + st.halfcauchy.logpdf(x["sigma"], scale=2.5)
    for t in range(d["K"], len(d["y"])):
        mean = x["alpha"] + sum(x["beta"][k - 1] * d["y"][t - k] for k in range(1, d["K"] + 1))
        total += normal(d["y"][t], mean, x["sigma"])
    return total


def garch(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    assert 0 < x["alpha1"] < 1
    assert 0 < x["beta1"] < 1 - x["alpha1"]
    s, total = d["sigma1"], 0.0
    for t, y in enumerate(d["y"]):
        if t > 0:
            s = np.sqrt(x["alpha0"] + x["alpha1"] * (d["y"][t - 1] - x["mu"]) ** 2 + x["beta1"] * s**2)
        total += normal(y, x["mu"], s)
    return total


def hmm(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    assert 0 < x["mu"][0] < x["mu"][1]
    theta = np.stack([x["theta1"], x["theta2"]])
    forward = 0.5 * st.norm.pdf(d["y"][0], x["mu"], 1)
    for y in d["y"][1:]:
        forward = (forward @ theta) * st.norm.pdf(y, x["mu"], 1)
    return float(np.log(forward.sum())) + normal(x["mu"], [3, 10], 1)


def schools(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    theta = x["mu"] + x["tau"] * x["theta_trans"]
    np.testing.assert_allclose(x["theta"], theta)
    prior = normal(x["theta_trans"], 0, 1) + normal(x["mu"], 0, 5) + st.halfcauchy.logpdf(x["tau"], scale=5)
    return prior + normal(d["y"], theta, d["sigma"])


def gp(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    covariance = x["alpha"] ** 2 * np.exp(-((d["x"][:, None] - d["x"]) ** 2) / (2 * x["rho"] ** 2))
    f = np.linalg.cholesky(covariance + 1e-10 * np.eye(len(d["x"]))) @ x["f_tilde"]
    np.testing.assert_allclose(x["f"], f)
    prior = st.gamma.logpdf(x["rho"], 25, scale=1 / 4) + st.halfnorm.logpdf(x["alpha"], scale=2)
    return prior + normal(x["f_tilde"], 0, 1) + np.sum(st.poisson.logpmf(d["k"], np.exp(f)))


def mixture(x: dict[str, np.ndarray], d: dict[str, Any]) -> Any:
    assert x["mu"][0] < x["mu"][1]
    prior = normal(x["mu"], 0, 2) + np.sum(st.halfnorm.logpdf(x["sigma"], scale=2)) + st.beta.logpdf(x["theta"], 5, 5)
    parts = st.norm.pdf(d["y"][:, None], x["mu"], x["sigma"]) @ np.array([x["theta"], 1 - x["theta"]])
    return prior + np.sum(np.log(parts))


def matrix(response: str) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {"X": np.c_[np.ones(6), rng.normal(1, 2, (6, 2))], response: rng.normal(2, 3, 6)}


CASES = {
    "arK-arK": Case(lambda rng: {"K": 3, "y": rng.normal(1, 2, 9)}, ark),
    "diamonds-diamonds": Case(matrix("Y"), diamonds),
    "earnings-logearn_interaction": Case(earnings, logearn),
    "eight_schools-eight_schools_noncentered": Case(
        lambda rng: {"y": rng.normal(8, 9, 4), "sigma": rng.uniform(9, 18, 4)}, schools
    ),
    "garch-garch11": Case(lambda rng: {"y": rng.normal(5, 2, 7), "sigma1": np.asarray(0.5)}, garch),
    "gp_pois_regr-gp_pois_regr": Case(lambda rng: {"x": np.array([-4.0, -1, 0, 3]), "k": np.array([4.0, 0, 2, 9])}, gp),
    "hmm_example-hmm_example": Case(lambda rng: {"y": np.array([3.1, 2.2, 9.5, 10.4, 4.0])}, hmm),
    "kidiq-kidscore_interaction": Case(kidiq, interaction),
    "kidiq-kidscore_momiq": Case(kidiq, momiq),
    "low_dim_gauss_mix-low_dim_gauss_mix": Case(lambda rng: {"y": rng.normal(0, 3, 6)}, mixture),
    "mesquite-logmesquite": Case(mesquite, logmesquite),
    "nes1976-nes": Case(nes_data, nes),
    "sblrc-blr": Case(matrix("y"), blr),
}
SIMPLEX = {"theta1", "theta2"}


@eqx.filter_jit
def evaluate(target: Target, position: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    """The log density, the constrained sites, and the log-Jacobian of the map to them.

    The last entry of a simplex, which the others determine, is left out of the Jacobian.
    """

    def free(p: dict[str, Any]) -> Any:
        sites = target.constrain(p)
        parts = [sites[name][:-1] if name in SIMPLEX else jnp.atleast_1d(sites[name]) for name in sorted(p)]
        return jnp.concatenate(parts)

    blocks = jax.jacfwd(free)(position)
    jacobian = jnp.concatenate([blocks[name].reshape(-1, position[name].size) for name in sorted(position)], axis=1)
    return target.log_density(position), target.constrain(position), jnp.linalg.slogdet(jacobian)[1]


def used(name: str, data: dict[str, Any]) -> dict[str, Any]:
    wanted = MODELS[name].__annotations__
    return {key: value for key, value in data.items() if key in wanted}


def test_every_posterior_has_a_case() -> None:
    assert set(CASES) == set(NAMES) == set(MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_log_density_is_the_formula(name: str, x64: None, key: Any) -> None:
    case, rng = CASES[name], np.random.default_rng(3)
    data = case.data(rng)
    target = Target.from_numpyro(MODELS[name], **used(name, data))
    arrays = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in used(name, data).items()}
    positions = starts(MODELS[name], arrays, key, 3)
    for i in range(3):
        found, values, log_det = evaluate(target, jax.tree.map(lambda a, i=i: a[i], positions))
        sites = {site: np.asarray(value) for site, value in values.items()}
        np.testing.assert_allclose(found, case.formula(sites, data) + float(log_det), rtol=1e-9)


FLAT = {name for name in NAMES if name.startswith(("earnings", "garch", "kidiq", "mesquite", "nes"))}


@pytest.mark.parametrize("name", slow_after(4, NAMES))
def test_prior_can_be_drawn_where_it_is_proper(name: str, x64: None, key: Any) -> None:
    target = Target.from_numpyro(MODELS[name], **used(name, CASES[name].data(np.random.default_rng(3))))
    assert (target.sample_prior is None) == (name in FLAT)
    if target.sample_prior is not None:
        assert np.isfinite(eqx.filter_jit(lambda t, k: t.log_prior(t.draw_prior(k)))(target, key))


def test_data_are_leaves_and_new_data_compiles_nothing() -> None:
    traced: list[int] = []

    @eqx.filter_jit
    def density(target: Target, position: Any) -> Any:
        traced.append(1)
        return target.log_density(position)

    data = kidiq(np.random.default_rng(3))
    position = {"beta": jnp.array([20.0, 0.6]), "sigma": jnp.asarray(3.0)}
    values = []
    for shift in (0.0, 5.0):
        target = Target.from_numpyro(
            MODELS["kidiq-kidscore_momiq"], kid_score=data["kid_score"] + shift, mom_iq=data["mom_iq"]
        )
        values.append(float(density(target, position)))
    assert len(traced) == 1
    assert values[0] != values[1]


def test_gaussian_process_asks_for_double_precision() -> None:
    data = CASES["gp_pois_regr-gp_pois_regr"].data(np.random.default_rng(3))
    with pytest.raises(ValueError, match=r"`x` is float32, .* needs float64.*jax_enable_x64"):
        Target.from_numpyro(MODELS["gp_pois_regr-gp_pois_regr"], **data)


@pytest.mark.parametrize("order", [0, 9])
def test_order_of_the_autoregression_must_fit(order: int) -> None:
    with pytest.raises(ValueError, match=f"`K` is {order}, but `y` has 9 values"):
        Target.from_numpyro(MODELS["arK-arK"], K=order, y=np.zeros(9))


# --- the ordered normal ---


@pytest.mark.parametrize("positive", [False, True])
def test_ordered_normals_have_their_law(positive: bool, key: Any) -> None:
    # Independent rejection in NumPy. 6 standard errors of the difference: a false alarm below 1e-8 for 4 comparisons.
    loc, scale, n = np.array([0.5, 1.0]), np.array([1.0, 0.5]), 40_000
    law = OrderedNormal(jnp.asarray(loc), jnp.asarray(scale), positive=positive)
    found = np.asarray(law.sample(key, (n,)), np.float64)
    free = np.random.default_rng(0).normal(loc, scale, (3 * n, 2))
    kept = free[(free[:, 0] < free[:, 1]) & ((free[:, 0] > 0) | (not positive))]
    for power in (1, 2):
        a, b = found**power, kept**power
        error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 6 * error)
    assert np.all(found[:, 0] < found[:, 1])
    assert not positive or np.all(found > 0)


def test_ordered_normals_that_cannot_be_drawn_are_nan(key: Any) -> None:
    law = OrderedNormal(jnp.array([100.0, 0.0]), jnp.ones(2))
    assert bool(jnp.all(jnp.isnan(law.sample(key))))


# --- eight schools against quadrature ---


def schools_exactly() -> dict[str, tuple[float, float]]:
    """Means and standard deviations: theta given mu and tau is normal, which leaves two integrals."""
    y, s = (
        np.asarray(posterior("eight_schools-eight_schools_noncentered").data[k], np.float64) for k in ("y", "sigma")
    )
    mu = np.linspace(-25, 35, 241)[:, None, None]
    log_tau = np.linspace(-12, 7, 381)[None, :, None]
    tau = np.exp(log_tau)
    log_w = st.norm.logpdf(y, mu, np.sqrt(s**2 + tau**2)).sum(-1, keepdims=True)
    log_w = log_w + st.norm.logpdf(mu, 0, 5) + st.halfcauchy.logpdf(tau, scale=5) + log_tau
    w = scipy.special.softmax(log_w)
    share = tau**2 / (tau**2 + s**2)
    mean, variance = mu + share * (y - mu), share * s**2

    def moments(first: Any, second: Any) -> tuple[Any, Any]:
        m = np.sum(w * first, axis=(0, 1))
        return m, np.sqrt(np.sum(w * second, axis=(0, 1)) - m**2)

    exact = {"mu": moments(mu, mu**2), "tau": moments(tau, tau**2)}
    exact = {name: (float(m[0]), float(sd[0])) for name, (m, sd) in exact.items()}
    means, sds = moments(mean, mean**2 + variance)
    return exact | {f"theta[{j + 1}]": (float(means[j]), float(sds[j])) for j in range(8)}


@pytest.mark.slow
def test_eight_schools_by_hmc_agrees_with_quadrature(key: Any) -> None:
    # 20 comparisons at 4 standard errors: a false alarm with probability at most 1.3e-3 for a new seed. A mean that is
    # off by 8 of them, about .1 of its sd here, passes with probability below 4e-5.
    schools_posterior = posterior("eight_schools-eight_schools_noncentered")
    draws = sample(
        key,
        hmc(num_steps=10),
        schools_posterior.target,
        num_samples=1000,
        num_warmup=400,
        num_chains=8,
        target_accept=0.95,
        throw=False,
    )
    values = {name: np.asarray(v, np.float64) for name, v in schools_posterior.quantities(draws.samples).items()}
    exact = schools_exactly()
    assert set(values) == set(exact)
    for name, x in values.items():
        mean, sd = exact[name]
        table = Draws({"x": x, "square": (x - mean) ** 2}, {}, draws.status).summary()
        for row, truth in (("x", mean), ("square", sd**2)):
            found = table.row(row)
            assert abs(found["mean"] - truth) < 4 * found["mcse"], (name, row, found, truth)
