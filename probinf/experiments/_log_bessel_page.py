"""What the experiment on log-Bessel functions shows: text, figures and tables from its metrics."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from probinf.experiments._figures import BLUE, INK, MUTED, ORANGE, ROSE, TEAL, canvas
from probinf.experiments._page import Figure, Section, Table
from probinf.experiments._workspace import Workspace

EPSILON = float(np.finfo(np.float64).eps)
# Upper ends of the classes of errors in a figure, in units of 2^-52.
CLASSES = ((2.0, TEAL), (20.0, BLUE), (np.inf, ORANGE))
MOST_SHOWN = 1200  # points of a figure
INTRODUCTION = (
    "The modified Bessel functions I and K of real order normalise directions on spheres, smooth Gaussian processes "
    "and heavy-tailed laws. They leave the range of floating-point numbers almost at once, so their logarithms are "
    "needed, right to the last digits, and differentiable in the order as well as in the argument.",
    "Every value here is compared with one of 40 digits. The scale of an error is max(1, |value|, r) with r the root "
    "of v² + x², which is what rounding the arguments does already: the values cross zero near x = 0.66 v.",
)
COLOURS = {"probinf, float64": BLUE, "SciPy": ORANGE, "TFP": ROSE}


def accuracy_section(
    workspace: Workspace, metrics: Mapping[str, Any], points: Any, errors: Mapping[str, Any], small: Any
) -> Section:
    """The plane in colours, the small arguments, and the largest errors."""
    items = (_plane(workspace, points, errors), _small(workspace, *small), _accuracy_table(metrics))
    fails = metrics["scipy_fails"]
    text = (
        *INTRODUCTION,
        f"SciPy's exponentially scaled functions underflow or overflow at {fails['I']:.0%} of random pairs (I) and "
        f"{fails['K']:.0%} (K). TensorFlow Probability: {metrics['tfp']}.",
    )
    return Section("The plane of order and argument", text, items)


def _plane(workspace: Workspace, points: Any, errors: Mapping[str, Any]) -> Figure:
    shown = slice(0, MOST_SHOWN)
    v, x = np.log10(points.v[shown]), np.log10(points.x[shown])
    with canvas(rows=2, columns=2, height=7.2) as (figure, axes):
        places = iter(axes)
        for title in ("probinf, float64", "SciPy"):
            for name in ("I", "K"):
                place, error = next(places), errors[title][name][shown] / EPSILON
                last = 0.0
                for most, colour in CLASSES:
                    chosen = (error >= last) & (error < most)
                    label = f"below {most:g} units" if np.isfinite(most) else f"{last:g} units and more"
                    place.plot(v[chosen], x[chosen], ".", color=colour, markersize=4, label=label)
                    last = most
                missing = ~np.isfinite(error)
                place.plot(v[missing], x[missing], "x", color=MUTED, markersize=3.5, label="no finite value")
                place.set(title=f"log {name}, {title}", xlabel="log₁₀ order", ylabel="log₁₀ argument")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        caption = "Scaled errors in units of 2⁻⁵² at random pairs of order and argument."
        alt = "Scatter plots: ours has small errors everywhere, SciPy no value below the diagonal and at its upper end."
        return workspace.figure("log-bessel-plane", figure, caption=caption, alt=alt)


def _small(workspace: Workspace, x: np.ndarray, errors: Mapping[str, np.ndarray]) -> Figure:
    with canvas(height=2.9) as (figure, (axes,)):
        for title, error in errors.items():
            axes.loglog(x, np.maximum(error, EPSILON / 8), ".-", color=COLOURS[title], label=title)
        axes.axhline(EPSILON, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="2⁻⁵²")
        axes.set(xlabel="x", ylabel="relative error of log I₀")
        axes.legend(loc="upper right", ncols=4)
        caption = "Near zero log I₀(x) is x²/4: the logarithm of a number near one has lost it."
        alt = "Ours stays at rounding; the others rise as the argument falls, until nothing is right."
        return workspace.figure("log-bessel-small", figure, caption=caption, alt=alt)


def _accuracy_table(metrics: Mapping[str, Any]) -> Table:
    rows = [
        (f"log {name}", title, *_cells(found[name])) for name in ("I", "K") for title, found in metrics["plane"].items()
    ]
    rows += [(f"log {name}, whole range", "probinf, float64", *_cells(found)) for name, found in metrics["box"].items()]
    caption = (
        f"Scaled errors where there is a value, at {metrics['num_plane']:,} pairs with v = 10^U(-1, 5) and "
        f"x = 10^U(-3, 6); whole range: {metrics['num_box']:,} pairs with v = 10^U(-6, 6) and 0, x = 10^U(-300, 300)."
    )
    return Table(caption, ("", "library", "largest", "median", "not finite"), tuple(rows))


def _cells(found: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{or_nan(found['largest']):.1e}", f"{or_nan(found['median']):.1e}", f"{100 * found['not_finite']:.1f} %"


def derivatives_section(metrics: Mapping[str, Any]) -> Section:
    """The errors of both derivatives."""
    rows = tuple(
        (f"d log {name} / d {part}", library, *_cells(found[part]))
        for name, libraries in metrics["rows"].items()
        for part in ("order", "argument")
        for library, found in libraries.items()
    )
    caption = f"Errors over max(1, |derivative|) at {metrics['num_points']:,} pairs of the plane, float64."
    text = (
        "Derivatives are those that `jax.grad` gives. A derivative in the order is what it takes to learn the "
        f"smoothness of a Matérn process; SciPy has none. TensorFlow Probability: {metrics['tfp']}.",
    )
    table = Table(caption, ("", "library", "largest", "median", "not finite"), rows)
    return Section("Derivatives in both arguments", text, (table,))


def speed_section(metrics: Mapping[str, Any]) -> Section:
    """Rates and ratios."""
    titles = {"float64": "probinf, float64", "float32": "probinf, float32", "SciPy": "SciPy, float64"}
    rows = tuple(
        (
            f"log {name}",
            titles[library],
            f"{found['wall']:.4f}",
            f"{found['processor']:.4f}",
            f"{found['rate']:.2e}",
            f"{found['scipy_over_this']:.2f}",
        )
        for name, libraries in metrics["rows"].items()
        for library, found in libraries.items()
    )
    columns = ("", "library", "wall s", "processor s", "values / s", "SciPy's time / this")
    caption = (
        f"Medians of {metrics['num_rounds']} calls of {metrics['num_pairs']:,} random pairs, all libraries in turn. "
        "SciPy's time is that of ive and kve without the logarithm; it has one thread, JAX as many as there are cores."
    )
    return Section("Time", (), (Table(caption, columns, rows),))


def fits_section(workspace: Workspace, metrics: Mapping[str, Any]) -> Section:
    """Concentrations and densities where the truth is known."""
    rows = tuple(
        (
            f"{row['dimension']}",
            f"{row['concentration']:.2f}",
            f"{row['length']:.4f}",
            f"{row['error_ours']:.1e}",
            f"{row['error_Banerjee']:.1e}",
            f"{or_nan(row['scipy']):.6g}",
        )
        for row in metrics["rows"]
    )
    columns = ("dimension", "concentration", "R", "ours, rel. error", "Banerjee, rel. error", "SciPy's fit")
    fits = Table("Fits to two unit vectors whose mean has the length R, computed to 40 digits.", columns, rows)
    rows = tuple(
        (
            f"{row['dimension']}",
            f"{row['concentration']:.2f}",
            f"{row['exact']:.6f}",
            f"{row['ours']:.1e}",
            f"{or_nan(row['SciPy']):.1e}" if np.isfinite(or_nan(row["SciPy"])) else "no finite value",
        )
        for row in metrics["densities"]
    )
    columns = ("dimension", "concentration", "log density at the mode", "ours, error", "SciPy, error")
    densities = Table("Log densities at three points: the largest absolute error.", columns, rows)
    text = (
        "A von Mises-Fisher distribution in p dimensions is fitted by solving A(κ) = R, a ratio of Bessel functions of "
        "order p/2. SciPy's root finder starts at κ = 1e-8, where both functions underflow from some 67 dimensions on, "
        "and returns that number.",
    )
    title = "Fits in 2048, 8192 and 32768 dimensions"
    return Section(title, text, (_fit_errors(workspace, metrics["rows"]), fits, densities))


def _fit_errors(workspace: Workspace, rows: Any) -> Figure:
    dimensions = sorted({row["dimension"] for row in rows})
    with canvas(columns=3, height=2.9) as (figure, axes):
        for place, dimension in zip(axes, dimensions, strict=True):
            here = [row for row in rows if row["dimension"] == dimension]
            ratio = [row["concentration"] / dimension for row in here]
            for name, colour in (("SciPy", ORANGE), ("Banerjee", MUTED), ("ours", BLUE)):
                error = np.maximum([or_nan(row[f"error_{name}"]) for row in here], EPSILON / 8)
                place.loglog(ratio, error, "o-", color=colour, markersize=4, label=name)
            place.axhline(EPSILON, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            place.set(title=f"{dimension} dimensions", xlabel="concentration / dimension", ylim=(1e-17, 1e2))
        axes[0].set(ylabel="relative error")
        axes[0].legend(loc="lower right", bbox_to_anchor=(1, 0.2))
        caption = "Relative error of the fitted concentration. Dashed: 2⁻⁵²."
        alt = "Three panels: ours at rounding, Banerjee's formula between, SciPy at one."
        return workspace.figure("log-bessel-fits", figure, caption=caption, alt=alt)


def features_section(
    workspace: Workspace, metrics: Mapping[str, Any], cosines: Mapping[int, Mapping[str, np.ndarray]]
) -> Section:
    """Fits to features, and what they say of crops they have not seen."""
    rows = tuple(
        (
            f"{row['dimension']}",
            fit["picture"],
            f"{fit['length']:.4f}",
            f"{fit['concentration']:.2f}",
            f"{fit['residual']:.1e}",
            f"{or_nan(fit['scipy']):.6g}",
        )
        for row in metrics["rows"]
        for fit in row["fits"]
    )
    columns = ("dimension", "picture", "R", "concentration", "|A(κ) / R - 1|", "SciPy's fit")
    fits = Table("Fits to the features of crops from the left halves; A(κ) to 40 digits.", columns, rows)
    rows = tuple(
        (
            f"{row['dimension']}",
            f"{row['gain']:,.1f}",
            f"{100 * row['accuracy']:.1f} % of {row['num_held_out']}",
            "yes" if row["scipy_finite"] else "no",
        )
        for row in metrics["rows"]
    )
    columns = ("dimension", "nats a crop over the uniform law", "told apart", "SciPy's log density finite")
    held_out = Table(
        "Crops from the right halves: the photograph's log density, and which fit is likelier.", columns, rows
    )
    counts = ", ".join(f"{known} and {new} crops of the {name}" for name, (known, new) in metrics["num_crops"].items())
    text = (
        "Features of images are compared by their angles. Two pictures that ship with matplotlib, a photograph and a "
        "map of heights, are cut into crops, and a convolutional net with fixed random weights turns each crop into "
        f"unit vectors, one for each of its layers; left and right halves give {counts}.",
    )
    return Section("Features of images", text, (_cosines(workspace, cosines), fits, held_out))


def _cosines(workspace: Workspace, cosines: Mapping[int, Mapping[str, np.ndarray]]) -> Figure:
    with canvas(columns=len(cosines), height=2.7) as (figure, axes):
        for place, (dimension, values) in zip(axes, cosines.items(), strict=True):
            bins = np.linspace(min(v.min() for v in values.values()), max(v.max() for v in values.values()), 30)
            for (name, value), colour in zip(values.items(), (BLUE, ORANGE), strict=True):
                place.hist(value, bins.tolist(), density=True, color=colour, alpha=0.6, label=name)
            place.set(title=f"{dimension} dimensions", xlabel="cosine", yticks=[])
        axes[0].legend(loc="upper left")
        caption = "Held-out crops: cosines to the mean direction of the photograph's features."
        alt = "Three panels with two histograms each; those of the photograph lie further right."
        return workspace.figure("log-bessel-features", figure, caption=caption, alt=alt)


def or_nan(value: float | None) -> float:
    """A number that JSON may have kept as null."""
    return float("nan") if value is None else value
