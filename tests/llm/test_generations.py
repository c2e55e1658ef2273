"""What a run returns: posterior, evidence with its error, trimming, flags and their words, summary, batches.

Planted bugs, each shown to be caught: a standard error of evidence without the factor of the resamplings; answers of
texts that were cut off counted as answers; a fatal run that still gives a posterior.
"""

import itertools

import numpy as np
import pytest

from probinf.core import InferenceError, InferenceWarning, Status
from probinf.llm import Generations, GenerationsBatch
from probinf.llm._collect import single_run_variance
from probinf.llm._generations_batch import combine_evidence
from tests.llm._runs import extract, run, texts


class TestPosterior:
    def test_weights_of_equal_answers_are_summed(self):
        found = texts(weights=[2, 4, 2, 1], answers=["3", "4", "3", None]).posterior(extract)
        assert found == pytest.approx({"3": 4 / 9, "4": 4 / 9, None: 1 / 9})
        assert list(found) == ["3", "4", None]  # of equal ones the first met comes first

    def test_planted_answers_of_unfinished_texts(self):
        cut = texts(weights=[0.5, 0.5], answers=["3", "3"], finished=[True, False])
        assert cut.posterior(extract) == pytest.approx({"3": 0.5, None: 0.5})
        assert cut.posterior(extract, unfinished=True) == {"3": 1.0}

    def test_the_whole_text_is_the_default_answer(self):
        assert texts(weights=[0.25, 0.75], answers=["3", "4"]).posterior() == pytest.approx({"4;": 0.75, "3;": 0.25})

    def test_weight_zero_is_no_answer(self):
        assert texts(weights=[1, 0], answers=["3", "4"]).posterior(extract) == {"3": 1.0}
        assert texts(weights=[0, 0], answers=["3", "4"]).posterior(extract) == {}

    def test_huge_log_weights(self):
        found = texts(weights=[1, 1], answers=["3", "4"], log_weights=np.asarray([-1e5, -1e5 + np.log(3)]))
        assert found.posterior(extract) == pytest.approx({"4": 0.75, "3": 0.25})

    def test_planted_fatal_run(self):
        broken = texts(weights=[1, 1], status=int(Status.POSINF_LOG_WEIGHT))
        with pytest.raises(InferenceError, match="best_of_n"):
            broken.posterior(extract)
        with pytest.raises(InferenceError) as error:
            broken.select("majority")
        assert error.value.result is broken

    def test_an_answer_must_be_hashable(self):
        with pytest.raises(TypeError, match="cannot be hashed"):
            texts(weights=[1]).posterior(lambda text: {text})  # pyright: ignore[reportArgumentType]


class TestEvidence:
    def test_the_variance_is_unbiased_by_enumeration(self):
        """Two steps of multinomial resampling: E[Z^2 V] = var(Z) over all ancestors, exactly.

        Three particles whose first weights are the whole randomness of step 1, drawn from two values; the second
        weights depend on the slot's own coin.
        """
        values = np.asarray([0.5, 2.0])
        moments = np.zeros(3)  # E[Z], E[Z^2], E[Z^2 V]
        planted = 0.0
        for first in itertools.product(values, repeat=3):
            weights = np.asarray(first)
            for parents in itertools.product(range(3), repeat=3):
                chance = np.prod(weights[list(parents)] / weights.sum()) / 8
                for second in itertools.product(values, repeat=3):
                    z = weights.mean() * np.mean(second)
                    args = np.log(second), np.asarray([parents]), np.asarray([False, True])
                    variance, _ = single_run_variance(*args)
                    without, _ = single_run_variance(*args[:2], np.asarray([False, False]))
                    moments += chance / 8 * np.asarray([z, z**2, z**2 * variance])
                    planted += chance / 8 * z**2 * without
        assert moments[2] == pytest.approx(moments[1] - moments[0] ** 2, rel=1e-10)
        assert abs(planted - moments[2]) > 0.1 * moments[2]

    def test_without_resampling_it_is_that_of_importance_sampling(self):
        weights = np.random.default_rng(0).gamma(2.0, size=64)
        found = texts(weights=weights, log_evidence=float(np.log(weights.mean())))
        expected = np.std(weights, ddof=1) / np.sqrt(64) / weights.mean()
        assert found.log_evidence_se == pytest.approx(expected, rel=1e-10)
        assert found.standard_error_note == ""

    @pytest.mark.parametrize(
        ("changes", "note"),
        [
            ({"scheme": "systematic"}, "multinomial resampling only"),
            ({"slots": 8}, "fewer than 10"),
            ({"log_evidence": float("nan")}, "estimates no evidence"),
            ({"status": int(Status.MAX_STEPS)}, "flagged"),
            ({"log_evidence": -np.inf}, "flagged"),
            ({"standard_error_note": "as told"}, "as told"),
        ],
        ids=str,
    )
    def test_where_there_is_no_error_a_note_says_why(self, changes, note):
        found = run(**({"slots": 40, "noise": 0.3, "ess_threshold": 0.99} | changes))
        assert np.isnan(found.log_evidence_se)
        assert note in found.standard_error_note

    def test_an_error_that_the_method_knows_is_kept(self):
        found = run(scheme="systematic", log_evidence_se=0.25)
        assert (found.log_evidence_se, found.standard_error_note) == (0.25, "")

    def test_a_multinomial_run_has_one(self):
        found = run(slots=64, steps=4, noise=0.5, ess_threshold=0.9)
        assert found.resampled.any()
        assert 0 < found.log_evidence_se < 1

    def test_replicates(self):
        values = np.log([0.5, 1.0, 1.5, 2.0])
        found = combine_evidence(values)
        assert found.log_evidence == pytest.approx(np.log(1.25))
        assert found.standard_error == pytest.approx(np.std([0.5, 1, 1.5, 2], ddof=1) / 2 / 1.25)
        shifted = combine_evidence(values - 5000)
        assert shifted.log_evidence == pytest.approx(np.log(1.25) - 5000)
        assert shifted.standard_error == pytest.approx(found.standard_error)

    def test_replicates_that_failed(self):
        assert np.isnan(combine_evidence(np.asarray([0.0, np.nan]))).all()
        nothing = combine_evidence(np.asarray([-np.inf, -np.inf]))
        assert nothing.log_evidence == -np.inf
        assert np.isnan(nothing.standard_error)
        half = combine_evidence(np.asarray([0.0, -np.inf]))
        assert half.log_evidence == pytest.approx(np.log(0.5))


class TestCollect:
    def test_texts_ids_and_boundaries_agree(self):
        found = run(slots=16, steps=6, seed=2)
        for i in range(16):
            assert len(found.texts[i]) == len(found.token_ids[i]) == 2 * found.num_steps[i]
            assert found.texts[i].count(";") == found.num_steps[i]
            assert found.boundaries[i, -1] == len(found.token_ids[i])
            assert np.isfinite(found.scores[i]).sum() == found.num_steps[i]
        assert found.num_particles == 16
        assert found.temperature == 1.0

    def test_steps_after_the_end_are_left_out(self):
        found = run(slots=4, steps=30, stay=0.2, ess_threshold=0.0)
        last = int(np.flatnonzero(found.finished_path.all(axis=1))[0])
        assert found.ess.shape == (last + 1,)
        assert found.ancestors.shape == (last, 4)
        assert found.scores.shape == (4, last + 1)

    def test_steps_after_an_interruption_are_left_out(self):
        """Two of four steps were done, and nobody had ended."""
        found = texts(
            weights=[1, 1], scores=np.full((2, 4), 0.5), finished=[False, False], num_steps=np.asarray([2, 2])
        )
        assert found.ess.shape == (2,)
        assert found.boundaries.shape == (2, 2)
        before = texts(weights=[1, 1], scores=np.full((2, 4), 0.5), finished=[False] * 2, num_steps=np.zeros(2, int))
        assert before.ess.shape == (1,)

    def test_a_late_resampling_is_kept(self):
        """Texts that all ended at once, resampled a step later: that step stays, for it moved them."""
        done = np.ones((4, 2), bool)
        found = texts(
            weights=[1, 1],
            scores=np.full((2, 4), 0.5),
            finished_path=done,
            resampled=np.asarray([False, False, True, False]),
            ancestors=np.asarray([[0, 1], [0, 0], [0, 1]]),
        )
        assert found.ess.shape == (3,)
        np.testing.assert_array_equal(found.ancestors, [[0, 1], [0, 0]])

    def test_arrays_that_do_not_agree(self):
        with pytest.raises(ValueError, match="need 2 and 1 rows"):
            texts(weights=[1, 1], scores=np.ones((2, 2)), ancestors=np.zeros((2, 2), int))
        with pytest.raises((ValueError, TypeError)):
            texts(weights=[1, 1], tokens=np.zeros((3, 2), int))


class TestFlags:
    def test_no_flag_says_nothing(self):
        found = run()
        assert found.check() is found

    def test_failed_scores_are_one_warning_with_their_causes(self):
        found = texts(
            weights=[1, 0],
            status=int(Status.NAN_LOG_WEIGHT),
            num_failed=3,
            first_bad_step=1,
            causes={"TimeoutError: no answer in 5 s": 2, "None": 1},
        )
        with pytest.warns(InferenceWarning) as caught:
            found.check()
        assert len(caught) == 1
        words = str(caught[0].message)
        assert "3 log weights were NaN, first in step 2" in words
        assert "TimeoutError: no answer in 5 s (2 times); None (1 times)" in words
        assert "failed scores" in found.summary()

    def test_all_weights_zero_shows_where_the_texts_stood(self):
        found = texts(weights=[0, 0], answers=["7", "7"], status=int(Status.ALL_WEIGHTS_ZERO), first_bad_step=0)
        with pytest.warns(InferenceWarning, match=r"first in step 1, the longest text so far is '7;'"):
            found.check()
        both = Status.ALL_WEIGHTS_ZERO | Status.NAN_LOG_WEIGHT
        with pytest.raises(InferenceError, match="the longest text so far"):
            texts(weights=[0, 0], status=int(both)).check()

    def test_a_fatal_flag_keeps_the_result(self):
        found = texts(weights=[1], status=int(Status.POSINF_LOG_WEIGHT))
        with pytest.raises(InferenceError) as error:
            found.check()
        assert error.value.result is found
        assert "flagged" in repr(found)


class TestSummary:
    def test_it_holds_the_numbers(self):
        found = run(slots=64, steps=4, noise=0.5, ess_threshold=0.9)
        words = found.summary()
        for part in (f"{found.log_evidence:.4f}", f"{found.log_evidence_se:.3g}", f"{found.tokens_used:,}", "OK"):
            assert part in words
        assert max(map(len, words.splitlines())) <= 100

    def test_markup_and_lines_in_texts_are_shown_as_they_are(self):
        found = texts(weights=[1], prompt="a [bold]b[/] [x\nc")
        assert "a [bold]b[/] [x⏎c" in found.summary()

    def test_long_texts_are_cut_in_the_middle(self):
        words = texts(weights=[1], prompt="begin " + "x" * 1000 + " end").summary()
        assert "begin" in words
        assert " end" in words
        assert " … " in words

    def test_nothing_alive(self):
        assert "weight" not in texts(weights=[0], status=0).summary().replace("weight zero", "")


class TestBatch:
    def batch(self):
        return GenerationsBatch(tuple(run(seed=seed) for seed in range(3)))

    def test_it_is_a_sequence(self):
        batch = self.batch()
        assert len(batch) == 3
        assert batch[1] is batch.members[1]
        assert [found is member for found, member in zip(batch, batch.members, strict=True)] == [True] * 3
        assert isinstance(batch[:2], GenerationsBatch)
        assert len(batch[:2]) == 2
        assert isinstance(batch[-1], Generations)
        assert batch.tokens_used == sum(member.tokens_used for member in batch)
        assert batch.scorer_tokens_used == sum(member.scorer_tokens_used for member in batch)
        with pytest.raises(IndexError):
            batch[3]

    def test_replicates_of_one_prompt_have_an_evidence(self):
        batch = self.batch()
        logs = np.asarray([member.log_evidence for member in batch])
        assert batch.evidence() == combine_evidence(logs)
        other = GenerationsBatch((run(), run(prompt="2+2=")))
        with pytest.raises(ValueError, match="2 members of 2 different prompts"):
            other.evidence()
        with pytest.raises(ValueError, match="1 members"):
            batch[:1].evidence()

    def test_flags_of_members(self):
        bad = texts(weights=[1], status=int(Status.POSINF_LOG_WEIGHT))
        batch = GenerationsBatch((texts(weights=[1]), bad))
        assert batch.status == int(Status.POSINF_LOG_WEIGHT)
        with pytest.raises(InferenceError, match=r"members \[1\] of 2") as error:
            batch.check()
        assert error.value.result is batch
        assert self.batch().check().status == 0
