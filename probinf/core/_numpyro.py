r"""`target_from_numpyro`: the posterior of a NumPyro model as a `Target` on an unconstrained pytree.

With latent sites $z = T(x)$, $T$ the bijections of their supports, the prior is $p(T(x))\,|\det T'(x)|$ and the
likelihood the product of observed sites and factors. Both come from running the model under effect handlers
(Phan, Pradhan, Jankowiak 2019), so supports that depend on other sites, reparametrisations inside the model and
`numpyro.contrib.control_flow.scan` work, and nothing is initialised or run when the target is made. Discrete sites of
finite support are integers in positions, as they are.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import factor
from numpyro.distributions import biject_to, constraints
from numpyro.handlers import seed, trace
from numpyro.primitives import Messenger

from probinf.core._effects import is_concrete
from probinf.core._support import IntegerInterval
from probinf.core._target import Target
from probinf.core._types import PRNGKey

_LOG_DET = "_probinf_log_det_"


class _Substitute(Messenger):
    """Sets each latent site to the image of its unconstrained value, and sums the log-Jacobians."""

    def __init__(self, fn: Callable[..., Any], position: dict[str, Array]) -> None:
        self.position = position
        self.log_dets: list[Array] = []
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            msg["kwargs"]["substitute_stack"].append(("substitute", self._in_loop))
        elif _is_latent(msg) and msg["value"] is None and msg["name"] in self.position:
            if msg["fn"].support.is_discrete:
                msg["value"] = self.position[msg["name"]]
                return
            # Kept out of the trace, where a surrounding `mask` or `scale` would act on the Jacobian too.
            msg["value"], log_det = _transform(msg, self.position[msg["name"]])
            self.log_dets.append(jnp.sum(log_det))

    def _in_loop(self, msg: Any) -> Array | None:
        """The value of a site inside a scan, whose log-Jacobian can leave the loop only through the trace."""
        if msg["type"] != "sample" or msg["is_observed"] or msg["name"] not in self.position:
            return None
        unconstrained = self.position[msg["name"]]
        index = msg["infer"].get("_scan_current_index")
        one_item = len(msg["fn"].shape()) - _lost_dimensions(msg["fn"].support)
        if index is not None and unconstrained.ndim > one_item:
            unconstrained = unconstrained[index]
        if msg["fn"].support.is_discrete:
            return unconstrained
        value, log_det = _transform(msg, unconstrained)
        factor(_LOG_DET + msg["name"], jnp.sum(log_det))
        return value


class _Discover(Messenger):
    """Sets latent sites to the image of zero, so that improper priors too tell their shapes."""

    def __init__(self, fn: Callable[..., Any], zero: Array) -> None:
        # A tracer, so that nothing that depends on a site is taken for a constant.
        self.zero = zero
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        if _is_latent(msg) and msg["value"] is None and not msg["fn"].support.is_discrete:
            shape = msg["fn"].shape(msg["kwargs"].get("sample_shape", ()))
            bijection = biject_to(msg["fn"].support)
            msg["value"] = bijection(jnp.broadcast_to(self.zero, bijection.inverse_shape(shape)))


def _is_latent(msg: Any) -> bool:
    return msg["type"] == "sample" and not msg["is_observed"]


def _lost_dimensions(support: Any) -> int:
    """How many dimensions more a value has than its unconstrained form."""
    if support.is_discrete:
        return 0
    bijection = biject_to(support)
    return bijection.codomain.event_dim - bijection.domain.event_dim


def _transform(msg: Any, unconstrained: Array) -> tuple[Array, Array]:
    bijection = biject_to(msg["fn"].support)
    value = bijection(unconstrained)
    return value, bijection.log_abs_det_jacobian(unconstrained, value)


class _Model(eqx.Module):
    """A model with its arguments: arrays are leaves, so new data of the same shape does not recompile."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def sites(self, position: dict[str, Array]) -> tuple[dict[str, Any], list[Array]]:
        """The trace at `position`, and the log-Jacobians of the sites outside loops."""
        substituted = _Substitute(self.model, position)
        return trace(substituted).get_trace(*self.args, **self.kwargs), substituted.log_dets


class _LogPrior(eqx.Module):
    model: _Model

    def __call__(self, position: dict[str, Array]) -> Float[Array, ""]:
        sites, log_dets = self.model.sites(position)
        total = _total(position, [s for s in sites.values() if _is_latent(s) or _is_log_det(s)])
        return total + sum(log_dets, jnp.zeros((), total.dtype)).astype(total.dtype)


class _LogLikelihood(eqx.Module):
    model: _Model

    def __call__(self, position: dict[str, Array]) -> Float[Array, ""]:
        sites, _ = self.model.sites(position)
        observed = [s for s in sites.values() if s["type"] == "sample" and s["is_observed"] and not _is_log_det(s)]
        return _total(position, observed)


class _Constrain(eqx.Module):
    model: _Model

    def __call__(self, position: dict[str, Array]) -> dict[str, Array]:
        sites, _ = self.model.sites(position)
        shown = {n: s for n, s in sites.items() if _is_latent(s) or s["type"] == "deterministic"}
        return {name: jnp.asarray(site["value"]) for name, site in shown.items()}


class _SamplePrior(eqx.Module):
    model: _Model

    def __call__(self, key: PRNGKey) -> dict[str, Array]:
        sites = trace(seed(self.model.model, key)).get_trace(*self.model.args, **self.model.kwargs)
        latent = {name: site for name, site in sites.items() if _is_latent(site)}
        return {name: _unconstrained(site) for name, site in latent.items()}


def _unconstrained(site: Any) -> Array:
    support = site["fn"].support
    return jnp.asarray(site["value"]) if support.is_discrete else biject_to(support).inv(site["value"])


def _is_log_det(site: Any) -> bool:
    return site["name"].startswith(_LOG_DET)


def _total(position: dict[str, Array], sites: list[Any]) -> Float[Array, ""]:
    floating = [leaf for leaf in position.values() if jnp.issubdtype(leaf.dtype, jnp.floating)]
    total = jnp.zeros((), jnp.result_type(*floating) if floating else float)
    for site in sites:
        log_prob = jnp.sum(site["fn"].log_prob(site["value"]))
        total = total + (log_prob if site["scale"] is None else site["scale"] * log_prob).astype(total.dtype)
    return total


def target_from_numpyro(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Target:
    """The posterior of a NumPyro model given its arguments.

    Positions are dicts from the name of each latent site to its unconstrained value, or to its integers if it is
    discrete, whose ranges are the `supports` of the target; `constrain` gives the values of the latent and the
    `deterministic` sites. `log_prior` holds the log-Jacobians; observed sites and factors
    make `log_likelihood`. NaN in the data makes it NaN (or -inf, where NumPyro validates), which samplers flag at the
    start. The dtype of a density is that of the floating-point sites. Gradient kernels refuse discrete sites: draw
    these with `gibbs` (`on_sites`), or sum them out with `marginalise`.

    Args:
        model: a function of `args` and `kwargs` with NumPyro primitives.
        *args: passed to the model. Arrays (JAX or NumPy) are leaves of the target and may change without a
            recompilation; everything else (numbers, strings) is static.
        **kwargs: as `args`.

    Returns:
        The target. Its `sample_prior` is None where a prior is improper.

    Raises:
        TypeError: `model` is not callable.
        ValueError: a discrete latent site has no finite support of fixed size, a plate subsamples, a `param` site is
            there, or no site is latent.
    """
    if not callable(model):
        raise TypeError(f"`model` must be a function with NumPyro primitives, but is a {type(model).__name__}")
    args, kwargs = jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, (args, kwargs))
    lifted = _Model(model, args, kwargs)
    sites = _discover(lifted)
    _check_sites(sites)
    sample_prior = _SamplePrior(lifted)
    return Target(
        log_likelihood=_LogLikelihood(lifted),
        log_prior=_LogPrior(lifted),
        sample_prior=sample_prior if _can_sample(sample_prior) else None,
        constrain=_Constrain(lifted),
        supports=_supports(lifted, sites),
    )


def _discover(model: _Model) -> dict[str, Any]:
    """The sites of the model; nothing is computed, so the values are abstract."""
    found: dict[str, Any] = {}

    def run(key: Array, zero: Array) -> None:
        found.update(trace(_Discover(seed(model.model, key), zero)).get_trace(*model.args, **model.kwargs))

    eqx.filter_eval_shape(run, jax.random.key(0), jnp.zeros(()))
    return found


def _supports(model: _Model, sites: dict[str, Any]) -> dict[str, IntegerInterval]:
    discrete = {name: site for name, site in sites.items() if _is_latent(site) and site["fn"].support.is_discrete}
    if not all(is_concrete(_bounds(name, site)) for name, site in discrete.items()):
        # Bounds that are computed from constants and data; those that depend on a site stay abstract.
        with jax.ensure_compile_time_eval():
            again = _discover(model)
        discrete = {name: again[name] for name in discrete}
    return {name: _support(name, site) for name, site in discrete.items()}


def _support(name: str, site: Any) -> IntegerInterval:
    bounds, shape = _bounds(name, site), jnp.shape(site["value"])
    if not is_concrete(bounds):
        raise ValueError(
            f"the bounds of latent site '{name}' ({type(site['fn']).__name__}) are not constants, since they depend on "
            "another site or on traced arguments: use a `Categorical` of all values, some of probability zero"
        )
    lower, upper = (np.asarray(bound) for bound in bounds)
    return IntegerInterval(lower.astype(int), upper.astype(int), shape)


def _bounds(name: str, site: Any) -> tuple[Any, Any]:
    """The smallest and the largest value of a discrete site."""
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, type(constraints.boolean)):
        return 0, 1
    if isinstance(support, constraints.integer_interval):
        return support.lower_bound, support.upper_bound
    raise ValueError(
        f"latent site '{name}' is discrete ({type(site['fn']).__name__}), and its support ({support}) is no finite "
        "range of integers: truncate it (e.g. to a `Categorical`), sum it out of the model, or write a `Target` and a "
        "kernel of your own for it"
    )


def _can_sample(sample_prior: _SamplePrior) -> bool:
    try:
        eqx.filter_eval_shape(sample_prior, jax.random.key(0))
    except NotImplementedError:  # what NumPyro raises for improper distributions
        return False
    return True


def _check_sites(sites: dict[str, Any]) -> None:
    for name, site in sites.items():
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ValueError(
                f"plate '{name}' takes {site['args'][1]} of {site['args'][0]} items: a posterior needs all of them. "
                "Remove `subsample_size`"
            )
        if site["type"] == "param":
            raise ValueError(f"site '{name}' is a `numpyro.param` and has no prior: use `numpyro.sample`")
    if not any(_is_latent(site) for site in sites.values()):
        raise ValueError(
            "the model has no latent site: every `numpyro.sample` is observed. Leave out `obs=` for what is unknown"
        )
