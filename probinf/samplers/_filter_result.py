"""What a particle filter returns."""

import io
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32
from rich.console import Console
from rich.table import Table

from probinf.core import FeynmanKac, Population, Status, check_status

NO_VARIANCE = {
    "scheme": "the single-run variance estimate holds for multinomial resampling only; pass `num_replicates=`",
    "eves": "too few distinct ancestors at time 0 are left for the single-run estimate; pass `num_replicates=`",
}
FEWEST_EVES = 10


class History(NamedTuple):
    """All particles of a run.

    Attributes:
        particles: leaves [T, N, ...], after weighting at each time.
        log_weights: [T, N].
        ancestors: [T - 1, N]; row t tells where each slot at time t + 1 came from (for `trace_back`).
        model: the `FeynmanKac` that was run, for smoothers.
    """

    particles: PyTree
    log_weights: Float[Array, "t n"]
    ancestors: Int[Array, "t_less_1 n"]
    model: FeynmanKac


class FilterResult(eqx.Module):
    """The result of `particle_filter`. With `num_replicates=R` all but the evidence has a leading axis R.

    Attributes:
        log_evidence: log of the unbiased estimate of p(y_{0:T-1}); NaN after a fatal fault, -inf if all weights
            became zero.
        log_evidence_variance: estimated variance of `log_evidence`; NaN where there is no estimate (see
            `variance_note`).
        log_evidence_path: [T], log p(y_{0:t}).
        ess: [T], effective sample size after weighting.
        mean: pytree, leaves [T, ...]: filtering means of the particles.
        quantiles: pytree, leaves [T, num_quantiles, ...], or None if not asked for.
        resampled: [T], whether the particles were resampled on the way to time t.
        status: OR of `Status` bits.
        num_nan: how many log weights were NaN.
        first_bad_step: the first time at which a status bit was set, -1 if none.
        population: the particles at T - 1.
        records: what `record=` returned, stacked [T, ...], or None.
        history: a `History`, or None.
        scheme: name of the resampling scheme.
        replicate_log_evidence: [R] with `num_replicates=R`, else None.
    """

    log_evidence: Float[Array, ""]
    log_evidence_variance: Float[Array, ""]
    log_evidence_path: Float[Array, "*r t"]
    ess: Float[Array, "*r t"]
    mean: PyTree[Any]
    quantiles: PyTree[Any]
    resampled: Bool[Array, "*r t"]
    status: UInt32[Array, "*r"]
    num_nan: Int[Array, "*r"]
    first_bad_step: Int[Array, "*r"]
    population: Population
    records: PyTree[Any]
    history: History | None
    scheme: str = eqx.field(static=True)
    replicate_log_evidence: Float[Array, " r"] | None = None

    @property
    def variance_note(self) -> str:
        """Why `log_evidence_variance` is NaN; empty if it is not."""
        if not np.any(np.isnan(np.asarray(self.log_evidence_variance))):
            return ""
        if int(np.bitwise_or.reduce(np.ravel(np.asarray(self.status)))) != Status.OK:
            return "the run was flagged: see `status`"
        return NO_VARIANCE["scheme" if self.scheme != "multinomial" else "eves"]

    def check(self) -> "FilterResult":
        """Itself, after raising `InferenceError` for fatal bits or one warning for others."""
        first = np.asarray(self.first_bad_step)
        where = f"first at time step {first if first.ndim == 0 else first.tolist()}"
        counts = {bit.name: where for bit in Status if bit.name}
        counts["NAN_LOG_WEIGHT"] = f"{int(np.sum(np.asarray(self.num_nan)))} log weights, {where}"
        check_status(self.status, what="particle_filter", counts=counts, result=self)
        return self

    @property
    def _standard_error(self) -> np.ndarray:
        return np.asarray(np.sqrt(np.maximum(np.asarray(self.log_evidence_variance), 0)))

    def summary(self) -> str:
        """A short table: evidence with its standard error, ESS, resampling and status."""
        ess = np.asarray(self.ess)
        table = Table(title="particle_filter", show_header=False)
        table.add_row("log evidence", _shown(self.log_evidence, ".4f"))
        table.add_row("standard error", self.variance_note or _shown(self._standard_error, ".3g"))
        table.add_row("time steps", str(ess.shape[-1]))
        table.add_row("particles", str(jax.tree.leaves(self.population.log_weights)[0].shape[-1]))
        if ess.size:
            table.add_row("ESS min / median", f"{ess.min():.1f} / {np.median(ess):.1f}")
        table.add_row("resampled", f"{int(np.sum(np.asarray(self.resampled)))} times ({self.scheme})")
        flags = Status(int(np.bitwise_or.reduce(np.ravel(np.asarray(self.status)))))
        table.add_row("status", flags.name or "OK")
        text = io.StringIO()
        Console(file=text, width=100, no_color=True).print(table)
        return text.getvalue()


def _shown(values: Any, form: str) -> str:
    """A number, or the range of several."""
    values = np.ravel(np.asarray(values))
    if values.size == 1:
        return format(float(values[0]), form)
    return f"{format(float(values.min()), form)} to {format(float(values.max()), form)} ({values.size} members)"
