"""Files of results: they come back as they were, and a file that is cut, changed or foreign is refused.

Planted bugs, each shown to be caught: a file cut at any of several places, one changed byte, another format number, a
pickle in place of the archive.
"""

import dataclasses
import pickle

import numpy as np
import pytest

from probinf.core._files import read_arrays, write_arrays
from probinf.llm import Generations, GenerationsBatch
from tests.llm._runs import run, texts


def assert_same(left, right):
    for field in dataclasses.fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name == "token_ids":
            assert len(a) == len(b)
            pairs = list(zip(a, b, strict=True))
        elif field.name == "records":
            assert a.keys() == b.keys()
            pairs = [(a[name], b[name]) for name in a]
        else:
            pairs = [(a, b)]
        for x, y in pairs:
            assert type(x) is type(y), field.name
            np.testing.assert_array_equal(x, y, err_msg=field.name)
            if isinstance(x, np.ndarray):
                assert x.dtype == y.dtype, field.name


class TestRoundTrip:
    def test_everything_comes_back(self, tmp_path):
        found = run(
            slots=5,
            causes={"None": 2},
            num_failed=2,
            first_bad_step=1,
            status=1,
            records={"sweep": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.zeros((0, 3))},
            settings={"temperature": 0.7, "step": "delimiter ';'", "top_k": None, "stop": ["a", "b"]},
        )
        path = found.save(tmp_path / "run.npz")
        assert path == tmp_path / "run.npz"
        assert_same(found, Generations.load(path))
        assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]

    def test_single_precision_stays(self, tmp_path):
        found = run(log_weights=np.zeros(8, np.float32), log_prob=np.full(8, -1, np.float32))
        back = Generations.load(found.save(tmp_path / "run.npz"))
        assert back.log_weights.dtype == np.float32

    def test_numbers_that_json_has_not(self, tmp_path):
        found = texts(weights=[0, 0], log_evidence=-np.inf)
        back = Generations.load(found.save(str(tmp_path / "run.npz")))
        assert back.log_evidence == -np.inf
        assert np.isnan(back.log_evidence_se)
        assert np.isneginf(back.log_weights).all()

    def test_texts_of_any_script(self, tmp_path):
        found = texts(weights=[1], prompt='∫ 你好 \ud800 \0 "quoted"', decode=lambda ids: "é\n\t")
        assert_same(found, Generations.load(found.save(tmp_path / "run")))

    def test_settings_that_are_no_plain_values_are_kept_as_words(self, tmp_path):
        found = run(settings={"scorer": print, "temperature": np.float32(0.5), "ids": np.arange(2)})
        back = Generations.load(found.save(tmp_path / "run"))
        assert back.settings == {"scorer": repr(print), "temperature": 0.5, "ids": [0, 1]}

    def test_batches(self, tmp_path):
        batch = GenerationsBatch((run(slots=3), run(slots=4, seed=1)))
        back = GenerationsBatch.load(batch.save(tmp_path / "batch.npz"))
        assert len(back) == 2
        for left, right in zip(batch, back, strict=True):
            assert_same(left, right)

    def test_an_existing_file_is_replaced_whole(self, tmp_path, monkeypatch):
        path = run(seed=1).save(tmp_path / "run.npz")
        before = path.read_bytes()

        def full(*args, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space"):
            run(seed=2).save(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


class TestRefusals:
    @pytest.fixture
    def path(self, tmp_path):
        return run().save(tmp_path / "run.npz")

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
    def test_planted_cut(self, path, share):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match="was cut, changed") as error:
            Generations.load(path)
        assert str(path) in str(error.value)

    def test_planted_change_of_a_byte(self, path):
        arrays = read_arrays(path)
        digest = arrays.pop("digest")
        arrays["0.log_weights"] = arrays["0.log_weights"] + 1
        np.savez(path, **{"digest": digest, **arrays})  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="checksum is wrong"):
            Generations.load(path)

    def test_planted_other_format(self, path):
        arrays = read_arrays(path)
        arrays.pop("digest")
        text = arrays["record"].tobytes().replace(b'"format": 1', b'"format": 9')
        write_arrays(path, arrays | {"record": np.frombuffer(text, np.uint8)})
        with pytest.raises(ValueError, match="has format 9, this probinf reads 1: load it with probinf"):
            Generations.load(path)

    def test_planted_pickle(self, path):
        path.write_bytes(pickle.dumps({"digest": "x"}))
        with pytest.raises(ValueError, match="was cut, changed, or written by"):
            Generations.load(path)
        np.savez(path, digest="x", record=np.asarray([{}], object))
        with pytest.raises(ValueError, match="was cut, changed, or written by"):
            Generations.load(path)

    def test_a_foreign_archive(self, path):
        write_arrays(path, {"x": np.zeros(3)})
        with pytest.raises(ValueError, match="was cut, changed, or written by something else"):
            Generations.load(path)

    def test_one_and_several_are_told_apart(self, path, tmp_path):
        with pytest.raises(ValueError, match=r"holds a generations: read it with `Generations.load`"):
            GenerationsBatch.load(path)
        several = GenerationsBatch((run(), run())).save(tmp_path / "batch.npz")
        with pytest.raises(ValueError, match=r"read it with `GenerationsBatch.load`"):
            Generations.load(several)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ValueError, match="is not a file"):
            Generations.load(tmp_path / "absent.npz")

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(OSError, match="absent"):
            run().save(tmp_path / "absent" / "run.npz")
