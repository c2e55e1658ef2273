"""A scorer that errs: its noise is a function of prompt and text, has the law that it says, and nothing else changes.

Exact: no noise is the scorer itself; one text has one noise, however it was cut into steps, padded and placed among
others, in the engine too. Statistical, with fixed seeds and a false-alarm rate of 1e-6 a claim for normal noise: mean,
variance, kurtosis and correlation of texts that differ little.

Planted bugs, each shown to be caught: a noise that forgets the prompt, one that forgets the order of tokens, one that
counts tokens which are not there, one drawn anew for every row.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probinf import llm
from probinf.experiments import normal_bound
from probinf.llm import _noisy
from tests.llm._steps import JUDGING, PROMPT, TWO, cut, letter_scorer, run, views
from tests.llm._tables import node_of, table_lm

TEXT = (1, 2, 1, 1, 2)


def flat(noise=1.0, **options):
    """A rater of even odds everywhere, but for the noise."""
    return llm.noisy_scorer(llm.device_scorer(lambda step: jnp.full(step.count.shape, 0.5)), noise=noise, **options)


def odds(scorer, steps, prompt=PROMPT):
    """Log odds that a scorer gives after each step, [T][N]."""
    said, _ = run(llm.process_reward(scorer, "odds"), steps, prompt)
    return [np.asarray(scored.log_potential) for scored in said]


def noises(texts, prompt=PROMPT, **options):
    """The noise at the end of each text, given in one step."""
    size = max(map(len, texts))
    return odds(flat(**options), views([[text] for text in texts], None, size=size, capacity=size), prompt)[-1]


def prompt_of(tokens, size=6):
    padded = np.zeros(size, np.int32)
    padded[: len(tokens)] = tokens
    return llm.Prompt(jnp.asarray(padded), jnp.asarray(len(tokens), jnp.int32))


class TestFunction:
    @pytest.mark.parametrize("scorer", [JUDGING, llm.device_scorer(letter_scorer)], ids=["value head", "function"])
    def test_without_noise_it_is_the_scorer(self, scorer):
        for plain, noisy in zip(odds(scorer, TWO), odds(llm.noisy_scorer(scorer, noise=0.0), TWO), strict=True):
            np.testing.assert_array_equal(plain, noisy)

    def test_the_limit_comes_first(self):
        bare, cut_off = (odds(llm.noisy_scorer(JUDGING, noise=0.0, limit=size), TWO) for size in (9.0, 0.4))
        np.testing.assert_allclose(cut_off, np.clip(bare, -0.4, 0.4), rtol=1e-6)
        loud = odds(llm.noisy_scorer(JUDGING, noise=3.0, limit=0.4), TWO)
        error = np.asarray(loud) - np.asarray(cut_off)
        np.testing.assert_allclose(error, 3 * np.asarray(odds(flat(), TWO)), rtol=1e-4, atol=1e-5)

    def test_steps_padding_and_place_do_not_matter(self):
        """The whole text at once, token by token, in threes; alone and among others."""
        wanted = noises([TEXT])[0]
        assert wanted != 0
        for lengths in ((1,) * 5, (3, 2), (2, 1, 2)):
            for others in ([], [(2, 2, 2, 2, 2)]):
                steps = views([cut(text, lengths) for text in (*others, TEXT)], None, size=4)
                assert odds(flat(), steps)[-1][-1] == wanted
        long = views([[TEXT]], None, size=9, capacity=12)
        assert odds(flat(), long)[-1][0] == wanted
        prompts = [prompt_of((1, 2), size) for size in (2, 5)]
        assert noises([TEXT], prompts[0])[0] == noises([TEXT], prompts[1])[0] == wanted

    def test_rows_that_wait_keep_their_words(self):
        """The first text has ended after one step: its words stay, and its weight is 1."""
        steps = views([[(1,)], [(1,), (2,)]], None, size=2)
        said, state = run(llm.process_reward(flat(), "odds"), steps)
        assert said[1].log_potential[0] == 0
        words = np.asarray(state.scorer.words)
        alone = run(llm.process_reward(flat(), "odds"), views([[(1,)]], None, size=2))[1]
        np.testing.assert_array_equal(words[0], alone.scorer.words[0])
        assert np.any(words[0] != words[1])

    def test_prompt_text_and_seed_are_told_apart(self):
        found = [
            noises([TEXT])[0],
            noises([(2, 1, 1, 1, 2)])[0],
            noises([TEXT[:4]])[0],
            noises([(*TEXT, 0)])[0],
            noises([TEXT], prompt_of((2, 1)))[0],
            noises([TEXT], prompt_of((1, 2, 1)))[0],
            noises([TEXT[1:]], prompt_of((1, 2, 1)))[0],
            noises([TEXT], seed=1)[0],
        ]
        assert len(set(found)) == len(found)

    @pytest.mark.slow
    def test_planted_functions_are_caught(self, monkeypatch):
        words = _noisy._words

        def forgets_the_prompt(seed, kind, places, tokens, count):
            return words(seed, kind, places, tokens, count) * (1 if kind == _noisy._TEXT else 0)

        def forgets_places(seed, kind, places, tokens, count):
            return words(seed, kind, 0 * places, tokens, count)

        def counts_padding(seed, kind, places, tokens, count):
            return words(seed, kind, places, tokens, jnp.full_like(count, tokens.shape[1]))

        def draws(seed, kind, places, tokens, count):
            rows = jnp.arange(tokens.shape[0], dtype=jnp.uint32)
            return words(seed, kind, places, tokens, count) + rows[:, None]

        for planted, test in (
            (forgets_the_prompt, self.test_prompt_text_and_seed_are_told_apart),
            (forgets_places, self.test_prompt_text_and_seed_are_told_apart),
            (counts_padding, self.test_steps_padding_and_place_do_not_matter),
            (draws, self.test_steps_padding_and_place_do_not_matter),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(_noisy, "_words", planted)
                jax.clear_caches()  # programs that were compiled hold the right function
                with pytest.raises(AssertionError):
                    test()
        jax.clear_caches()


@pytest.fixture(scope="module")
def z():
    """Noises of all 4,096 texts of four of eight tokens."""
    return np.asarray(noises(list(itertools.product(range(8), repeat=4))), np.float64).reshape(8, 8, 8, 8)


class TestLaw:
    def test_moments(self, z):
        bound, count = normal_bound(3), z.size
        assert abs(z.mean()) * np.sqrt(count) < bound
        assert abs(np.mean(z**2) - 1) * np.sqrt(count / 2) < bound
        assert abs(np.mean(z**4) - 3) * np.sqrt(count / 96) < bound

    def test_texts_that_differ_in_one_token_are_independent(self, z):
        """Mean product of neighbours along each of the four places, with variance 1 / count."""
        bound = normal_bound(4)
        for place in range(4):
            rows = np.moveaxis(z, place, 0)
            product = rows[:-1:2] * rows[1::2]
            assert abs(product.mean()) * np.sqrt(product.size) < bound

    def test_planted_dependence_is_seen(self, z):
        with pytest.raises(AssertionError):
            self.test_texts_that_differ_in_one_token_are_independent(z + z.mean(axis=0))
        with pytest.raises(AssertionError):
            self.test_moments(1.1 * z)

    def test_noise_is_a_scale(self):
        np.testing.assert_allclose(noises([TEXT], noise=4.0), 4 * noises([TEXT]), rtol=1e-6)


OPTIONS = {"step": llm.block(2), "max_steps": 3}
LM, JUDGE = (table_lm(seed, depth=6) for seed in (0, 1))


@pytest.fixture(scope="module")
def solutions():
    """Texts of up to six of three tokens, so that prefixes come again."""
    rater = llm.noisy_scorer(JUDGE, noise=2.0, limit=1.0)
    return llm.best_of_n(jax.random.key(0), LM, [0, 1], scorer=rater, num_particles=32, **OPTIONS)


def rates(found, seen):
    """Adds the score of each prefix to those seen; how many came again, all with the score that they had."""
    again = 0
    for text, scores in zip(found.token_ids, found.scores, strict=True):
        for step, score in enumerate(scores):
            prefix = tuple(int(token) for token in text[: 2 * (step + 1)])
            again += prefix in seen
            assert seen.setdefault(prefix, score) == pytest.approx(score, rel=1e-5)
    return again


class TestEngine:
    def test_a_text_has_one_rate(self, solutions):
        seen: dict = {}
        assert rates(solutions, seen) > 20
        assert len(seen) > 20

    def test_rates_are_those_of_the_scorer(self, solutions):
        """A value of the judge's table for each prefix, cut and with the noise that a rater of even odds has."""
        text = tuple(int(token) for token in solutions.token_ids[0])
        prefixes = [text[:2], text[:4], text[:6]]
        values = np.clip([float(JUDGE.model.values[node_of(prefix, 3)]) for prefix in prefixes], -1, 1)
        noise = [noises([prefix], prompt_of((0, 1)), noise=2.0)[0] for prefix in prefixes]
        np.testing.assert_allclose(solutions.scores[0], 1 / (1 + np.exp(-values - noise)), rtol=1e-4)

    def test_cost_is_the_scorer_s(self, solutions):
        assert solutions.scorer_tokens_used == 32 * 6 + 2

    @pytest.mark.slow
    def test_a_text_has_one_rate_in_all_methods(self, solutions):
        """A filter with another key and another N, and what it copies."""
        seen: dict = {}
        rates(solutions, seen)
        rater = llm.noisy_scorer(JUDGE, noise=2.0, limit=1.0)
        found = llm.particle_filter(jax.random.key(1), LM, [0, 1], scorer=rater, num_particles=24, **OPTIONS)
        assert found.resampled.any()
        assert rates(found, seen) > 20

    @pytest.mark.slow
    def test_a_function_on_the_host(self):
        """Of rate 1/2, so that what is left is the noise that the device gives too."""
        scores = {}
        for name, inner in (
            ("host", llm.text_scorer(lambda prompt, text: 0.5)),
            ("device", llm.device_scorer(lambda step: jnp.full(step.count.shape, 0.5))),
        ):
            rater = llm.noisy_scorer(inner, noise=1.0)
            assert rater.traceable == (name == "device")
            found = llm.best_of_n(jax.random.key(0), with_letters(LM), [0, 1], scorer=rater, num_particles=4, **OPTIONS)
            scores[name] = found.scores
        np.testing.assert_allclose(scores["host"], scores["device"], rtol=1e-6)
        assert np.ptp(scores["host"]) > 0.1

    def test_double_precision(self, x64):
        found = odds(flat(noise=1.0), views([[TEXT]], None, size=5, dtype=jnp.float64))[-1]
        assert found.dtype == np.float64
        assert -6 < found[0] < 6


def with_letters(lm):
    class Letters:
        vocab_size = 3

        def decode(self, ids):
            return "".join("abc"[token] for token in ids)

        def encode(self, text):
            return ["abc".index(letter) for letter in text]

    return llm.LM(lm.model, Letters(), lm.stop_ids, lm.name)


@pytest.mark.parametrize(
    ("scorer", "options", "error", "words"),
    [
        (JUDGING, {"noise": -1.0}, ValueError, "`noise` is -1.0"),
        (JUDGING, {"noise": float("nan")}, ValueError, "`noise` is nan"),
        (JUDGING, {"noise": 1.0, "limit": 0.0}, ValueError, "`limit` is 0.0"),
        (JUDGING, {"noise": 1.0, "seed": -1}, ValueError, "`seed`"),
        (JUDGING, {"noise": 1.0, "seed": 2**32}, ValueError, "below 2\\*\\*32"),
        (llm.device_scorer(letter_scorer, returns="log_weight"), {"noise": 1.0}, ValueError, "no odds"),
        (7, {"noise": 1.0}, TypeError, "`scorer` must be"),
    ],
)
def test_bad_input(scorer, options, error, words):
    with pytest.raises(error, match=words):
        llm.noisy_scorer(scorer, **options)


def test_it_wants_a_prompt_first():
    with pytest.raises(TypeError, match="before `bind`"):
        flat().start(2, 4)
