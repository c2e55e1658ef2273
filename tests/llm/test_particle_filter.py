"""`particle_filter`: one program, problems side by side, loops on the host, faults, and bad arguments.

The law is proved by enumeration in `test_enumeration.py`; here results are compared with each other, mostly to the bit.

Planted bugs, shown to be caught: caches that do not follow their rows.
"""

import dataclasses
import json
import signal
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.core import InferenceError, InferenceWarning, Status
from probinf.llm._lm import bucket
from probinf.models.lm import LanguageModelConfig, init_language_model, save_language_model
from tests._compilations import COMPILED
from tests._processes import finish_worker, start_worker
from tests.llm._tables import law_of, log_prob, node_of, table_lm

WORKER = Path(__file__).with_name("_filter_mesh_worker.py")
COMMON = {"num_particles": 8, "step": llm.block(2), "max_steps": 3}


def weak(**options):
    return table_lm(1, 4, 6, stop_ids=(3,), **options)


def strong(**options):
    return table_lm(2, 4, 6, stop_ids=(3,), **options)


def run(key, prompt=(1, 2), lm=None, scorer=None, **options):
    """The run that most tests share, with the judge as scorer."""
    options = COMMON | {"potential": "odds", "ess_threshold": 0.9} | options
    return filtered(key, lm or weak(), prompt, scorer=scorer or strong(), **options)


def filtered(key, *arguments, **options):
    """With a copy of the key, so that runs can be compared."""
    return llm.particle_filter(jax.random.clone(key), *arguments, **options)


@pytest.fixture(scope="module")
def result():
    return run(jax.random.key(7))


def log_odds(texts, boundaries):
    """The log weights that texts have by themselves."""
    judge = strong()
    found = []
    for text, row in zip(texts, boundaries, strict=True):
        ends = [end for end in row if end]
        found.append(sum(float(judge.model.values[node_of(text[:end].tolist(), 4)]) for end in ends))
    return np.asarray(found)


def test_texts_have_the_weights_that_the_scorer_gives_them(key):
    """Without resampling log weights are sums of log odds, up to the constant that is banked."""
    found = run(key, ess_threshold=0.0)
    np.testing.assert_allclose(found.log_prob, [log_prob(weak(), text) for text in found.token_ids], rtol=1e-5)
    odds = log_odds(found.token_ids, found.boundaries)
    np.testing.assert_allclose(np.diff(found.log_weights), np.diff(odds), atol=1e-5)
    np.testing.assert_allclose(found.log_evidence, np.log(np.mean(np.exp(odds))), rtol=1e-5)
    assert not found.resampled.any()


def test_caches_follow_their_rows(result, key):
    """After resampling each text still has the law and the scores of its own prefix."""

    def check(found):
        assert found.resampled.any()
        np.testing.assert_allclose(found.log_prob, [log_prob(weak(), text) for text in found.token_ids], rtol=1e-4)
        for text, row, scores in zip(found.token_ids, found.boundaries, found.scores, strict=True):
            for end, score in zip(row[row > 0], scores[row > 0], strict=True):
                value = float(strong().model.values[node_of(text[:end].tolist(), 4)])
                np.testing.assert_allclose(score, 1 / (1 + np.exp(-value)), rtol=1e-4)

    check(result)
    large = run(key, lm=weak(bulk=4096), scorer=strong(bulk=4096))  # rows of 16 KiB, which are copied one by one
    check(large)
    small = run(key)
    assert np.array_equal(large.ancestors, small.ancestors)
    assert large.texts == small.texts
    assert large.log_evidence == small.log_evidence


@pytest.mark.slow
def test_caches_that_stay_behind_are_caught(key, monkeypatch):
    monkeypatch.setattr("probinf.llm._run.copy_rows", lambda tree, ancestors, axis_name: tree)
    found = run(key, num_particles=9)  # another shape, so that the program is traced anew
    assert found.resampled.any()
    assert not np.allclose(found.log_prob, [log_prob(weak(), text) for text in found.token_ids], rtol=1e-4)


def test_ancestors_keep_their_slots(result):
    for row in result.ancestors:
        assert np.array_equal(row[row], row)


def test_cost_is_what_was_generated(key):
    found = run(key, ess_threshold=0.0)
    assert found.tokens_used == sum(len(text) for text in found.token_ids)
    assert found.scorer_tokens_used == found.tokens_used + len(found.prompt_ids)


def test_other_numbers_recompile_nothing(result):
    keys = [jax.random.key(seed) for seed in (1, 2)]
    judge, other = strong(), strong()
    other = eqx.tree_at(lambda m: m.model.values, other, other.model.values + 1)
    run(keys[0], scorer=judge, temperature=0.9)
    count = len(COMPILED)
    run(keys[1], (0, 3, 1, 1, 2), lm=weak(), scorer=other, temperature=0.4, ess_threshold=0.3, min_p=0.1)
    assert len(COMPILED) == count


def test_prompts_are_padded_to_few_sizes():
    sizes = [bucket(length, 4096) for length in range(1, 4097)]
    assert all(size >= length for length, size in enumerate(sizes, 1))
    assert all(size <= 1.25 * length + 16 for length, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 28
    assert sizes == sorted(sizes)
    assert bucket(30, 31) == 31


def test_a_list_of_problems_gives_each_its_own_run(key):
    prompts = [[1, 2], [3], [0, 1, 2, 0, 1, 2, 0]]
    batch = run(key, prompts, max_steps=3)
    assert len(batch) == 3
    for index, prompt in enumerate(prompts):
        alone = run(jax.random.fold_in(jax.random.clone(key), index), prompt)
        assert batch[index].texts == alone.texts
        assert np.array_equal(batch[index].ancestors, alone.ancestors)
        assert np.array_equal(batch[index].resampled, alone.resampled)
        for name in ("log_weights", "log_prob", "log_evidence", "scores", "ess"):
            np.testing.assert_allclose(getattr(batch[index], name), getattr(alone, name), rtol=1e-5, atol=1e-5)
    assert len({member.texts for member in batch}) == 3


@pytest.mark.slow
def test_problems_of_a_transformer_have_their_own_prompts(key):
    config = LanguageModelConfig(
        vocab_size=8, dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, hidden_dim=8, max_length=64
    )
    model = jax.tree.map(lambda leaf: 4 * leaf, init_language_model(jax.random.key(0), config))
    lm = llm.LM(model, None, (0,), "random")
    options = COMMON | {"num_particles": 4, "potential": "self_certainty", "ess_threshold": 1.0}
    batch = filtered(key, lm, [[1, 2, 3], [7]], **options)
    alone = filtered(jax.random.fold_in(jax.random.clone(key), 1), lm, [7], **options)
    assert batch[1].texts == alone.texts
    np.testing.assert_allclose(batch[1].log_evidence, alone.log_evidence, rtol=1e-4)


def test_the_first_rows_do_not_depend_on_the_others(key):
    few, many = (run(key, num_particles=n, ess_threshold=0.0) for n in (4, 8))
    assert few.texts == many.texts[:4]


def test_a_potential_on_the_host_gives_the_same_run(key):
    values = np.asarray(strong().model.values)

    def judged(prompt, text):
        value = values[node_of([int(token) for token in text.split()], 4)]
        return float(1 / (1 + np.exp(-np.float64(value))))

    there, here = run(key), filtered(key, weak(), [1, 2], scorer=judged, ess_threshold=0.9, **COMMON)
    assert there.resampled.any()
    assert here.texts == there.texts
    assert np.array_equal(here.ancestors, there.ancestors)
    np.testing.assert_allclose(here.log_evidence, there.log_evidence, rtol=1e-5)
    np.testing.assert_allclose(here.scores, there.scores, rtol=1e-5)
    assert here.tokens_used == there.tokens_used


def same(a, b):
    """Whether two results agree to the bit, but for the time they took."""
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name == "token_ids":
            assert all(np.array_equal(x, y) for x, y in zip(left, right, strict=True))
        elif field.name != "seconds":
            np.testing.assert_array_equal(left, right, err_msg=field.name)


def test_watching_changes_nothing(key):
    reports = []
    watched = run(key, on_step=reports.append)
    same(watched, run(key))
    assert [report.step for report in reports] == [1, 2, 3][: len(reports)]
    assert reports[-1].tokens_used == watched.tokens_used
    assert reports[-1].num_finished == int(watched.finished_path[-1].sum())
    assert reports[-1].best_text == watched.texts[int(np.argmax(watched.log_weights))]
    same(reports[-1].generations(), watched)
    first = reports[0].generations()
    assert first.ess.shape == (1,) or not first.resampled[1:].any()
    assert first.tokens_used == reports[0].tokens_used


def test_a_second_run_on_the_host_recompiles_nothing(key):
    keys = [jax.random.fold_in(key, i) for i in range(2)]
    run(keys[0], on_step=lambda report: None)
    count = len(COMPILED)
    run(keys[1], on_step=lambda report: None)
    assert len(COMPILED) == count


def test_ctrl_c_gives_what_there_is(key):
    def stop(report):
        if report.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(InferenceWarning, match="INTERRUPTED"):
        found = run(key, on_step=stop)
    assert found.status == Status.INTERRUPTED
    assert max(len(text) for text in found.token_ids) == 4
    assert np.isfinite(found.log_evidence)


def test_ctrl_c_leaves_out_the_problems_that_follow(key):
    def stop(report):
        signal.raise_signal(signal.SIGINT)

    with pytest.warns(InferenceWarning, match="INTERRUPTED"):
        found = run(key, [[1, 2], [3]], on_step=stop)
    assert len(found) == 1
    assert found[0].num_steps.max() == 1


def test_no_legal_token_is_reported_with_the_text_so_far(key):
    mask = llm.automaton(np.array([[0, 1, 0, -1], [-1, -1, -1, -1]]))
    lm = eqx.tree_at(lambda m: m.model.logits, weak(), weak().model.logits.at[:, 1].set(50.0))
    with pytest.warns(InferenceWarning, match=r"ALL_WEIGHTS_ZERO(.|\n)*'1'"):
        found = filtered(key, lm, [1, 2], mask=mask, **COMMON)
    assert found.status == Status.ALL_WEIGHTS_ZERO
    assert found.log_evidence == -np.inf
    assert found.texts == ("1",) * 8
    assert found.tokens_used == 8
    assert not found.finished.any()


def test_no_legal_token_is_no_fault_of_the_scorer(key):
    """All weights are zero, whatever is said of texts that could not go on: that is not fatal."""
    mask = llm.automaton(np.array([[-1, -1, -1, -1]]))
    potential = llm.potential(lambda step: jnp.full(step.count.shape, jnp.nan))
    with pytest.warns(InferenceWarning, match="ALL_WEIGHTS_ZERO"):
        found = filtered(key, weak(), [1, 2], mask=mask, potential=potential, **COMMON)
    assert found.status == Status.ALL_WEIGHTS_ZERO
    assert found.log_evidence == -np.inf


def test_a_mask_that_leaves_next_to_nothing_draws_what_it_allows(key):
    """The two tokens that are allowed have less probability than a float32 holds."""
    lm = eqx.tree_at(lambda m: m.model.logits, weak(), weak().model.logits.at[:, 0].set(250.0))
    found = filtered(key, lm, [1, 2], mask=llm.allow_tokens([1, 2], 4), **COMMON)
    assert {token for ids in found.token_ids for token in ids} <= {1, 2}
    assert found.log_evidence < -200


@pytest.mark.slow
def test_finished_rows_are_kept_when_others_have_no_way_on(key):
    mask = llm.automaton(np.array([[0, 1, 0, 0], [-1, -1, -1, -1]]))
    found = filtered(key, weak(), [1, 2], mask=mask, ess_threshold=0.0, **(COMMON | {"num_particles": 32}))
    dead = np.isneginf(found.log_weights)
    assert 0 < dead.sum() < 32
    assert np.all(found.finished[~dead] | (np.asarray([len(text) for text in found.token_ids])[~dead] == 6))
    assert found.status == Status.OK


def test_scores_that_fail_weigh_nothing_and_are_counted(key):
    def judged(prompt, text):
        if text.endswith("0"):
            raise OSError("the judge is away")
        return 0.5

    with pytest.warns(InferenceWarning, match=r"NAN_LOG_WEIGHT(.|\n)*the judge is away"):
        found = filtered(key, weak(), [1, 2], scorer=judged, ess_threshold=0.0, **COMMON)
    failed = np.asarray([text.endswith("0") for text in found.texts])
    assert 0 < failed.sum() < 8
    assert np.array_equal(np.isneginf(found.log_weights), failed)
    assert found.num_failed == failed.sum()


@pytest.mark.slow
def test_an_infinite_weight_is_fatal(key):
    potential = llm.potential(lambda step: jnp.where(step.tokens[:, 0] == 1, jnp.inf, 0.0))
    with pytest.raises(InferenceError, match="POSINF_LOG_WEIGHT"):
        filtered(key, weak(), [1, 2], potential=potential, **COMMON)
    found = filtered(key, weak(), [1, 2], potential=potential, throw=False, **COMMON)
    assert np.isnan(found.log_evidence)


@pytest.mark.slow
def test_one_particle_and_one_step(key):
    found = run(key, num_particles=1, max_steps=1)
    assert found.ess.tolist() == [1.0]
    assert len(found.texts) == 1
    np.testing.assert_allclose(found.log_evidence, log_odds(found.token_ids, found.boundaries)[0], rtol=1e-5)


def test_texts_that_all_end_early(key):
    lm = eqx.tree_at(lambda m: m.model.logits, weak(), weak().model.logits.at[:, 3].set(60.0))
    found = run(key, lm=lm)
    assert found.texts == ("3",) * 8
    assert found.finished.all()
    assert found.tokens_used == 8
    assert found.ess.shape == (1,)


class Wrong(llm.Potential):
    """Gives one number for all rows."""

    def update(self, state, step):
        return state, llm.Scored(jnp.zeros(()), step.log_prob, step.count)


# Where only a name is looked for, the checker of types in the tests speaks first.
BAD = [
    ({"num_particles": 0}, ValueError, "`num_particles` is 0; needed at least 1"),
    ({"max_steps": 0}, ValueError, "`max_steps` is 0"),
    ({"max_tokens": 0}, ValueError, "`max_tokens` is 0"),
    ({"max_tokens": 63}, ValueError, r"`max_tokens` is 63 behind `prompt` of 2 tokens(.|\n)*needed at most 62"),
    ({"prompt": []}, ValueError, "`prompt` is an empty list"),
    ({"prompt": ""}, TypeError, "no tokenizer"),
    ({"prompt": [[1], []]}, ValueError, r"`prompt\[1\]` is empty"),
    ({"prompt": [1, 7]}, ValueError, "`prompt` holds the unknown token 7; token ids of this model are 0 to 3"),
    ({"prompt": [1, -1]}, ValueError, "unknown token -1"),
    ({"prompt": [1] * 64}, ValueError, "`prompt` has 64 tokens, and the model reads 64"),
    ({"prompt": [[1], [1] * 70]}, ValueError, r"`prompt\[1\]` has 70 tokens"),
    ({"prompt": 3}, TypeError, "prompt"),
    ({"potential": Wrong(), "scorer": None}, ValueError, r"`Wrong.update` gave `log_potential` of shape \(\)"),
    ({"ess_threshold": 1.5}, ValueError, "`ess_threshold` is 1.5"),
    ({"resampling": "best"}, ValueError, "`resampling` is 'best'"),
    ({"base": "else"}, ValueError, "`base` is 'else'"),
    ({"step": 16}, TypeError, "step"),
    ({"mask": [1]}, TypeError, "mask"),
    ({"stop": 9}, ValueError, "`stop` holds 9; token ids of this model are 0 to 3"),
    ({"stop": ["end"]}, TypeError, "`stop` holds the text 'end', but this `LM` has no tokenizer"),
    ({"step": llm.delimiter(9)}, ValueError, "`step` holds 9"),
    ({"on_step": 3}, TypeError, "on_step"),
    ({"temperature": -1.0}, ValueError, "`temperature` is -1.0"),
]


@pytest.mark.parametrize(("options", "kind", "text"), BAD, ids=[f"{text[:30]}" for _, _, text in BAD])
def test_bad_arguments(key, options, kind, text):
    given = COMMON | {"prompt": [1, 2]} | options
    with pytest.raises(kind, match=text):
        filtered(key, weak(), given.pop("prompt"), **given)


def test_a_model_of_the_wrong_kind(key):
    with pytest.raises(TypeError, match="lm"):
        filtered(key, weak().model, [1], **COMMON)
    with pytest.raises(FileNotFoundError, match="there is no model 'nothing'"):
        llm.load("nothing")
    with pytest.raises(ValueError, match="`stop_ids` holds 9"):
        llm.LM(weak().model, None, (9,), "bad")


def test_a_model_comes_back_from_its_folder(tmp_path):
    pytest.importorskip("safetensors")
    config = LanguageModelConfig(
        vocab_size=8, dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, hidden_dim=8, max_length=64
    )
    model = init_language_model(jax.random.key(0), config)
    save_language_model(tmp_path / "own", model)
    (tmp_path / "own" / "generation_config.json").write_text('{"eos_token_id": [5, 3]}')
    lm = llm.load(tmp_path / "own")
    assert (lm.name, lm.stop_ids, lm.tokenizer, lm.vocab_size, lm.max_length) == ("own", (3, 5), None, 8, 64)
    assert np.array_equal(lm.model.embed, model.embed)


def test_bad_steps():
    for ends in ("", [";", ""], []):
        with pytest.raises(ValueError, match="`ends`"):
            llm.delimiter(ends)
    with pytest.raises(TypeError, match="ends"):
        llm.delimiter([1.5])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`num_tokens` is 0"):
        llm.block(0)


# --- devices ---


@pytest.fixture(scope="module")
def devices():
    output, errors = finish_worker(start_worker(WORKER, flags="--xla_force_host_platform_device_count=2"), seconds=300)
    assert output, errors
    return json.loads(output)


@pytest.mark.slow
@pytest.mark.parametrize("count", ["1", "2"])
def test_devices_change_no_token_and_no_bit(devices, count):
    assert devices["judge"]["resampled"] > 0
    assert devices["judge"][count] == {}


@pytest.mark.slow
def test_devices_change_no_token_of_several_problems(devices):
    """Products of matrices of other shapes round differently: 1e-6 in log weights and scores that are sums of logs."""
    assert devices["problems"]["resampled"] > 0
    assert set(devices["problems"]["2"]) <= {"log_weights", "log_prob", "log_evidence", "scores", "ess"}
    assert all(0 <= gap < 1e-4 for gap in devices["problems"]["2"].values()), devices["problems"]["2"]


@pytest.mark.slow
def test_rows_that_devices_cannot_share(devices):
    assert devices["refusal"].startswith("ValueError: `num_particles` is 9, which the 2 devices")


def test_laws_of_the_table_are_those_of_the_model():
    lm = weak()
    np.testing.assert_allclose(np.exp(law_of(lm, (1, 2))).sum(), 1)
