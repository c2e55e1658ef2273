"""What results say of how they were made: names of models, scorers and potentials, and every argument of a method.

No program is compiled: runs are caught where they would begin.
"""

import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.llm import _changed, _independent, _particle_filter, _tempered, _twisted
from probinf.llm._labels import label_of, models_in, name_of, prompt_tokens
from probinf.llm._options import TextOptions, task_of
from probinf.llm._potentials import find_potential
from probinf.llm._raised import Raised
from tests.llm._runs import texts
from tests.llm._tables import table_lm

WEAK, STRONG = (table_lm(seed, 2, 2, name=name) for seed, name in ((1, "weak"), (2, "strong")))
STEPS = {"step": llm.block(1), "max_steps": 2}
NO_ARGUMENT = {"key", "lm", "prompt", "mesh", "on_step", "progress", "throw", "options"}


def judged(prompt, text):
    return 0.5


def certain(step):
    return jnp.zeros_like(step.log_prob)


class Own(llm.Potential):
    """A user's, that asks a model."""

    judge: llm.LM


@pytest.mark.parametrize(
    ("potential", "scorer", "label"),
    [
        (None, None, ("none", None)),
        (None, STRONG, ("odds", "strong")),
        ("judge", STRONG, ("judge", "strong")),
        ("prob", judged, ("prob", "judged")),
        ("none", STRONG, ("none", "strong")),
        ("self_certainty", None, ("self_certainty", None)),
        (llm.process_reward(STRONG, "ratio", temperature=2.0), None, ("ratio at temperature 2", "strong")),
        (llm.potential(certain), None, ("prob", "certain")),
        (llm.no_potential(llm.judge(STRONG)), None, ("none, scored by judge", "strong")),
        (Own(STRONG), None, ("Own", "strong")),
        (Raised(llm.no_potential(), jnp.ones(())), None, ("Raised", None)),
    ],
)
def test_names(potential, scorer, label):
    assert label_of(find_potential(potential, scorer, WEAK)) == label


def test_other_names():
    assert name_of(llm.LM(WEAK.model)) == "TableModel"
    assert name_of(llm.automaton([[0, 0]])) == "Automaton"
    assert name_of(None) is None


def test_every_model_of_a_potential_reads_the_prompt():
    """One that only lends its tokenizer to a function on the host reads nothing."""
    both = _twisted.Twisted(llm.lm_scorer(WEAK), llm.judge(STRONG))
    assert [model.name for model in models_in(both)] == ["weak", "strong"]
    assert prompt_tokens(both, 7) == 14
    assert prompt_tokens(find_potential("prob", judged, WEAK), 7) == 0
    assert prompt_tokens(llm.no_potential(), 7) == 0


def test_a_task_names_what_it_was_told():
    told = task_of(WEAK, [0], {**STEPS, "scorer": STRONG, "stop": 1, "mask": llm.automaton([[0, 0]])}).settings
    expected = {"model": "weak", "scorer": "strong", "potential": "odds", "stop": [1], "mask": "Automaton"}
    expected |= {"base": "proposal", "max_steps": 2, "max_tokens": 2, "step_tokens": 1, "temperature": 1.0}
    assert {name: told[name] for name in expected} == expected


class Caught(Exception):
    """Where a run would begin."""


def untold(method, settings):
    """Arguments of its own that a method has not recorded."""
    own = set(inspect.signature(method).parameters) - NO_ARGUMENT - set(TextOptions.__annotations__)
    return own - set(settings)


@pytest.mark.parametrize(
    ("method", "module", "options"),
    [
        (llm.particle_filter, _particle_filter, {"ess_threshold": 0.25}),
        (llm.tempered_filter, _tempered, {"inverse_temperature": (0.5, 1.0)}),
        (llm.entropic_filter, _tempered, {"schedule": "base"}),
        (llm.twisted_smc, _twisted, {"twist": STRONG}),
        (llm.best_of_n, _independent, {}),
        (llm.majority, _independent, {}),
        (llm.weighted_majority, _changed, {"aggregate": "min"}),
        (llm.beam, _changed, {"width": 2}),
        (llm.dvts, _changed, {"width": 2}),
    ],
)
def test_every_argument_of_a_method_is_recorded(key, monkeypatch, method, module, options):
    calls = []

    def run_task(key, task, *arguments, **told):
        calls.append(task.settings | {"num_particles": told["num_particles"]} | dict(told.get("settings") or {}))
        raise Caught

    monkeypatch.setattr(module, "run_task", run_task)
    with pytest.raises(Caught):
        method(key, WEAK, [0], num_particles=4, scorer=STRONG, **options, **STEPS)
    assert untold(method, calls[0]) == set()
    plain = {"twist": "strong", "inverse_temperature": [0.5, 1.0]}
    assert {name: calls[0][name] for name in options} == {name: plain.get(name, options[name]) for name in options}
    assert calls[0]["scorer"] == "strong"


def test_the_summary_shows_them():
    settings = {"model": "weak", "scorer": "strong", "width": 4, "max_tokens": 9, "top_k": None}
    words = texts(weights=[1], settings=settings).summary()
    assert "model weak, scorer strong, width 4" in words
    assert "top_k" not in words


@pytest.mark.parametrize("several", [False, True])
def test_results_are_changed_wherever_they_show(key, monkeypatch, several):
    """Returned, reported at a step, alone or in a batch."""
    raw, reports = texts(weights=[1, 3], log_evidence=0.5), []

    def run_task(key, task, rule, *, on_step, throw, **options):
        on_step(llm.StepReport(1, 2, 2.0, False, 0, 2, 0, 0.1, "1;", lambda: raw))
        assert not throw  # what is raised must carry the changed result
        return llm.GenerationsBatch((raw, raw)) if several else raw

    monkeypatch.setattr(_changed, "run_task", run_task)
    found: Any = llm.beam(key, WEAK, [0], num_particles=4, scorer=STRONG, on_step=reports.append, **STEPS)
    for one in (*(found if several else [found]), reports[0].generations()):
        assert one.log_weights.tolist() == [0, 0]
        assert np.isnan(one.log_evidence)
