"""Values and derivatives of log I and log K against 40 digits: ours in both precisions, SciPy, and TFP if it is there.

The measure is |error| / max(1, |value|, r) with r = sqrt(v^2 + x^2): the value crosses zero near x = 0.66 v, and
rounding the arguments alone makes an error of that size. All points are numbers that float32 holds where it is
compared, so that both precisions are asked for the same values.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from probinf import special
from probinf.experiments import _log_bessel_exact as exact
from probinf.experiments import _log_bessel_page as page
from probinf.experiments._page import Part
from probinf.experiments._workspace import Workspace

Function = Callable[[np.ndarray, np.ndarray], np.ndarray]
NAMES = ("I", "K")
ORACLES = {"I": exact.log_i, "K": exact.log_k}
OURS = {"I": special.log_iv, "K": special.log_kv}
MISSES = 100_000  # random pairs that tell how often SciPy fails
SMALL = np.logspace(-8, 1, 37)  # arguments of log I_0


class Points(NamedTuple):
    """Orders and arguments, their radius, and the exact logarithms by name of function."""

    v: np.ndarray
    x: np.ndarray
    r: np.ndarray
    exact: Mapping[str, list[Any]]


def plane(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs of the range that peers are compared in."""
    return 10 ** rng.uniform(-1, 5, count), 10 ** rng.uniform(-3, 6, count)


def box(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs of the whole range that is promised, order 0 among them."""
    v, x = 10 ** rng.uniform(-6, 6, count), 10 ** rng.uniform(-300, 300, count)
    v[: count // 20] = 0
    return v, x


def solve(v: np.ndarray, x: np.ndarray) -> Points:
    """The exact values."""
    found = {name: [oracle(a, b) for a, b in zip(v, x, strict=True)] for name, oracle in ORACLES.items()}
    return Points(v, x, np.maximum(1, np.hypot(v, x)), found)


def ours(name: str, dtype: str, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Our function in one precision."""
    with jax.enable_x64(True):
        return np.asarray(OURS[name](v.astype(dtype), x.astype(dtype)), np.float64)


def by_scipy(name: str, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The logarithm of SciPy's exponentially scaled function, x added back."""
    function, sign = (scipy.special.ive, 1) if name == "I" else (scipy.special.kve, -1)
    with np.errstate(all="ignore"):
        return np.log(function(v, x)) + sign * x


def tfp() -> tuple[Any, str]:
    """The module `math` of TensorFlow Probability on JAX, or None, and its version or why it is not there."""
    try:
        import tensorflow_probability as package  # pyright: ignore[reportMissingImports]
        from tensorflow_probability.substrates import jax as substrate  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None, "not installed"
    except AttributeError as error:  # a release that is older than this JAX
        return None, f"does not import with jax {jax.__version__} ({error})"
    return substrate.math, package.__version__


def by_tfp(math: Any, name: str, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """TFP's function in float64."""
    function, sign = (math.log_bessel_ive, 1) if name == "I" else (math.log_bessel_kve, -1)
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function)(jnp.asarray(v), jnp.asarray(x))) + sign * x


def libraries(math: Any) -> dict[str, Callable[[str, np.ndarray, np.ndarray], np.ndarray]]:
    """By title, functions of ("I" or "K", v, x)."""
    found: dict[str, Any] = {
        "probinf, float64": lambda name, v, x: ours(name, "float64", v, x),
        "probinf, float32": lambda name, v, x: ours(name, "float32", v, x),
        "SciPy": by_scipy,
    }
    return found if math is None else found | {"TFP": partial(by_tfp, math)}


def summary(errors: np.ndarray) -> dict[str, float]:
    """The largest and the median error where there is a value, and the share of points without one."""
    finite = np.isfinite(errors)
    some = errors[finite] if finite.any() else np.array([np.nan])
    return {
        "largest": float(np.max(some)),
        "median": float(np.median(some)),
        "not_finite": float(1 - finite.mean()),
    }


def values(config: Any, workspace: Workspace) -> Part:
    """Errors over the plane, over the whole range, and of log I_0 at small arguments."""
    rng = np.random.default_rng(config.seed)
    math, tfp_version = tfp()
    workspace.say(f"values: {config.num_plane:,} + {config.num_box:,} points to {exact.DIGITS} digits by mpmath")
    inner = solve(*(a.astype(np.float32).astype(float) for a in plane(rng, config.num_plane)))
    outer = solve(*box(rng, config.num_box))
    found = {
        title: {name: errors(function, name, inner) for name in NAMES} for title, function in libraries(math).items()
    }
    wide = {name: errors(libraries(None)["probinf, float64"], name, outer) for name in NAMES}
    many = plane(rng, MISSES)
    missed = {name: float(1 - np.isfinite(by_scipy(name, *many)).mean()) for name in NAMES}
    small = {
        title: exact.errors(function("I", np.zeros_like(SMALL), SMALL), [exact.log_i0(x) for x in SMALL])
        for title, function in libraries(math).items()
        if title != "probinf, float32"
    }
    metrics = {
        "num_plane": config.num_plane,
        "num_box": config.num_box,
        "plane": {title: {name: summary(e) for name, e in rows.items()} for title, rows in found.items()},
        "box": {name: summary(e) for name, e in wide.items()},
        "scipy_fails": missed,
        "num_pairs": MISSES,
        "small": {title: summary(e) for title, e in small.items()},
        "tfp": tfp_version,
    }
    return Part(metrics, page.accuracy_section(workspace, metrics, inner, found, (SMALL, small)))


def errors(function: Callable[..., np.ndarray], name: str, points: Points) -> np.ndarray:
    """The scaled errors of a library at all points; inf where it has no finite value."""
    return exact.errors(function(name, points.v, points.x), points.exact[name], points.r)


def derivatives(config: Any, workspace: Workspace) -> Part:
    """Derivatives in order and argument against those of the exact functions."""
    rng = np.random.default_rng([config.seed, 1])
    v, x = plane(rng, config.num_derivatives)
    workspace.say(f"derivatives: {config.num_derivatives:,} points")
    math, tfp_version = tfp()
    rows = {}
    for name, oracle in ORACLES.items():
        truth = list(zip(*(exact.slopes(oracle, a, b) for a, b in zip(v, x, strict=True)), strict=True))
        rows[name] = {"probinf": against(slopes(OURS[name], v, x), truth)}
        if math is not None:
            rows[name]["TFP"] = against(slopes(partial(tfp_traced, math, name), v, x), truth)
    metrics = {"num_points": config.num_derivatives, "rows": rows, "tfp": tfp_version}
    return Part(metrics, page.derivatives_section(metrics))


def tfp_traced(math: Any, name: str, v: jax.Array, x: jax.Array) -> jax.Array:
    """TFP's function as a user differentiates it."""
    return math.log_bessel_ive(v, x) + x if name == "I" else math.log_bessel_kve(v, x) - x


def slopes(function: Callable[..., jax.Array], v: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The derivatives in both arguments, by reverse mode in float64."""
    traced = partial(function, reflect=False) if function is special.log_iv else function
    with jax.enable_x64(True):
        pull = jax.jit(lambda v, x: jax.vjp(traced, v, x)[1](jnp.ones_like(x)))
        by_order, by_argument = pull(jnp.asarray(v), jnp.asarray(x))
        return np.asarray(by_order), np.asarray(by_argument)


def against(found: tuple[np.ndarray, np.ndarray], truth: list[Any]) -> dict[str, dict[str, float]]:
    """The errors of both derivatives, over max(1, |derivative|)."""
    pairs = zip(("order", "argument"), found, truth, strict=True)
    return {name: summary(exact.errors(values, list(right), 1.0)) for name, values, right in pairs}
