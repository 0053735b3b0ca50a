"""What is written is complete or absent, and errors say what could not be written."""

import errno
import os
import shutil

import pytest

from kerasllm.errors import UserError
from kerasllm.run_directory import (
    RunDirectory,
    atomic_directory,
    atomic_write_text,
    remove_leftovers,
    sha256_of_file,
)


def full_disk(*_arguments, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    atomic_write_text(path, "Grüße\n")
    monkeypatch.setattr(os, "fsync", full_disk)
    message = r"recipe\.yaml: cannot be written: No space left on device \(0\.0 MB needed, [\d.,]+ MB were free\); free"
    with pytest.raises(UserError, match=message):
        atomic_write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "Grüße\n"
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    atomic_write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_directory_appears_at_the_end_only(tmp_path):
    target = tmp_path / "models" / "3"
    with atomic_directory(target) as directory:
        assert directory.parent == target.parent
        assert directory.name.startswith(".")
        (directory / "inside").mkdir()
        (directory / "inside" / "file").write_text("x")
        assert not target.exists()
    assert (target / "inside" / "file").read_text() == "x"
    assert os.listdir(target.parent) == ["3"]
    assert target.stat().st_mode == target.parent.stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_error_inside_leaves_nothing(tmp_path, error):
    def write(directory):
        (directory / "file").write_text("x")
        raise error

    with pytest.raises(type(error)), atomic_directory(tmp_path / "3") as directory:
        write(directory)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("RESOURCE_EXHAUSTED: a/b.data: No space left on device"),
    ],
)
def test_a_full_disk_inside_names_the_target(tmp_path, error):
    target = tmp_path / "3"
    with pytest.raises(UserError, match=r"/3: cannot be written: No space left on device"), atomic_directory(target):
        raise error
    assert os.listdir(tmp_path) == []


def test_a_full_disk_at_the_rename_names_the_target(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "rename", full_disk)
    with pytest.raises(UserError, match=r"/3: cannot be written"), atomic_directory(tmp_path / "3"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_missing_input_inside_is_not_called_a_failed_write(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "3"):
        (tmp_path / "input.txt").read_text()


def test_an_existing_target_is_refused(tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(UserError, match=r"/3: exists already"), atomic_directory(tmp_path / "3"):
        pass
    with pytest.raises(UserError, match=r"/4: exists already"), atomic_directory(tmp_path / "4"):
        (tmp_path / "4").mkdir()
    assert sorted(os.listdir(tmp_path)) == ["3", "4"]


def test_a_place_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "3"
    with pytest.raises(UserError, match="cannot be written: Not a directory"), atomic_directory(target):
        pass
    with pytest.raises(UserError, match=r"file: cannot be written: File exists"):
        RunDirectory(tmp_path / "file").create()


def test_metrics_survive_a_line_that_was_cut_off(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert not run.exists()
    run.create()
    assert run.read_metrics() == []
    run.append_metrics({"step": 1, "text": "Grüße"})
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 2, "te')
    assert run.read_metrics() == [{"step": 1, "text": "Grüße"}]
    run.append_metrics({"step": 2})
    assert run.read_metrics() == [{"step": 1, "text": "Grüße"}, {"step": 2}]


def test_metrics_after_the_step_that_a_run_goes_on_from_are_cut(tmp_path):
    """Otherwise they would be there twice. Lines that stay keep their bytes."""
    run = RunDirectory(tmp_path)
    run.cut_metrics(0)
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "text": "Grüße"})
    before = run.metrics_path.read_bytes()
    run.cut_metrics(3)
    assert run.metrics_path.read_bytes() == before
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 1')
    run.cut_metrics(2)
    assert run.metrics_path.read_bytes() == b"".join(before.splitlines(keepends=True)[:2])
    run.cut_metrics(0)
    assert run.metrics_path.read_bytes() == b""


def test_what_is_replaced_gives_way_at_the_end(tmp_path):
    target = tmp_path / "chosen"
    for content in ("old", "new"):
        with atomic_directory(target, replace=True) as directory:
            (directory / "file").write_text(content)
            assert content == "old" or (target / "file").read_text() == "old"
    assert (target / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["chosen"]


def test_leftovers_of_killed_processes_and_nothing_else(tmp_path):
    with atomic_directory(tmp_path / "3") as directory:
        (directory / "inside").mkdir()
        shutil.copytree(directory, tmp_path / directory.name.replace("3", "4"))
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / directory.name).write_text("a file of the same kind")
    kept = [".hidden", ".notes.tmp", "a.1-12345678.tmp"]
    for name in kept:
        (tmp_path / name).write_text("of the person")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*kept, "3", "inside", "deep"])


def test_a_full_disk_behind_the_error_of_a_library(tmp_path):
    """A zip file that cannot be closed, say, after a write to it has failed."""

    def write():
        try:
            full_disk()
        finally:
            raise ValueError("can't close while there is an open handle")

    with pytest.raises(UserError, match=r"/3: .* \(2\.5 MB needed, "), atomic_directory(tmp_path / "3", 2_500_000):
        write()
    assert os.listdir(tmp_path) == []


def test_fingerprints_follow_the_content(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.fingerprints() == {"recipe": None, "tokenizer": None, "labels": None, "data": None}
    run.tokenizer_path.mkdir()
    run.recipe_path.write_text("name: x")
    (run.tokenizer_path / "a").write_text("1")
    run.write_manifest(prepared="abc")
    first = run.fingerprints()
    assert first["data"] == "abc"
    assert first == RunDirectory(tmp_path).fingerprints()
    (run.tokenizer_path / "a").rename(run.tokenizer_path / "b")
    run.write_manifest(finished={})
    second = run.fingerprints()
    assert [name for name in first if first[name] != second[name]] == ["tokenizer"]
    run.recipe_path.write_text("name: y")
    assert run.fingerprints()["recipe"] != second["recipe"]


def test_a_run_exists_once_its_recipe_is_written(tmp_path):
    run = RunDirectory(tmp_path)
    run.create()
    assert not run.exists()
    atomic_write_text(run.recipe_path, "name: x\n")
    assert run.exists()


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_directory_is_held_by_one_alone(tmp_path):
    path = tmp_path / "run"
    directory = RunDirectory(path)
    with directory.held(), pytest.raises(UserError, match="another process trains here"), RunDirectory(path).held():
        pass
    with directory.held():
        pass
