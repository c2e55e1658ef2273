"""The chains task and the checkpoints that come with it: exact answers, then what the models can do.

Exact: results by Python's own arithmetic, every operation a permutation of the digits, token functions against text
functions, the tokenizer against the vocabulary. The checkpoints are judged on problems of a fixed seed, so nothing here
is random; the bounds are far from what they reach.

Planted bugs, each shown to be caught: a verifier that compares with the true results instead of following what was
written, one that forgets steps which are no digit, factors that are not units.
"""

import json
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.llm import _chains as chains

CHECKPOINTS = ("chains", "chains-strong", "chains-reward")


def by_python(prompt):
    """The results of a problem, by `eval` from the left."""
    value, found = int(prompt[0]), []
    for operation, operand in re.findall(r"([-+*])(\d)", prompt[1:]):
        value = eval(f"{value}{operation}{operand}") % 10
        found.append(value)
    return found


@pytest.fixture(scope="module")
def drawn():
    return chains.problems(jax.random.key(1), 64)


@pytest.fixture(scope="module")
def tokens():
    """The problems of `drawn`."""
    return chains.problem_tokens(jax.random.key(1), 64)


class TestProblems:
    def test_form(self, drawn):
        prompts, answers = drawn
        assert len(prompts) == len(answers) == 64
        for prompt in prompts:
            assert re.fullmatch(r"[0-9]([-+][0-9]|\*[1379]){12}>", prompt)

    def test_answers_are_right(self, drawn):
        for prompt, answer in zip(*drawn, strict=True):
            assert by_python(prompt)[-1] == int(answer)

    def test_a_problem_depends_on_its_place_alone(self, drawn):
        assert chains.problems(jax.random.key(1), 3).prompts == drawn.prompts[:3]

    def test_all_that_can_be_drawn_is_drawn(self, drawn):
        text = "".join(drawn.prompts)
        assert set(text) == set("0123456789+-*>")
        counts = [text.count(operation) for operation in "+-*"]
        assert min(counts) > 768 / 3 - 5.5 * np.sqrt(768 * 2 / 9)  # false alarm under 1e-6

    def test_fewer_operations(self, key):
        prompts, answers = chains.problems(key, 2, num_steps=3)
        assert [len(prompt) for prompt in prompts] == [8, 8]
        assert [chains.extract(chains.solve(prompt)) for prompt in prompts] == list(answers)

    def test_none(self, key):
        assert chains.problems(key, 0) == ((), ())

    def test_bad_numbers(self, key):
        with pytest.raises(ValueError, match="`count`"):
            chains.problems(key, -1)
        with pytest.raises(ValueError, match="`num_steps`"):
            chains.problems(key, 1, num_steps=0)

    @pytest.mark.parametrize("operation", [*(f"+{y}" for y in range(10)), *(f"-{y}" for y in range(10)), "*1", "*3"])
    def test_no_error_is_forgotten(self, operation):
        assert sorted(chains.solve(f"{digit}{operation}>") for digit in range(10)) == list("0123456789")

    def test_factors_are_the_units(self):
        units = [y for y in range(10) if len({x * y % 10 for x in range(10)}) == 10]
        assert list(chains.FACTORS) == units


class TestSolve:
    def test_known(self):
        assert chains.solve("7+5*3-8>") == "2;6;8"

    def test_by_python(self, drawn):
        for prompt in drawn.prompts:
            assert chains.solve(prompt) == ";".join(map(str, by_python(prompt)))

    @pytest.mark.parametrize("prompt", ["", "7>", "7+5", "7+5*3", "17+5>", "7/5>", "7+5>2", "7+>"])
    def test_no_problem(self, prompt):
        with pytest.raises(ValueError, match="`prompt` must be a digit"):
            chains.solve(prompt)


class TestVerify:
    @pytest.mark.parametrize(
        ("text", "flags"),
        [
            ("2;6;8", [1, 1, 1]),
            ("2;6;8;", [1, 1, 1]),
            ("2;6;8<eos>", [1, 1, 1]),
            ("2;6", [1, 1]),
            ("3;9;1", [0, 1, 1]),  # 3 is wrong; 3*3 = 9 and 9-8 = 1 follow from it
            ("2;7;8", [1, 0, 0]),
            ("2;7;9", [1, 0, 1]),
            ("2;66;8", [1, 0, 0]),
            ("2;;8", [1, 0, 0]),
            ("2;6;8;0", [1, 1, 1, 0]),
            (";", [0]),
            ("", []),
        ],
    )
    def test_by_hand(self, text, flags):
        assert chains.verify("7+5*3-8>", text).tolist() == [bool(flag) for flag in flags]

    def test_the_truth_passes(self, drawn):
        for prompt in drawn.prompts:
            text = chains.solve(prompt)
            assert chains.verify(prompt, text).all()
            assert chains.correct(prompt, text)

    def test_whole_solutions(self):
        assert chains.correct("7+5*3-8>", "2;6;8;")
        for text in ("2;6", "2;6;8;0", "2;6;9", "", "3;9;1"):
            assert not chains.correct("7+5*3-8>", text)

    def test_comparing_with_the_true_results_is_caught(self):
        text = "3;9;1"
        planted = [a == b for a, b in zip(text.split(";"), chains.solve("7+5*3-8>").split(";"), strict=True)]
        assert planted != chains.verify("7+5*3-8>", text).tolist()

    def test_skipping_steps_that_are_no_digit_is_caught(self):
        assert chains.verify("7+5*3-8>", "2;x;6;8").tolist() != [True, True, True]


class TestExtract:
    @pytest.mark.parametrize(
        ("text", "answer"),
        [("2;6;8", "8"), ("2;6;8;", "8"), ("8<eos>", "8"), ("", None), ("2;68", None), ("2;;", None)],
    )
    def test_last_result(self, text, answer):
        assert chains.extract(text) == answer


class TestTokens:
    def test_problems_are_texts(self, drawn, tokens):
        assert tokens.shape == (64, chains.PROMPT_LENGTH)
        assert np.all(np.asarray(tokens)[:, 0] == chains.BOS)
        texts = tuple("".join(chains.VOCABULARY[token] for token in row[1:]) for row in np.asarray(tokens))
        assert texts == drawn.prompts

    def test_results_are_solutions(self, drawn, tokens):
        for row, prompt in zip(np.asarray(jax.jit(chains.results)(tokens)), drawn.prompts, strict=True):
            assert ";".join(map(str, row)) == chains.solve(prompt)

    def test_steps_are_judged_as_texts_are(self, drawn, tokens):
        written = np.random.default_rng(0).integers(0, 10, (64, chains.NUM_STEPS)).astype(np.int32)
        written[::2, :6] = [by_python(prompt)[:6] for prompt in drawn.prompts[::2]]
        found = np.asarray(jax.jit(chains.steps_correct)(tokens, jnp.asarray(written)))
        for row, flags, prompt in zip(written, found, drawn.prompts, strict=True):
            np.testing.assert_array_equal(chains.verify(prompt, ";".join(map(str, row))), flags)
        assert 0 < found.mean() < 1

    def test_solutions_end(self):
        tokens = chains.solution_tokens(jnp.array([[2, 6, 8]]))
        end, last = chains.END_STEP, chains.EOS
        np.testing.assert_array_equal(tokens, [[2, end, 6, end, 8, last]])


def folder_of(name):
    return Path(chains.__file__).parent / "checkpoints" / name


@pytest.fixture(scope="module")
def models():
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    return {name: llm.load(name) for name in CHECKPOINTS}


def solutions(prompts):
    """Token ids of the solutions."""
    ids = {token: index for index, token in enumerate(chains.VOCABULARY)}
    return jnp.array([[*(ids[token] for token in chains.solve(prompt)), chains.EOS] for prompt in prompts], jnp.int32)


@eqx.filter_jit
def log_prob(model, problem, solution):
    texts = jnp.concatenate([problem, solution[:, :-1]], axis=1)
    log_probs = jax.nn.log_softmax(model(texts).logits[:, problem.shape[1] - 1 :])
    return jnp.sum(jnp.take_along_axis(log_probs, solution[..., None], axis=-1)[..., 0], axis=-1)


class TestCheckpoints:
    def test_size_in_all(self):
        files = [file for name in CHECKPOINTS for file in folder_of(name).iterdir()]
        assert sum(file.stat().st_size for file in files) < 2e6

    @pytest.mark.parametrize("name", CHECKPOINTS)
    def test_training_log(self, name):
        story = json.loads((folder_of(name) / "training.json").read_text())
        assert story["command"].startswith("probinf run train-chains")
        assert np.isfinite(story["training"]["loss"]).all()

    @pytest.mark.parametrize("name", CHECKPOINTS)
    def test_tokenizer(self, models, name, drawn, tokens):
        lm = models[name]
        assert lm.vocab_size == lm.tokenizer.vocab_size == len(chains.VOCABULARY)
        assert (lm.tokenizer.bos_id, lm.tokenizer.eos_id) == (chains.BOS, chains.EOS)
        assert lm.stop_ids == (chains.EOS,)
        found = [lm.encode(prompt) for prompt in drawn.prompts]
        np.testing.assert_array_equal(found, tokens)
        assert lm.decode(found[0]) == drawn.prompts[0]
        assert lm.decode([2, chains.END_STEP, 6, chains.EOS]) == "2;6"

    def test_blanks_are_skipped_and_letters_refused(self, models):
        lm = models["chains"]
        np.testing.assert_array_equal(lm.encode("7 + 5\n>"), lm.encode("7+5>"))
        with pytest.raises(ValueError, match="7x5"):
            lm.encode("7x5>")

    def test_transformers_reads_the_tokenizer(self, models):
        transformers = pytest.importorskip("transformers")
        found = transformers.AutoTokenizer.from_pretrained(folder_of("chains"))
        assert found("7+5*3>").input_ids == models["chains"].encode("7+5*3>").tolist()
        assert found.eos_token_id == chains.EOS

    def test_only_the_reward_model_has_a_second_head(self, models):
        assert [lm.model.value is not None for lm in models.values()] == [False, False, True]

    def test_what_the_models_can_do(self, models, drawn, tokens):
        """Exact probabilities of the solutions of 64 fixed problems."""
        weak, strong = (
            np.exp(log_prob(models[name].model, tokens, solutions(drawn.prompts))) for name in CHECKPOINTS[:2]
        )
        assert 0.05 < weak.mean() < 0.35
        assert np.mean(1 - (1 - weak) ** 32) > 0.7
        assert strong.mean() > 0.95

    def test_the_reward_sees_errors(self, models, drawn, tokens):
        """One error in each of 64 solutions: before it the reward is high, from it on low."""
        place = np.arange(64) % chains.NUM_STEPS
        written = np.array([by_python(prompt) for prompt in drawn.prompts])
        for row, (prompt, step) in enumerate(zip(drawn.prompts, place, strict=True)):
            wrong = (written[row, step] + 1 + row // chains.NUM_STEPS) % 10
            rest = prompt[2 * step + 3 :]  # what follows from the error
            written[row, step:] = [wrong, *(by_python(f"{wrong}{rest}") if rest != ">" else [])]
        ends = [chains.END_STEP] * (chains.NUM_STEPS - 1) + [chains.EOS]
        solution = np.stack([written, np.broadcast_to(ends, written.shape)], axis=-1).reshape(64, -1)
        texts = jnp.concatenate([tokens, jnp.asarray(solution, jnp.int32)], axis=1)
        values = eqx.filter_jit(lambda model, texts: model(texts).values)(models["chains-reward"].model, texts)
        says_right = np.asarray(values)[:, chains.PROMPT_LENGTH + 1 :: 2] > 0
        is_right = np.arange(chains.NUM_STEPS) < place[:, None]
        assert np.mean(says_right == is_right) > 0.95
