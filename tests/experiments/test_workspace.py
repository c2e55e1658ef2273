"""The folder of a run: resumed by the same run, refused to another, never shared, nothing of others removed.

Planted bugs: a part that dies half-way, a cut file, a second process, a folder of somebody else.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from probinf.core import Draws, Status
from probinf.experiments import FolderError, Part, Section, open_workspace
from probinf.experiments._workspace import differences, write_json, write_text

ME = {"experiment": "x", "seed": 0}
OTHER = {"experiment": "x", "seed": 1}
PART = Part({"value": 1.5}, Section("T", (), ()))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def compute(workspace):
    return PART


def refuse_to_compute(workspace):
    raise AssertionError("computed again")


def run(folder, identity=ME, function=compute, **options):
    with open_workspace(folder, identity, **options) as workspace:
        return workspace.part("one", function), workspace


class TestResume:
    def test_a_finished_part_is_not_computed_again(self, tmp_path):
        first, _ = run(tmp_path / "a")
        second, workspace = run(tmp_path / "a", function=refuse_to_compute)
        assert first == second
        assert workspace.reused == ["one"]
        assert workspace.seconds["one"] >= 0

    def test_a_part_that_dies_leaves_nothing_that_looks_finished(self, tmp_path):
        def die(workspace):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a", function=die)
        assert not list((tmp_path / "a" / "parts").glob("*"))
        part, workspace = run(tmp_path / "a")
        assert part == PART
        assert workspace.reused == []

    def test_interrupted_draws_end_the_experiment_and_are_not_kept(self, tmp_path):
        draws = Draws({"x": np.zeros((1, 4))}, {}, np.array([int(Status.INTERRUPTED)], np.uint32))
        with open_workspace(tmp_path / "a", ME) as workspace, pytest.raises(KeyboardInterrupt):
            workspace.keep("x", draws)
        assert not (tmp_path / "a" / "draws").exists()

    def test_finished_draws_are_kept(self, tmp_path):
        draws = Draws({"x": np.arange(8.0).reshape(2, 4)}, {}, np.zeros(2, np.uint32))
        with open_workspace(tmp_path / "a", ME) as workspace:
            workspace.keep("x", draws)
        loaded = Draws.load(tmp_path / "a" / "draws" / "x.nc")
        np.testing.assert_array_equal(loaded.samples["x"], draws.samples["x"])

    def test_resuming_says_so(self, tmp_path):
        said = []
        run(tmp_path / "a")
        run(tmp_path / "a", say=said.append)
        assert said == ["one: already done"]


class TestRefusal:
    def test_a_different_run_is_refused_and_touches_nothing(self, tmp_path):
        run(tmp_path / "a")
        before = files(tmp_path / "a")
        with pytest.raises(FolderError, match=r"seed: there 0, asked for 1.*Nothing was touched.*--overwrite"):
            run(tmp_path / "a", OTHER)
        assert files(tmp_path / "a") == before

    def test_another_configuration_field_is_a_different_run(self, tmp_path):
        run(tmp_path / "a")
        with pytest.raises(FolderError, match="size: there None, asked for 3"):
            run(tmp_path / "a", ME | {"size": 3})

    def test_a_folder_of_somebody_else_is_refused_even_with_overwrite(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        for overwrite in (False, True):
            with pytest.raises(FolderError, match=r"holds no run of probinf \(thesis.tex"):
                run(tmp_path, overwrite=overwrite)
        assert files(tmp_path) == {"thesis.tex": b"years of work"}

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "a").write_text("")
        with pytest.raises(FolderError, match="is a file"):
            run(tmp_path / "a")

    def test_overwrite_removes_the_other_run_and_nothing_else(self, tmp_path):
        run(tmp_path / "a")
        (tmp_path / "a" / "notes.txt").write_text("mine")
        said = []
        _, workspace = run(tmp_path / "a", OTHER, overwrite=True, say=said.append)
        assert workspace.reused == []
        assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
        assert "replacing" in said[0]

    def test_overwrite_does_not_throw_away_the_same_run(self, tmp_path):
        run(tmp_path / "a")
        _, workspace = run(tmp_path / "a", function=refuse_to_compute, overwrite=True)
        assert workspace.reused == ["one"]

    def test_a_cut_identity_is_refused(self, tmp_path):
        run(tmp_path / "a")
        (tmp_path / "a" / "run.json").write_text('{"experiment": "x", "se')
        assert differences(tmp_path / "a", ME) == ["its run.json cannot be read"]
        with pytest.raises(FolderError, match="cannot be read"):
            run(tmp_path / "a")

    @pytest.mark.skipif(sys.platform == "win32", reason="no advisory locks on Windows")
    def test_a_second_process_is_refused(self, tmp_path):
        holder = textwrap.dedent(f"""
            import sys
            from probinf.core._files import locked
            from pathlib import Path
            folder = Path({str(tmp_path / "a")!r})
            folder.mkdir()
            with locked(folder):
                print("held", flush=True)
                sys.stdin.readline()
        """)
        command = [sys.executable, "-c", holder]
        root = Path(__file__).parents[2]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match="another run is writing"):
                run(tmp_path / "a")
            process.stdin.write("\n")
        assert run(tmp_path / "a")[0] == PART  # the lock went with the process


class TestWriting:
    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        file = tmp_path / "a.json"
        write_text(file, "old")

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_text(file, "new")
        monkeypatch.undo()
        assert files(tmp_path) == {"a.json": b"old"}

    def test_json_must_be_finite(self, tmp_path):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"x": float("nan")})
        assert not (tmp_path / "a.json").exists()

    def test_text_is_utf8(self, tmp_path):
        write_text(tmp_path / "deep" / "a.txt", "10⁸ m³")
        assert (tmp_path / "deep" / "a.txt").read_bytes() == "10⁸ m³".encode()
        assert json.loads('"10⁸"') == "10⁸"
