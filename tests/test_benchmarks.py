"""The benchmarks' own smoke: the bare scan and our adapter agree with Kalman, and the harness measures and reports.

No timing is asserted. Planted bugs (each must fail `_z_score`, the check that the right filters pass): ancestors
that ignore the weights, and ancestors shifted by one.
"""

import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks._harness import Case, Competitor, Row, Run, Worker, WorkerError, measure, pair_ratios
from benchmarks._report import floor_of, markdown, summarise, write
from benchmarks.filters import _bare, _probinf
from benchmarks.filters._ar1 import jax_model
from benchmarks.filters._problems import NAMES, grid_log_evidence, kalman_log_evidence, make_problem
from benchmarks.filters._run import competitors
from benchmarks.filters._targets import target_lines

NUM_STEPS = 5
NUM_PARTICLES = 500
NUM_REPLICATES = 200
# |z| < 6: a mean of 200 runs is normal enough that a correct filter fails with probability below 1e-8; a bug that
# moves the mean evidence by 6 % of itself (about 10 standard errors here) is missed with probability below 1e-4.
LIMIT = 6.0


def _z_score(log_evidences, exact: float) -> float:
    """How many standard errors the mean of exp(log Z-hat - log Z) is from 1: evidence is unbiased."""
    ratios = np.exp(np.asarray(log_evidences, np.float64) - exact)
    return (ratios.mean() - 1) / (ratios.std(ddof=1) / math.sqrt(len(ratios)))


def _bare_evidences(key, problem, scheme, carry, rule):
    model, ys = jax_model(problem)

    def one(key):
        options: dict[str, Any] = {"num_particles": NUM_PARTICLES, "scheme": scheme, "carry": carry, "rule": rule}
        return _bare.bare_filter(key, model, ys, **options)[0]

    return jax.jit(jax.vmap(one))(jax.random.split(key, NUM_REPLICATES))


def test_kalman_evidence_is_the_published_number():
    assert make_problem("linear_gaussian").log_evidence == pytest.approx(-1445.50, abs=0.005)


def test_quadrature_agrees_with_kalman():
    problem = make_problem("linear_gaussian", 50)
    assert grid_log_evidence(problem) == pytest.approx(kalman_log_evidence(problem), abs=1e-6)


def test_unknown_problem_is_refused():
    with pytest.raises(ValueError, match="linear"):
        make_problem("linear")
    with pytest.raises(ValueError, match="linear-Gaussian"):
        kalman_log_evidence(make_problem("stochastic_volatility", 3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["search/plain/always", "count/eve/always", "count/full/ess<.5"])
@pytest.mark.no_key_reuse
def test_bare_scan_is_unbiased(key, name, variant):
    problem = make_problem(name, NUM_STEPS)
    scheme, carry, rule = variant.split("/")
    evidences = _bare_evidences(key, problem, _bare.SCHEMES[scheme], carry, rule)
    assert abs(_z_score(evidences, problem.log_evidence)) < LIMIT


def _ignores_weights(key, weights):
    return _bare.by_count(key, jnp.ones_like(weights))


def _shifted_by_one(key, weights):
    return jnp.roll(jnp.arange(weights.shape[0]), 1)[_bare.by_count(key, weights)]


@pytest.mark.parametrize("planted", [_ignores_weights, _shifted_by_one])
@pytest.mark.no_key_reuse
def test_planted_resampling_bug_is_caught(key, planted):
    problem = make_problem("linear_gaussian", NUM_STEPS)
    assert abs(_z_score(_bare_evidences(key, problem, planted, "plain", "always"), problem.log_evidence)) > LIMIT


def test_schemes_give_the_systematic_counts(key):
    weights = jnp.asarray([0.2, 0.0, 0.5, 0.3, 0.0])
    for own, scheme in zip(jax.random.split(key, len(_bare.SCHEMES)), _bare.SCHEMES.values(), strict=True):
        ancestors = np.asarray(scheme(own, weights))
        counts = np.bincount(ancestors, minlength=5)
        assert np.all(np.diff(ancestors) >= 0)
        assert np.all(np.abs(counts - 5 * np.asarray(weights)) < 1)


@pytest.mark.numpyro
@pytest.mark.parametrize("name", NAMES)
def test_our_adapter_agrees_with_the_exact_evidence(name):
    problem = make_problem(name, 20)
    run = _probinf.prepare("ess<.5", problem, 2_000)
    ratios = [run(seed) for seed in range(30)]
    # 30 runs: Student's t with 29 degrees of freedom passes 6.2 with probability 1e-6.
    assert abs(_z_score(ratios, problem.log_evidence)) < 6.2


def _competitor(variant: str = "count/eve/always") -> Competitor:
    return Competitor("bare", variant, variant.split("/")[-1], "benchmarks.filters._bare", sys.executable)


def test_worker_runs_and_a_fault_is_reported_not_raised():
    case = Case("linear_gaussian", 4, 10)
    exact = make_problem("linear_gaussian", 4).log_evidence
    said = []
    rows = measure(case, [_competitor(), _competitor("absent/eve/always")], exact, rounds=2, say=said.append)
    assert len(rows[0].runs) == 2
    assert all(math.isfinite(error) for error in rows[0].errors)
    assert "KeyError: 'absent'" in rows[1].fault
    assert not rows[1].runs
    assert "failed: KeyError" in markdown(rows, {"title": "t"})


def test_worker_past_its_limit_is_ended():
    with Worker(sys.executable, limit_s=0.01) as worker, pytest.raises(WorkerError):
        worker.ask(do="prepare", adapter="benchmarks.filters._bare")


def _row(library: str, walls: list[float], *, rule: str = "always") -> Row:
    runs = tuple(Run(wall, wall, -10.0, 1.0) for wall in walls)
    competitor = Competitor(library, f"v/{rule}", rule, "", "")
    return Row(Case("linear_gaussian", 4, 10), competitor, {}, "cpu", -11.0, Run(5.0, 6.0, -10.0, 1.0), runs)


def test_ratios_are_taken_within_a_round(tmp_path):
    ours, slow, fast = _row("probinf", [1, 2, 4]), _row("bare", [2, 6, 4]), _row("bare", [1, 1, 4])
    assert pair_ratios(ours.wall, slow.wall) == [2, 3, 1]
    assert floor_of([ours, slow, fast]) is fast
    summary = summarise(slow, ours, fast)
    assert summary["wall_over_ours"] == {"median": 2, "min": 1, "max": 3}
    assert summary["wall_over_floor"]["median"] == 2
    assert summary["compile_wall"] == 1.0
    assert summary["error_mean"] == summary["error_rmse"] == 1.0
    path = write("filters", [ours, slow, fast], {"title": "t"}, tmp_path)
    assert len(json.loads(path.with_suffix(".json").read_text())["rows"]) == 3
    assert "**bare: v/always**" in path.read_text()


def test_command_writes_its_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "competitors", lambda *args, **kwargs: ([_competitor()], {}))
    options = ["filters", "--problems", "linear_gaussian", "--num-steps", "4", "--num-particles", "10"]
    status = command.main([*options, "--rounds", "1", "--out", str(tmp_path)])
    assert status == 0, capsys.readouterr().out
    assert len(list(tmp_path.glob("filters-cpu-*.md"))) == 1


def test_targets_are_held_against_the_fastest_variant():
    rows = [_row("probinf", [2, 2]), _row("bare", [1, 1]), _row("blackjax", [9, 9]), _row("blackjax", [6, 6])]
    rows = [row._replace(case=Case("linear_gaussian", 4, 1000)) for row in rows]
    table = "\n".join(target_lines(rows))
    assert "| ours / floor <= 1.3 | 2.00 | 2.00 | **no** |" in table
    assert "| blackjax / ours >= 2.0 | 3.00 | 3.00 | yes |" in table


def test_unknown_peer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nobody"):
        competitors(["nobody"], tmp_path, quick=True)
