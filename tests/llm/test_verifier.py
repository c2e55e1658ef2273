"""Functions of the user on the host: what they see, what their faults become, time limits, threads, Ctrl-C.

Planted bugs, run every time in `test_planted_*`: a scorer that lets an exception pass for reward 0 unflagged, one that
judges rows that rest.
"""

import contextvars
import dataclasses
import math
import threading
import time
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import InferenceError, Status, check_status, is_fatal
from probinf.core._spawn import absorb, fresh_population
from probinf.llm._host_calls import call_all
from probinf.llm._potentials import find_potential
from probinf.llm._verifier import MAX_CAUSES, TextScorer
from tests._slow import slow_after
from tests.llm._steps import PROMPT, STOP, Letters, bigram, run, total, views

LETTERS = bigram([[0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.4, 0.4, 0.2]], tokenizer=Letters(".ab"))
STEPS = views([[(1, 2), (2, STOP)], [(1, 2), (1,), (STOP,)], [(2,), (1, 1), (2,)], [(2, STOP)]])


def bound(function, kind="prob", prompt=PROMPT, **options):
    return find_potential(llm.verifier(function, kind=kind, **options), None, LETTERS).bind(prompt)


def say(function, steps=STEPS, **options):
    """What a verifier's potential says at each step, and why it failed."""
    potential = bound(function, **options)
    state = potential.start(*steps[0].all_tokens.shape)
    said = []
    for step in steps:
        state, scored = potential.update(state, step)
        said.append(scored)
    return said, dict(potential.causes())


def share_of_a(prompt, text):
    del prompt
    return (1 + text.count("a")) / (2 + len(text))


# --- what it sees and what becomes of it ---


def test_texts_so_far_of_active_rows_equal_ones_once():
    seen = []

    def record(prompt, text):
        seen.append((prompt, text))
        return 0.5

    said, causes = say(record)
    texts = [text for _, text in seen]
    assert texts == ["ab", "b", "b.", "abb.", "aba", "baa", "aba.", "baab"]  # "ab" once, for two rows
    assert {prompt for prompt, _ in seen} == {"ab"}
    assert causes == {}
    np.testing.assert_allclose(total(said), np.log(0.5) * np.array([2, 3, 3, 1]), rtol=1e-6)
    assert all((np.asarray(scored.num_tokens) == 0).all() for scored in said)


def test_weights_and_scores_by_hand():
    for kind, steps_of in (("prob", np.prod), ("ratio", lambda r: r[-1]), ("final", lambda r: r[-1])):
        said, _ = say(share_of_a, kind=kind)
        paths = [("ab", "abb."), ("ab", "aba", "aba."), ("b", "baa", "baab"), ("b.",)]
        expected = [steps_of([share_of_a("", text) for text in path]) for path in paths]
        np.testing.assert_allclose(np.exp(total(said)), expected, rtol=1e-5)
    odds, _ = say(share_of_a, kind="odds")
    np.testing.assert_allclose(odds[0].log_potential[0], np.log(0.5 / 0.5), atol=1e-6)
    np.testing.assert_allclose(odds[0].score, [0.5, 0.5, 1 / 3, 1 / 4], rtol=1e-6)


def test_final_asks_for_ends_alone():
    seen = []
    say(lambda prompt, text: seen.append(text) or 1.0, kind="final")
    assert seen == ["b.", "abb.", "aba.", "baab"]  # the last one is cut off by the end of the run


def test_checks_and_log_weights():
    said, causes = say(lambda prompt, text: "bb" not in text)
    assert total(said).tolist() == [-math.inf, 0, 0, 0]
    assert causes == {}  # a text that fails a check is no fault
    said, _ = say(lambda prompt, text: -2.0 * len(text), returns="log_weight")
    np.testing.assert_allclose(total(said), [-12, -18, -16, -4])
    np.testing.assert_allclose(said[0].score, [-4, -4, -2, -4])


@pytest.mark.parametrize("value", [1, True, 0.25, np.float32(0.25), np.array(0.25), jnp.asarray(0.25), Fraction(1, 4)])
def test_numbers_of_every_kind(value):
    said, causes = say(lambda prompt, text: value)
    np.testing.assert_allclose(said[0].score, [float(value)] * 4)
    assert causes == {}


def test_prompt_is_decoded_where_its_text_is_not_given():
    seen = set()
    say(lambda prompt, text: seen.add(prompt) or 1.0, prompt=llm.Prompt(PROMPT.tokens, PROMPT.length))
    assert seen == {"ab"}


# --- faults ---


def of_row_0(fault):
    """A function that fails for the text "abb." and its prefixes of the first row only."""

    def judged(prompt, text):
        return fault() if text == "abb." else 0.5

    return judged


def boom():
    raise ZeroDivisionError("no reward")


FAULTS = {
    "exception": (boom, "raised ZeroDivisionError: no reward"),
    "none": (lambda: None, "returned None, needed a number"),
    "nan": (lambda: math.nan, "returned NaN"),
    "string": (lambda: "0.5", "returned '0.5' (str)"),
    "list": (lambda: [0.5], "returned '[0.5]' (list)"),
    "complex": (lambda: 1j, "(complex)"),
    "above": (lambda: 1.5, "returned 1.5, needed a reward in [0, 1]"),
    "below": (lambda: -0.1, "returned -0.1"),
    "infinite": (lambda: math.inf, "returned inf"),
    "huge": (lambda: 10**400, "(int)"),
}


@pytest.mark.parametrize("name", slow_after(4, FAULTS))
def test_faults_are_weight_zero_flagged_counted_and_explained(name):
    fault, text = FAULTS[name]
    said, causes = say(of_row_0(fault))
    assert np.isnan(said[1].log_potential).tolist() == [True, False, False, False]
    ((cause, rows),) = causes.items()
    assert text in cause
    assert rows == 1
    population = fresh_population(jnp.arange(4))
    for scored in said:
        population, _ = absorb(population, scored.log_potential)
    assert np.isneginf(population.log_weights).tolist() == [True, False, False, False]
    assert int(population.status) == int(Status.NAN_LOG_WEIGHT)


def test_every_row_fails():
    said, causes = say(lambda prompt, text: boom())
    population, info = absorb(fresh_population(jnp.arange(4)), said[0].log_potential)
    assert int(info.num_nan) == 4
    assert is_fatal(np.asarray(population.status))
    ((cause, rows),) = causes.items()
    assert rows == sum(int(np.sum(step.active)) for step in STEPS)  # equal texts count once a row
    with pytest.raises(InferenceError, match="ZeroDivisionError: no reward"):
        check_status(np.asarray(population.status), what="run", counts={"NAN_LOG_WEIGHT": f"{rows} times: {cause}"})


def test_log_weights_may_be_any_number_but_nan():
    said, causes = say(of_row_0(lambda: -math.inf), returns="log_weight")
    assert said[1].log_potential[0] == -math.inf
    assert causes == {}
    said, causes = say(of_row_0(lambda: math.nan), returns="log_weight")
    assert np.isnan(said[1].log_potential[0])
    assert list(causes) == ["`judged` returned NaN"]


def test_arrays_for_one_text_are_an_error():
    with pytest.raises(ValueError, match=r"`judged` returned an array of shape \(2,\) for one text"):
        say(of_row_0(lambda: np.zeros(2)))


def test_causes_are_few_and_start_anew():
    count = iter(range(1000))

    def fails(prompt, text):
        raise ValueError(f"{next(count)} " + "x" * 1000)

    potential = bound(fails)
    for _ in range(10):
        potential.update(potential.start(4, 7), STEPS[0])
    causes = potential.causes()
    assert len(causes) == MAX_CAUSES + 1
    assert sum(causes.values()) == 40
    assert max(map(len, causes)) < 300
    assert potential.bind(PROMPT).causes() == {}


# --- batched ---


def test_batched_form():
    seen = []

    def judged(prompt, texts):
        seen.append(texts)
        return np.array([share_of_a(prompt, text) for text in texts])

    said, _ = say(judged, batched=True)
    one, _ = say(share_of_a)
    np.testing.assert_array_equal(total(said), total(one))
    assert seen[0] == ["ab", "b", "b."]
    said, causes = say(lambda prompt, texts: [None, *[0.5] * (len(texts) - 1)], batched=True)
    assert np.isnan(said[0].log_potential).tolist() == [True, True, False, False]
    assert sum(causes.values()) == 2 + 1 + 1
    said, causes = say(lambda prompt, texts: boom(), batched=True)
    assert np.isnan(said[0].log_potential).all()
    assert sum(causes.values()) == 8 + 1
    assert sum(say(lambda prompt, texts: None, batched=True)[1].values()) == 9


@pytest.mark.parametrize("answer", [[0.5], 0.5, [[0.5]] * 3])
def test_batched_form_of_a_wrong_shape(answer):
    with pytest.raises(ValueError, match=r"returned shape .*; needed \(3,\), one a text"):
        say(lambda prompt, texts: answer, batched=True)


# --- time and threads ---


def test_timeout_is_weight_zero():
    release = threading.Event()
    begin = time.monotonic()
    said, causes = say(of_row_0(lambda: release.wait(30)), timeout=0.2)
    assert time.monotonic() - begin < 15
    release.set()
    assert np.isnan(said[1].log_potential).tolist() == [True, False, False, False]
    assert causes == {"`judged` raised TimeoutError: it took over 0.2 s": 1}


def test_calls_go_on_side_by_side_and_stay_in_order():
    together = threading.Barrier(3)

    def waits(i):
        together.wait(30)  # passes only if three are here at a time
        return i

    assert [outcome.value for outcome in call_all(waits, [(i,) for i in range(6)], num_workers=3)] == list(range(6))
    assert call_all(waits, [], num_workers=3) == []


def test_hung_calls_do_not_hold_up_the_others():
    release = threading.Event()

    def judged(i):
        return release.wait(30) if i < 2 else i

    outcomes = call_all(judged, [(i,) for i in range(5)], timeout=0.2, num_workers=2)
    names = {thread.name: thread.daemon for thread in threading.enumerate()}
    release.set()
    assert [type(outcome.error) for outcome in outcomes[:2]] == [TimeoutError] * 2
    assert [outcome.value for outcome in outcomes[2:]] == [2, 3, 4]
    assert names["probinf-verifier"]  # a daemon: the interpreter can end


def test_threads_see_the_context_of_the_caller():
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)
    assert call_all(lambda: variable.get(), [()], timeout=10.0)[0].value == 7


@pytest.mark.parametrize("options", [{}, {"timeout": 10.0}, {"num_workers": 2}])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_through(options, error):
    def stops(prompt, text):
        raise error

    with pytest.raises(error):
        say(stops, **options)


# --- where it cannot run ---


def test_not_under_jit():
    potential = bound(share_of_a)
    assert not potential.traceable
    state = potential.start(4, 7)
    with pytest.raises(TypeError, match="`share_of_a` reads texts on the host"):
        eqx.filter_jit(lambda step: potential.update(state, step)[1].log_potential)(STEPS[0])
    with pytest.raises(TypeError, match="host loop"):
        jax.jit(lambda tokens: bound(share_of_a, prompt=llm.Prompt(tokens, PROMPT.length)).causes())(PROMPT.tokens)


def test_a_model_without_tokenizer_gives_ids():
    seen = []
    plain = bigram([[1 / 3] * 3] * 3)
    potential = find_potential("prob", lambda prompt, text: seen.append((prompt, text)) or 1.0, plain)
    run(potential, STEPS[:1])
    assert seen[0] == ("ab", "1 2")
    with pytest.raises(TypeError, match="`for_model` before"):
        run(llm.verifier(share_of_a), STEPS[:1])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"timeout": 0}, ValueError, "`timeout` is 0"),
        ({"timeout": math.nan}, ValueError, "`timeout` is nan"),
        ({"num_workers": 0}, ValueError, "`num_workers` is 0"),
        ({"returns": "odds"}, ValueError, "`returns` is 'odds'"),
        ({"kind": "odd"}, ValueError, "`kind` is 'odd'"),
        ({"kind": "odds", "returns": "log_weight"}, ValueError, "which have no odds"),
        ({"retries": 3}, TypeError, "retries"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        llm.verifier(share_of_a, **options)


# --- planted bugs ---


class Swallows(TextScorer):
    """Takes a fault for reward 0."""

    def update(self, state, step, wanted):
        state, reading = TextScorer.update(self, state, step, wanted)
        return state, llm.Reading(jnp.nan_to_num(reading.value, nan=-jnp.inf), reading.num_tokens)


class JudgesAll(TextScorer):
    """Judges rows that rest, too."""

    def update(self, state, step, wanted):
        return TextScorer.update(self, state, step, jnp.ones_like(wanted))


def planted(bug, function):
    scorer = dataclasses.replace(llm.text_scorer(function), writer=LETTERS, prompt="")
    return bug(**{name: getattr(scorer, name) for name in scorer.__dataclass_fields__})


def test_planted_swallowed_faults():
    _, reading = planted(Swallows, of_row_0(boom)).update(None, STEPS[1], STEPS[1].active)
    assert not np.isnan(reading.value).any()  # what test_faults asks for is missing


def test_planted_resting_rows_are_judged():
    seen = []
    scorer = planted(JudgesAll, lambda prompt, text: seen.append(text) or 0.5)
    for step in STEPS:
        scorer.update(None, step, step.active)
    assert len(seen) > 8  # as many as test_texts_so_far counts
