"""The benchmarks' own smoke: bare scan and our adapters agree with exact evidence; the harness measures and reports.

No timing is asserted. Planted bugs: ancestors that ignore the weights, and ancestors shifted by one (each must fail
`_z_score`, the check that the right filters pass); draws shifted by one standard deviation, or of twice the variance
(the table of `mcmc` must flag them); one run whose ancestors differ between device counts (the table of
`scaling` must say so).
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
from benchmarks import _scaling
from benchmarks._competitors import Entry, competitors, peer_competitors
from benchmarks._harness import Case, Competitor, Row, Run, Worker, WorkerError, measure, pair_ratios
from benchmarks._merit import gain, price
from benchmarks._report import COLUMNS, Outcome, floor_of, markdown, summarise, write
from benchmarks.filters import _bare, _probinf, _problems, _sharded, _targets
from benchmarks.filters import _run as filters
from benchmarks.filters._ar1 import jax_model
from benchmarks.filters._problems import NAMES, grid_log_evidence, kalman_log_evidence, make_problem
from benchmarks.llm import _probinf as llm_probinf
from benchmarks.llm import _problems as llm_problems
from benchmarks.mcmc import _densities, _diagnose
from benchmarks.mcmc import _probinf as mcmc_probinf
from benchmarks.mcmc import _problems as mcmc_problems
from benchmarks.mcmc import _targets as mcmc_targets
from benchmarks.mcmc._jax import jax_data
from benchmarks.tempered import _bimodal
from benchmarks.tempered import _probinf as tempered_probinf
from benchmarks.tempered import _problems as tempered_problems
from benchmarks.tempered import _run as tempered

NUM_STEPS = 5
NUM_PARTICLES = 500
NUM_REPLICATES = 200
# |z| < 6: a mean of 200 runs is normal enough that a correct filter fails with probability below 1e-8; a bug that
# moves the mean evidence by 6 % of itself (about 10 standard errors here) is missed with probability below 1e-4.
LIMIT = 6.0
# 30 runs: Student's t with 29 degrees of freedom passes it with probability 1e-6.
LIMIT_OF_30 = 6.2


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
    with pytest.raises(ValueError, match="trimodal"):
        tempered_problems.make_problem("trimodal")


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


def test_optimal_proposal_and_predictive_factorise_the_joint():
    """Exactly: p(x | x') p(y | x) = p(x | x', y) p(y | x'), in numpy and in JAX, as peers are given them."""
    problem = make_problem("linear_gaussian", 2, solve=False)
    model, _ = jax_model(problem)
    assert problem.observation_scale is not None
    y, before, x = 1.3, np.asarray([0.4, -2.0]), np.asarray([1.1, 0.7])
    centre = problem.mean + problem.persistence * (before - problem.mean)
    loc, scale = _problems.optimal_proposal(y, centre, problem.scale, problem.observation_scale)
    predictive = _problems.log_predictive(y, centre, problem.scale, problem.observation_scale)

    def log_normal(x, mean, scale):
        return -0.5 * ((x - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)

    joint = log_normal(x, centre, problem.scale) + log_normal(y, x, problem.observation_scale)
    np.testing.assert_allclose(log_normal(x, loc, scale) + predictive, joint, rtol=1e-12)
    x_prev, y_now = jnp.asarray(before, jnp.float32), jnp.asarray(y, jnp.float32)
    np.testing.assert_allclose(model.log_predictive(y_now, x_prev), predictive, rtol=1e-5)
    np.testing.assert_allclose(model.propose(x_prev, y_now, jnp.ones(2)), loc + scale, rtol=1e-5)


@pytest.mark.numpyro
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *((name, "ess<.5") for name in NAMES),
        ("linear_gaussian", "guided/ess<.5"),
        ("linear_gaussian", "auxiliary/ess<.5"),
    ],
)
def test_our_adapter_agrees_with_the_exact_evidence(name, variant):
    problem = make_problem(name, 20)
    run = _probinf.prepare(variant, problem, 500 if "/" in variant else 2_000)
    assert abs(_z_score([run(seed) for seed in range(30)], problem.log_evidence)) < LIMIT_OF_30


def test_sharded_adapter_refuses_devices_that_are_not_there():
    problem = make_problem("linear_gaussian", 3, solve=False)
    with pytest.raises(ValueError, match="JAX sees"):
        _sharded.prepare(f"{jax.device_count() + 1} devices", problem, 64)
    one, other = (jnp.asarray(ancestors, jnp.int32) for ancestors in ([0, 1, 1], [0, 1, 2]))
    assert _sharded.fingerprint(one) == _sharded.fingerprint(one + 0) != _sharded.fingerprint(other)


def test_bimodal_evidence_is_the_published_number():
    assert tempered_problems.make_problem().log_evidence == pytest.approx(-26.126, abs=0.0005)


def test_bimodal_functions_agree_with_quadrature():
    """In one dimension: what we and BlackJAX are given integrates to the exact evidence and mode weight."""
    problem = tempered_problems.make_problem("bimodal", 1)
    model = _bimodal.jax_model(problem)
    grid = jnp.linspace(-12.0, 12.0, 4801)[:, None]
    log_joint = jax.vmap(lambda x: _bimodal.log_prior(model, x) + _bimodal.log_likelihood(model, x))(grid)
    joint = np.exp(np.asarray(log_joint, np.float64))
    assert math.log(joint.sum() * 24 / 4800) == pytest.approx(problem.log_evidence, abs=1e-5)
    # Each mode leaks 3e-5 of itself past 0, the right one more, for it is heavier.
    assert problem.mode_weight_error(grid, joint / joint.sum()) == pytest.approx(0, abs=1e-4)


# Step sizes are still being tuned when a trajectory diverges; acceptance makes that harmless.
@pytest.mark.filterwarnings("ignore:.tempered_smc. finished with flags:probinf.InferenceWarning")
def test_our_tempered_adapter_agrees_with_the_exact_answers():
    problem = tempered_problems.make_problem("bimodal", 2)
    run = tempered_probinf.prepare("default", problem, 300)
    found = [run(seed) for seed in range(30)]
    # Adaptive tempering is biased by O(1 / N) = 0.003, a tenth of the standard error of the mean of 30 runs.
    assert abs(_z_score([log_evidence for log_evidence, _ in found], problem.log_evidence)) < LIMIT_OF_30
    errors = np.asarray([details()["mode_weight_error"] for _, details in found])
    assert abs(errors.mean()) < LIMIT_OF_30 * errors.std(ddof=1) / math.sqrt(len(errors))
    assert all(details()["num_temperatures"] > 1 for _, details in found)


def test_our_language_model_adapter_has_the_exact_evidence():
    problem = llm_problems.make_problem("chains", 3)
    run = llm_probinf.prepare("particle_filter", problem, 32)
    found = [run(seed) for seed in range(30)]
    assert abs(_z_score([log_evidence for log_evidence, _ in found], 0.0)) < LIMIT_OF_30
    assert all(details()["tokens"] == 32 * 3 * llm_problems.STEP for _, details in found)


def test_systematic_resampling_of_the_loops_on_the_host():
    log_weights = np.log([0.1, 0.4, 0.5]) + 7
    assert llm_problems.systematic(0.25, log_weights).tolist() == [0, 1, 2]
    assert llm_problems.systematic(0.99, np.array([0.0, -np.inf])).tolist() == [0, 0]
    np.testing.assert_allclose(llm_problems.log_mean_exp(log_weights), 7 - np.log(3))


def _competitor(variant: str = "count/eve/always") -> Competitor:
    return Competitor("bare", variant, variant.split("/")[-1], "benchmarks.filters._bare", sys.executable)


def test_worker_runs_and_a_fault_is_reported_not_raised():
    case = Case("linear_gaussian", 4, 10)
    exact = make_problem("linear_gaussian", 4).log_evidence
    listed = [_competitor(), _competitor("absent/eve/always")]
    rows = measure(case, listed, exact, rounds=2, starts=2, say=lambda line: None)
    assert len(rows[0].firsts) == len(rows[0].runs) == 2
    assert all(math.isfinite(error) for error in rows[0].errors)
    assert "KeyError: 'absent'" in rows[1].fault
    assert not rows[1].runs
    assert "failed: KeyError" in markdown(Outcome("t", rows, COLUMNS, {}))


def test_worker_past_its_limit_is_ended():
    with Worker(sys.executable, limit_s=0.01) as worker, pytest.raises(WorkerError):
        worker.ask(do="prepare", adapter="benchmarks.filters._bare")


def _row(library: str, walls: list[float], *, error: float = 1.0, algorithm: str = "bootstrap", **details) -> Row:
    runs = tuple(Run(wall, wall, -11.0 + error, 1.0, details) for wall in walls)
    competitor = Competitor(library, "v/always", "always", "", "", algorithm)
    return Row(Case("linear_gaussian", 4, 1000), competitor, {}, "cpu", -11.0, (Run(5.0, 6.0, -10.0, 1.0),), runs)


def test_ratios_are_taken_within_a_round(tmp_path):
    ours, slow, fast = _row("probinf", [1, 2, 4]), _row("bare", [2, 6, 4], steps=3), _row("bare", [1, 1, 4])
    assert pair_ratios(ours.wall, slow.wall) == [2, 3, 1]
    assert floor_of([ours, slow, fast]) is fast
    summary = summarise(slow, ours, fast)
    assert summary["wall_over_ours"] == {"median": 2, "min": 1, "max": 3}
    assert summary["wall_over_floor"]["median"] == 2
    assert summary["compile_wall"] == 1.0
    assert summary["error_mean"] == summary["error_rmse"] == 1.0
    assert summary["details"] == {"steps": {"mean": 3, "rms": 3}}
    path = write("filters", Outcome("t", [ours, slow, fast], COLUMNS, {}), tmp_path)
    assert len(json.loads(path.with_suffix(".json").read_text())["rows"]) == 3
    assert "**bare: v/always**" in path.read_text()


def test_gain_is_the_ratio_of_error_times_seconds():
    base, better = _row("a", [2, 2, 6], error=-3.0), _row("b", [1, 1, 1], error=0.5)
    assert price(base) == 6
    assert gain(base, better) == (12, 12, 36)  # the 95 % quantile of the median of three walls is 6
    assert gain(base, better, power=2).value == 72
    assert gain(better, base).value == pytest.approx(1 / 12)


def test_gain_interval_covers():
    """Two equal laws: the 90 % interval of the gain holds 1 in 250 +- 5.5 sigma of 300 repetitions.

    The percentile interval of 40 runs covers about 0.88, so 264 are expected, with standard deviation 5.6.
    """
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        errors = rng.standard_normal((2, 40))
        rows = [_row("a", [1.0] * 40), _row("b", [1.0] * 40)]
        rows = [
            row._replace(runs=tuple(run._replace(log_evidence=e - 11) for run, e in zip(row.runs, own, strict=True)))
            for row, own in zip(rows, errors, strict=True)
        ]
        _, low, high = gain(*rows)
        held += low <= 1 <= high
    assert 230 <= held <= 292


def test_commands_write_their_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(filters, "competitors", lambda *args, **kwargs: [_competitor()])
    options = ["filters", "--peers", "--problems", "linear_gaussian", "--num-steps", "4", "--num-particles", "10"]
    assert command.main([*options, "--rounds", "1", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    assert len(list(tmp_path.glob("filters-cpu-*.md"))) == 1


@pytest.mark.slow
def test_tempered_command(tmp_path, capsys):
    options = ["tempered", "--peers", "--num-particles", "100", "--dimension", "2", "--quick", "--rounds", "2"]
    assert command.main([*options, "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    (path,) = tmp_path.glob("tempered-cpu-*.md")
    assert "## bimodal, d = 2, N = 100, tempered" in path.read_text()
    assert "compile CPU s < 3" in path.read_text()


@pytest.mark.slow
def test_scaling_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_scaling, "DEVICES", (1, 2))
    options = ["scaling", "--num-steps", "5", "--quick", "--rounds", "2", "--out", str(tmp_path)]
    assert command.main(options) == 0, capsys.readouterr().out
    (path,) = tmp_path.glob("scaling-cpu-*.md")
    assert "2 devices and 1 | 2 of 2 runs | - | yes |" in path.read_text()


def test_targets_are_held_against_the_fastest_variant():
    rows = [_row("probinf", [2, 2]), _row("bare", [1, 1]), _row("blackjax", [9, 9]), _row("blackjax", [6, 6])]
    table = "\n".join(_targets.target_lines(rows))
    assert "| ours / floor <= 1.3 | 2.00 | 2.00 | **no** |" in table
    assert "| blackjax / ours >= 2.0 | 3.00 | 3.00 | yes |" in table
    assert _targets.gain_table(rows) == []


def test_informed_filters_are_held_against_our_bootstrap_filter():
    informed = [_row("probinf", [4, 4], error=0.1, algorithm="guided"), _row("particles", [2, 2], algorithm="guided")]
    rows = [_row("probinf", [2, 2]), _row("bare", [1, 1]), *informed]
    assert "ours / our bootstrap >= 5 | 5 (5-5) | 5 (5-5) | yes |" in "\n".join(_targets.target_lines(rows))
    table = "\n".join(_targets.gain_table(rows))
    assert "| probinf | 0.1 | 1 | 5 (5-5) | 5 (5-5) | 50 (50-50) |" in table
    assert "| particles | 1 | 1 | 1 (1-1) |" in table


def test_tempered_targets_take_the_best_peer():
    slow = _row("particles", [9, 9], algorithm="tempered")
    rows = [_row("probinf", [1, 1], error=0.5, algorithm="tempered"), slow, slow._replace(runs=slow.runs[:0])]
    rows.append(_row("blackjax", [1, 1], error=0.75, algorithm="tempered"))
    promised, compiled = tempered.target_lines(rows)
    assert "best peer / ours >= 2 | 1.5 (1.5-1.5) | 1.5 (1.5-1.5) | **no** |" in promised
    assert "| 4.00 | 5.00 | **no** |" in compiled
    table = tempered.merit_table(rows)
    assert sum(line.startswith("| ") for line in table) == 1 + 3
    assert "| blackjax:v/always | 0.75 | 0.75 | 1.5 (1.5-1.5) | 1.5 (1.5-1.5) | 2.25 (2.25-2.25) |" in "\n".join(table)


def test_scaling_says_where_devices_differ():
    def on(variant: str, *ancestors: str) -> Row:
        row = _row("probinf", [2.0] * len(ancestors))
        runs = tuple(run._replace(details={"ancestors": a}) for run, a in zip(row.runs, ancestors, strict=True))
        return row._replace(competitor=row.competitor._replace(variant=variant), runs=runs)

    rows = [on("1 device", "a", "b"), on("2 devices", "a", "b"), on("4 devices", "a", "c"), on("no mesh", "x", "y")]
    same, different = _scaling.target_lines(rows)
    assert "2 devices and 1 | 2 of 2 runs | - | yes |" in same
    assert "4 devices and 1 | 1 of 2 runs | - | **no** |" in different
    table = "\n".join(_scaling.scaling_table(rows, 1000, 250))
    assert "| 2 | 1000 | 2 | 2 | 1.00 | 1.00 | 500 | - | - | - | - |" in table


def test_unknown_peer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nobody"):
        peer_competitors("benchmarks.filters", filters.PEERS, ["nobody"], tmp_path)


def test_competitors_get_their_environment():
    (one,) = competitors("p", {"ours": [Entry("v", "always")]}, environment=[("A", "1")])
    assert one == Competitor("ours", "v", "always", "p._ours", sys.executable, "bootstrap", (("A", "1"),))


@pytest.mark.numpyro
@pytest.mark.parametrize("name", mcmc_problems.NAMES)
def test_densities_by_hand_are_those_of_the_models(name):
    """Differences between points, since constants are left out; 1e-5 is float32 on sums of a thousand terms."""
    data = jax_data(mcmc_problems.make_problem(name).data)
    points = jax.vmap(lambda key: _densities.start(name, data, key))(jax.random.split(jax.random.key(0), 3))
    targets = [mcmc_probinf.make_target(name, data, source) for source in ("", "density")]
    model, hand = (jax.jit(jax.vmap(lambda x, t=t: (t.log_density(x), t.constrain(x))))(points) for t in targets)
    np.testing.assert_allclose(jnp.diff(hand[0]), jnp.diff(model[0]), rtol=1e-5, atol=1e-3)
    columns = [mcmc_problems.quantities(name, {k: v[None] for k, v in sites.items()}) for _, sites in (hand, model)]
    np.testing.assert_allclose(*columns, rtol=1e-5)
    assert columns[0].shape == (1, 3, len(mcmc_problems.labels(name)))


def _mcmc_rows(tmp_path, **changed) -> list[Row]:
    """Three libraries that draw independent standard normals; `changed` maps a library to a function of its draws."""
    rng = np.random.default_rng(7)
    rows = []
    for library in ("probinf", "blackjax", "nutpie"):
        runs = []
        for wall in (1.0, 1.0) if library == "probinf" else (2.0, 4.0):
            draws = changed.get(library, np.asarray)(rng.standard_normal((4, 500, 3)))
            np.save(tmp_path / "draws.npy", draws)
            details = _diagnose.reduced({"draws": str(tmp_path / "draws.npy"), "num_divergent": 0}, "abc")
            compiled = {"compile_wall": 1.0, "compile_cpu": 4.0, "compiled_by_new_data": 0}
            runs.append(Run(wall, wall, 0.0, 1.0, {**details, **compiled}))
        competitor = Competitor(library, "v", "", "", "", "a")
        rows.append(Row(Case("funnel", 500, 4), competitor, {}, "cpu", 0.0, (), tuple(runs)))
    return rows


def test_mcmc_targets_are_ratios_of_ess_per_second(tmp_path):
    rows = _mcmc_rows(tmp_path)
    assert not (tmp_path / "draws.npy").exists()
    jax_peer, nutpie, compiled, programs = mcmc_targets.target_lines(rows)
    assert "ours / best JAX peer >= 1.5" in jax_peer
    assert jax_peer.endswith("| yes |")
    assert nutpie.endswith("| yes |")
    assert "| 1.00 | 4.00 | **no** |" in compiled
    assert "new data = 0 | 0 | - | yes |" in programs
    # The ESS of 2000 independent draws is 2000 up to its own noise, about 10 %.
    assert mcmc_targets.median_gain(rows[0], rows[1]) == pytest.approx(3, rel=0.3)
    assert "1.00 (4.00)" in markdown(Outcome("t", rows, mcmc_targets.COLUMNS, {}))


@pytest.mark.parametrize("planted", [None, lambda x: x + 1, lambda x: x * 2**0.5])
def test_mcmc_flags_a_library_that_draws_another_law(tmp_path, planted):
    """z of 6 scores of right libraries exceeds 5 with probability 4e-6; the planted ones are 20 standard errors off."""
    rows = _mcmc_rows(tmp_path, **({"nutpie": planted} if planted else {}))
    lines = [line for line in mcmc_targets.agreement_table(rows) if line.startswith("| funnel")]
    assert len(lines) == 3
    assert ("**no**" in lines[2]) == (planted is not None)
    scores = [max(_diagnose.agreement(row, rows) or ()) for row in rows]
    assert planted is None or np.argmax(scores) == 2


@pytest.mark.slow
@pytest.mark.numpyro
def test_mcmc_command(tmp_path, capsys):
    options = ["mcmc", "--peers", "--problems", "eight_schools", "--num-draws", "30", "--num-chains", "2", "--quick"]
    assert command.main([*options, "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    (path,) = tmp_path.glob("mcmc-cpu-*.md")
    assert "programs compiled by new data" in path.read_text()
