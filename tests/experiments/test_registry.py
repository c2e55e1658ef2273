"""The registry, and one run from its configuration to its files."""

import json

import pytest

from probinf.experiments import EXPERIMENTS, find, run_experiment
from probinf.experiments._environment import environment, source_digest
from probinf.experiments._registry import configure
from tests.experiments._fake import CALLS, INTERRUPT_AT, installed


@pytest.fixture
def fake(monkeypatch):
    with installed(monkeypatch):
        yield


class TestFind:
    @pytest.mark.parametrize("typo", ["toor", "tuor", "Tour", "tours"])
    def test_a_typo_gets_the_close_name(self, typo):
        with pytest.raises(ValueError, match="did you mean 'tour'"):
            find(typo)

    def test_a_stranger_gets_the_list(self):
        with pytest.raises(ValueError, match="choose one of: tour"):
            find("zzz")

    def test_every_experiment_is_complete(self):
        for name, experiment in EXPERIMENTS.items():
            module = experiment.load()
            assert experiment.name == name
            assert experiment.claim.endswith(".")
            assert {"quick", "full"} <= set(module.SCALES)
            assert callable(module.run)
            assert callable(module.claims)

    def test_the_registry_cannot_be_changed_by_accident(self):
        with pytest.raises(TypeError):
            EXPERIMENTS["x"] = EXPERIMENTS["tour"]  # pyright: ignore[reportIndexIssue]


class TestConfigure:
    def test_scale_and_seed(self):
        tour = find("tour")
        assert configure(tour, seed=7).seed == 7
        assert configure(tour, scale="full").num_particles > configure(tour).num_particles

    def test_bad_values_are_refused(self):
        with pytest.raises(ValueError, match=r"`scale` must be one of \['full', 'quick'\], got 'big'"):
            configure(find("tour"), scale="big")
        with pytest.raises(ValueError, match="`seed` must lie between 0"):
            configure(find("tour"), seed=-1)


@pytest.mark.usefixtures("fake")
class TestRun:
    def test_files_and_metrics(self, tmp_path):
        outcome = run_experiment("fake", out=tmp_path / "f", seed=3)
        data = json.loads((tmp_path / "f" / "metrics.json").read_text())
        assert outcome.report == tmp_path / "f" / "report.html"
        assert outcome.report.is_file()
        assert [claim.holds for claim in outcome.claims] == [True]
        assert data["holds"] is True
        assert data["config"] == {"seed": 3, "size": 3, "truth": 0.0}
        assert list(data["metrics"]) == ["first", "second"]
        assert data["metrics"]["second"] == {"count": 3, "bad": None}
        assert data["claims"][0]["text"] == "The error is small."
        assert data["environment"]["jax"]
        assert (tmp_path / "f" / "figures" / "first.svg").is_file()

    def test_the_same_run_again_computes_nothing_and_changes_nothing(self, tmp_path):
        run_experiment("fake", out=tmp_path / "f")
        before = (tmp_path / "f" / "metrics.json").read_bytes(), (tmp_path / "f" / "report.html").read_bytes()
        outcome = run_experiment("fake", out=tmp_path / "f")
        after = (tmp_path / "f" / "metrics.json").read_bytes(), (tmp_path / "f" / "report.html").read_bytes()
        assert CALLS == ["first", "second"]
        assert outcome.reused == ("first", "second")
        assert before == after

    def test_an_interrupted_run_goes_on_where_it_stopped(self, tmp_path):
        INTERRUPT_AT.append("second")
        with pytest.raises(KeyboardInterrupt):
            run_experiment("fake", out=tmp_path / "f")
        assert not (tmp_path / "f" / "metrics.json").exists()
        INTERRUPT_AT.clear()
        outcome = run_experiment("fake", out=tmp_path / "f")
        whole = run_experiment("fake", out=tmp_path / "g")
        assert CALLS == ["first", "second", "second", "first", "second"]
        assert outcome.claims == whole.claims
        metrics = [json.loads((tmp_path / name / "metrics.json").read_text())["metrics"] for name in "fg"]
        assert metrics[0] == metrics[1]

    def test_another_seed_in_the_same_folder_is_refused(self, tmp_path):
        run_experiment("fake", out=tmp_path / "f")
        with pytest.raises(ValueError, match="seed: there 0, asked for 1"):
            run_experiment("fake", out=tmp_path / "f", seed=1)
        assert run_experiment("fake", out=tmp_path / "f", seed=1, overwrite=True).reused == ()

    def test_changed_source_is_a_different_run(self, tmp_path, monkeypatch):
        run_experiment("fake", out=tmp_path / "f")
        monkeypatch.setattr("probinf.experiments._registry.source_digest", lambda: "other")
        with pytest.raises(ValueError, match="source: there"):
            run_experiment("fake", out=tmp_path / "f")

    def test_results_go_to_a_folder_of_their_own_by_default(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert run_experiment("fake").report.resolve() == tmp_path / "results" / "fake" / "report.html"


def test_a_broken_claim_is_shown_and_recorded(tmp_path, monkeypatch):
    with installed(monkeypatch, truth=2.0):
        outcome = run_experiment("fake", out=tmp_path / "f")
    assert [claim.holds for claim in outcome.claims] == [False]
    assert json.loads((tmp_path / "f" / "metrics.json").read_text())["holds"] is False
    assert "does not hold" in outcome.report.read_text()


def test_environment_names_what_results_depend_on():
    found = environment()
    assert {"python", "jax", "jaxlib", "equinox", "numpyro", "arviz", "numpy", "devices", "machine"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())


def test_source_digest_is_stable():
    assert source_digest() == source_digest()
