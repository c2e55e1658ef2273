"""What the experiment on particle inference makes of its runs on the chains task: curves, factors, comparisons."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from probinf.experiments import _particle_inference_chains as chains
from probinf.experiments import _particle_inference_measure as measure
from probinf.experiments._claims import compare
from probinf.experiments._particle_inference_claims import FEW, MANY
from probinf.experiments._particle_inference_curves import highest_sure, interval, scaling_factors
from probinf.experiments._particle_inference_methods import METHODS
from probinf.experiments._particle_inference_raters import Rating

Curves = Mapping[str, Mapping[int, chains.Tally]]  # method -> N -> tally


def summarise(rating: Rating, curves: Curves, solutions: chains.Independent, seed: int) -> dict[str, Any]:
    """Curves with intervals, factors, the headline comparison, and evidences against plain means, where there are."""
    return {
        "short": rating.short,
        "rated_by": rating.title,
        "num_problems": solutions.whole.shape[0],
        "num_steps": chains.NUM_STEPS,
        "most": max(curves["best-of-n"]),
        "pass_at_1": float(solutions.whole.mean()),
        "curves": {method: _curve(row) for method, row in curves.items()},
        "factors": {
            # One N is no curve.
            method: _factors(curves["best-of-n"], row, seed)
            for method, row in curves.items()
            if method in METHODS and len(row) > 1
        },
        "versus": _versus(curves, solutions),
        "targets": _targets(curves, solutions.evidence),
    }


def _curve(row: Mapping[int, chains.Tally]) -> dict[str, Any]:
    found: dict[str, Any] = {"particles": list(row)}
    for name in ("tokens", "scorer_tokens"):
        found[name] = [float(getattr(one, name).mean()) for one in row.values()]
    for name in ("whole", "last", "sampled"):
        values = [getattr(one, name) for one in row.values()]
        ends = [interval(one) for one in values]
        found[name] = {
            "mean": [float(one.mean()) for one in values],
            "low": [low for low, _ in ends],
            "high": [high for _, high in ends],
        }
    return found


def _factors(baseline: Mapping[int, chains.Tally], row: Mapping[int, chains.Tally], seed: int) -> dict[str, Any]:
    """Factors at all levels and the highest sure one: by tokens generated, and with those that the rater reads."""
    found: dict[str, Any] = {}
    for name, all_tokens in (("generated", False), ("all", True)):
        both = (chains.curve(one, all_tokens=all_tokens) for one in (baseline, row))
        factors = scaling_factors(*both, seed=seed)
        best = highest_sure(factors)
        found[name] = {
            "levels": [factor._asdict() for factor in factors],
            "highest": None if best is None else best._asdict(),
        }
    return found


def _versus(curves: Curves, solutions: chains.Independent) -> dict[str, Any]:
    """Filters of few particles against many independent solutions, ranked in the way that does them best."""
    ranked = {how: chains.best_of(solutions, MANY, how).whole for how in chains.AGGREGATES}
    how = max(ranked, key=lambda name: ranked[name].mean())
    filters = {name: curves[name][FEW].whole for name in ("odds", "rarely")}
    return {
        "few": FEW,
        "many": MANY,
        "aggregate": solutions.aggregate,
        "ranked_by": how,
        "baselines": {name: float(values.mean()) for name, values in ranked.items()},
        "filters": {name: float(values.mean()) for name, values in filters.items()},
        "differences": {name: measure.difference(values, ranked[how]) for name, values in filters.items()},
    }


def _targets(curves: Curves, plain: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The targets of the three weights at the largest N: draws, and evidences; empty if not all of them were run."""
    kinds = ("odds", "prob", "ratio")
    if not all(kind in curves for kind in kinds):
        return {}
    size = max(set.intersection(*(set(curves[kind]) for kind in kinds)))
    rows = {kind: curves[kind][size] for kind in kinds}
    # Both are unbiased for the same number, so that their differences, one a problem, have mean zero; as parts of it.
    means = {kind: float(values.mean()) for kind, values in plain.items()}
    apart = np.stack([(np.exp(rows[kind].log_evidence) - plain[kind]) / means[kind] for kind in plain], axis=1)
    return {
        "num_particles": size,
        "sampled": {kind: float(row.sampled.mean()) for kind, row in rows.items()},
        "plain": means,
        "filtered": {kind: float(np.exp(rows[kind].log_evidence).mean()) for kind in plain},
        "evidence": measure.brief(compare(apart, np.zeros(len(plain)))),
    }


def measure_evidence(log_evidence: np.ndarray, sampled: np.ndarray, num_particles: int) -> dict[str, Any]:
    """Runs of one N against an evidence of 1."""
    return {
        "num_particles": num_particles,
        "num_runs": log_evidence.size,
        "evidence": measure.brief(compare(np.exp(log_evidence)[:, None], np.ones(1))),
        "mean_log": float(log_evidence.mean()),
        "accuracy": float(sampled.mean()),
    }
