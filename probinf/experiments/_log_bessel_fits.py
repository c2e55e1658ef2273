"""Von Mises-Fisher distributions in 2048, 8192 and 32768 dimensions: fits and densities of ours and of SciPy.

Exact pairs: for a chosen concentration mpmath gives the mean resultant length R, and two unit vectors at an angle whose
cosine half-way is R are data with exactly that length, so that the right answer of a fit is known.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from probinf.distributions import VonMisesFisher
from probinf.experiments import _log_bessel_exact as exact
from probinf.experiments import _log_bessel_images as images
from probinf.experiments import _log_bessel_page as page
from probinf.experiments._page import Part
from probinf.experiments._workspace import Workspace

RATIOS = (0.01, 0.1, 0.25, 0.5, 2.0, 20.0)  # concentration over dimension
COSINES = ((1.0, 0.0), (0.6, 0.8), (-0.28, 0.96))  # of the points whose density is taken, with their sines


def two_vectors(dimension: int, length: np.ndarray) -> np.ndarray:
    """Pairs of unit vectors, [k, 2, p], whose mean has this length and the direction of the first axis."""
    x = np.zeros((*length.shape, 2, dimension))
    x[..., 0] = length[..., None]
    x[..., 1] = np.sqrt((1 - length) * (1 + length))[..., None] * np.array([1, -1])
    return x


def by_banerjee(dimension: int, length: Any) -> np.ndarray:
    """The approximation of Banerjee et al. (2005), where our Newton steps start."""
    r = np.asarray(length, float)
    return np.asarray(r * (dimension - r**2) / (1 - r**2))


def scipy_fit(x: np.ndarray) -> float:
    """SciPy's concentration; NaN if it raises one of its own errors."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return float(scipy.stats.vonmises_fisher.fit(x)[1])
        except (ValueError, RuntimeError):
            return float("nan")


def scipy_log_density(direction: np.ndarray, concentration: Any, x: np.ndarray) -> np.ndarray:
    """SciPy's log density at [n, p]."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return np.atleast_1d(scipy.stats.vonmises_fisher(direction, concentration).logpdf(x))


def exact_pairs(workspace: Workspace) -> Part:
    """Fits of data whose concentration is known, and densities, in three dimensions each."""
    rows, densities = [], []
    for dimension in images.DIMENSIONS:
        workspace.say(f"von Mises-Fisher: exact pairs in {dimension} dimensions")
        kappas = dimension * np.array(RATIOS)
        rows += fit_rows(dimension, kappas)
        densities += density_rows(dimension, kappas)
    metrics = {"rows": rows, "densities": densities}
    return Part(metrics, page.fits_section(workspace, metrics))


def fit_rows(dimension: int, kappas: np.ndarray) -> list[dict[str, Any]]:
    """The relative errors of the concentration, one row for each."""
    length = np.array([float(exact.resultant(dimension, kappa)) for kappa in kappas])
    data = two_vectors(dimension, length)
    with jax.enable_x64(True):
        ours = np.asarray(VonMisesFisher.fit(jnp.asarray(data)).concentration)
    theirs = np.array([scipy_fit(x) for x in data])
    columns = {"ours": ours, "SciPy": theirs, "Banerjee": by_banerjee(dimension, length)}
    return [
        {
            "dimension": dimension,
            "concentration": float(kappa),
            "length": float(length[i]),
            "scipy": float(theirs[i]),
            **{f"error_{name}": float(abs(found[i] / kappa - 1)) for name, found in columns.items()},
        }
        for i, kappa in enumerate(kappas)
    ]


def density_rows(dimension: int, kappas: np.ndarray) -> list[dict[str, Any]]:
    """The absolute errors of log densities at three points, one row for each concentration."""
    direction, points = np.eye(1, dimension)[0], np.zeros((len(COSINES), dimension))
    points[:, :2] = COSINES
    with jax.enable_x64(True):
        law = VonMisesFisher(jnp.asarray(direction), jnp.asarray(kappas))
        shape = (len(COSINES), len(kappas), dimension)
        ours = np.asarray(law.log_prob(jnp.broadcast_to(jnp.asarray(points)[:, None, :], shape)))
    rows = []
    for i, kappa in enumerate(kappas):
        truth = [exact.log_density(dimension, kappa, cosine) for cosine, _ in COSINES]
        theirs = scipy_log_density(direction, float(kappa), points)
        rows.append(
            {
                "dimension": dimension,
                "concentration": float(kappa),
                "exact": float(truth[0]),
                "ours": float(max(abs(float(a - b)) for a, b in zip(truth, ours[:, i].tolist(), strict=True))),
                "SciPy": float(max(abs(float(a - b)) for a, b in zip(truth, theirs.tolist(), strict=True)))
                if np.all(np.isfinite(theirs))
                else float("nan"),
            }
        )
    return rows


def features(workspace: Workspace) -> Part:
    """Fits to features of images, checked by mpmath; held-out crops are told apart by their likelihood."""
    workspace.say("von Mises-Fisher: features of images by a fixed convolutional net")
    crops = {name: images.cut(picture) for name, picture in images.pictures().items()}
    known = {name: images.features(half.left) for name, half in crops.items()}
    held_out = {name: images.features(half.right) for name, half in crops.items()}
    rows, cosines = [], {}
    for dimension in images.DIMENSIONS:
        workspace.say(f"von Mises-Fisher: features in {dimension} dimensions")
        here = {name: (known[name][dimension], held_out[name][dimension]) for name in crops}
        found, cosines[dimension] = feature_row(dimension, here)
        rows.append(found)
    metrics = {"rows": rows, "num_crops": {name: [len(half.left), len(half.right)] for name, half in crops.items()}}
    return Part(metrics, page.features_section(workspace, metrics, cosines))


def feature_row(
    dimension: int, data: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fits to the known halves of all pictures, and what they say of the held-out ones."""
    laws, fits = {}, []
    with jax.enable_x64(True):
        for name, (known, _) in data.items():
            law = laws[name] = VonMisesFisher.fit(jnp.asarray(known))
            kappa, length = float(law.concentration), float(np.linalg.norm(known.mean(axis=0)))
            fits.append(
                {
                    "picture": name,
                    "concentration": kappa,
                    "length": length,
                    "residual": float(exact.errors([length], [exact.resultant(dimension, kappa)])[0]),
                    "scipy": scipy_fit(known),
                }
            )
        scores = {
            name: np.stack([np.asarray(law.log_prob(jnp.asarray(new))) for law in laws.values()])
            for name, (_, new) in data.items()
        }
        first = laws[next(iter(data))]
        direction, kappa = np.asarray(first.mean_direction), float(first.concentration)
    right = sum(int(np.sum(scores[name].argmax(axis=0) == i)) for i, name in enumerate(data))
    count = sum(score.shape[1] for score in scores.values())
    name, (_, new) = next(iter(data.items()))
    gain = scores[name][0] - uniform_log_density(dimension)
    metrics = {
        "dimension": dimension,
        "fits": fits,
        "gain": float(gain.mean()),
        "accuracy": right / count,
        "num_held_out": count,
        "scipy_finite": bool(np.all(np.isfinite(scipy_log_density(direction, kappa, new)))),
    }
    return metrics, {other: new @ direction for other, (_, new) in data.items()}


def uniform_log_density(dimension: int) -> float:
    """Minus the logarithm of the area of the sphere."""
    half = dimension / 2
    return float(scipy.special.gammaln(half) - np.log(2) - half * np.log(np.pi))
