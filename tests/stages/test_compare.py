"""Trials side by side: what is shown is what the runs wrote, nothing runs twice, and one failure stops no other."""

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf
from rich.console import Console
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import kerasllm.stages.compare
from kerasllm.errors import UserError
from kerasllm.stages.compare import compare, show_settings

RECIPE = """\
task: translate
seed: 1
data: {source: built_in, name: dates, train: 300, validation: 4}
tokenizer: {kind: characters}
batching: {tokens_per_batch: 512, max_sequence_length: 48}
model: {num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16, max_sequence_length: 48}
generation: {beam_size: 1, max_length_ratio: 0.1, max_extra_tokens: 2}
training: {train_steps: 3, schedule: {name: constant}}
"""
OVER = ["training.peak_learning_rate=0.01,0.001"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def compared(recipe, tmp_path_factory):
    """Two settings with two seeds: the directory, and the finished command."""
    directory = tmp_path_factory.mktemp("compared")
    command = [sys.executable, "-m", "kerasllm", "compare", str(recipe), "--over", *OVER, "--seeds", "2", "--json"]
    command += ["--run-dir", str(directory), "--jobs", "2", "--target", "loss=1000"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "140"})
    assert done.returncode == 0, done.stderr
    return directory, done


@pytest.fixture
def copied(compared, tmp_path):
    """A copy of the comparison in which one trial has not been run."""
    directory = tmp_path / "copy"
    shutil.copytree(compared[0], directory)
    shutil.rmtree(directory / "trials" / "peak_learning_rate=0.001,seed=2")
    return directory


def losses_of(directory, name):
    """The training losses that a trial wrote, read in another way than by the stage."""
    accumulator = EventAccumulator(str(directory / "trials" / name / "logs"), {"tensors": 0}).Reload()
    return [tf.make_ndarray(event.tensor_proto).item() for event in accumulator.Tensors("train/loss")]


def test_the_figures_are_those_of_the_runs(compared):
    directory, done = compared
    report = json.loads(done.stdout)
    for setting, rate in zip(report["settings"], ("0.01", "0.001"), strict=True):
        names = [f"peak_learning_rate={rate},seed={seed}" for seed in (1, 2)]
        last = [losses_of(directory, name)[-1] for name in names]
        manifests = [json.loads((directory / "trials" / name / "manifest.json").read_text()) for name in names]
        validation = [manifest["finished"]["validation"]["loss"] for manifest in manifests]
        assert setting["values"] == {"training.peak_learning_rate": float(rate)}
        assert setting["train_loss"]["mean"] == pytest.approx(statistics.mean(last))
        assert setting["train_loss"]["spread"] == pytest.approx(statistics.stdev(last))
        assert setting["validation_loss"]["mean"] == pytest.approx(statistics.mean(validation))
        assert setting["steps_to_target"] == {"mean": 1.0, "spread": 0.0, "count": 2}
        assert setting["seconds_to_target"]["mean"] == 0.0
    assert report["failed"] == {}
    rows = list(csv.DictReader((directory / "comparison.csv").open()))
    assert [(row["training.peak_learning_rate"], row["seed"]) for row in rows] == [
        (rate, seed) for rate in ("0.01", "0.001") for seed in ("1", "2")
    ]
    assert [float(row["train_loss"]) for row in rows] == [trial["train_loss"] for trial in report["trials"]]
    assert (directory / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "steps to loss 1000" in done.stderr
    assert done.stderr.splitlines()[-1] == f"next: tensorboard --logdir {directory}/trials"


def test_tensorboard_gets_hyperparameters_and_final_figures(compared):
    directory, _ = compared
    (path,) = (directory / "trials" / "peak_learning_rate=0.001,seed=2" / "logs").glob("*.hparams")
    values = {value.tag: value for event in EventFileLoader(str(path)).Load() for value in event.summary.value}
    content = values.pop(metadata.SESSION_START_INFO_TAG).metadata.plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert {name: value.number_value for name, value in hparams.items()} == {
        "training.peak_learning_rate": 0.001,
        "seed": 2,
    }
    last = losses_of(directory, "peak_learning_rate=0.001,seed=2")[-1]
    assert tf.make_ndarray(values["final/train_loss"].tensor).item() == last
    (path,) = (directory / "trials").glob("*.hparams")
    (value,) = [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    experiment = metadata.parse_experiment_plugin_data(value.metadata.plugin_data.content)
    assert [info.name for info in experiment.hparam_infos] == ["training.peak_learning_rate", "seed"]
    assert set(values) == {info.name.tag for info in experiment.metric_infos}


def test_what_has_ended_is_not_run_again(compared, recipe, monkeypatch):
    directory, done = compared
    monkeypatch.setattr(kerasllm.stages.compare, "start_trial", lambda *arguments: pytest.fail("a trial was started"))
    report = compare(str(recipe), OVER, directory, num_seeds=2, target="loss=1000")
    assert report == json.loads(done.stdout)
    assert len(list((directory / "trials").rglob("*.hparams"))) == 5


def test_a_failed_trial_is_named_and_the_others_are_shown(copied, recipe, monkeypatch, capsys):
    started = []

    def fail(trial, path, data_dir):
        started.append((trial.name, path, data_dir))
        trial.log_path.write_text("step 1\nerror: the disk is full\n\n")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])

    monkeypatch.setattr(kerasllm.stages.compare, "start_trial", fail)
    report = compare(str(recipe), OVER, copied, num_seeds=2)
    name = "peak_learning_rate=0.001,seed=2"
    assert started == [(name, str(recipe), None)]
    assert report["failed"] == {name: "the disk is full"}
    assert [setting["trials"] for setting in report["settings"]] == [2, 1]
    said = capsys.readouterr().err
    assert f"{name}: failed: the disk is full; see {copied}/trials/{name}.log" in said
    monkeypatch.setattr(
        kerasllm.stages.compare, "plan_trials", lambda *a, plan=kerasllm.stages.compare.plan_trials: plan(*a)[3:]
    )
    with pytest.raises(UserError, match="all 1 trials failed; the disk is full"):
        compare(str(recipe), OVER, copied, num_seeds=2)


def test_when_stopped_the_running_trial_saves(copied, recipe, monkeypatch):
    code = """
import signal, sys, time
def save(*_):
    open(sys.argv[1], "a").write("saved")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1], "w").close()
time.sleep(60)
"""
    saved = copied / "saved"

    def start(trial, *_):
        threading.Thread(target=stop_when_begun).start()
        return subprocess.Popen([sys.executable, "-c", code, str(saved)])

    def stop_when_begun():
        while not saved.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(kerasllm.stages.compare, "start_trial", start)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped; 3 of 4 trials have ended; the same command goes on"):
        compare(str(recipe), OVER, copied, num_seeds=2)
    assert saved.read_text() == "saved"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("over", "options", "message"),
    [
        (["training.peak_learning_rte=1"], {}, "--over training.peak_learning_rte: unknown key; did you mean"),
        (OVER, {"target": "los=1"}, "--target los=1: no metric 'los'; did you mean 'loss'"),
        (OVER, {"target": "loss=low"}, "--target loss=low: must be METRIC=NUMBER"),
        (OVER, {"overrides": ["data.trian=3"]}, "--set data.trian: unknown key"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_written(recipe, tmp_path, over, options, message):
    with pytest.raises(UserError, match=message):
        compare(str(recipe), over, tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


def test_bad_data_is_said_once(recipe, tmp_path):
    files = "{source: a.txt, target: b.txt}"
    data = f"data={{source: parallel_text, train: {files}, validation: {files}}}"
    with pytest.raises(UserError, match=r"a.txt: no such file"):
        compare(str(recipe), OVER, tmp_path / "runs", overrides=[data])
    assert not (tmp_path / "runs").exists()


def setting(label, values, accuracy, trained, stored):
    figures = {"train_loss": 0.5, "validation_accuracy": accuracy, "seconds": 9.0, "stored_megabytes": stored}
    figures |= {"trained_parameters": trained, "parameters": 22_861_826}
    entries = {name: {"mean": value, "spread": None, "count": 1} for name, value in figures.items()}
    return {"label": label, "values": values, "trials": 1, **entries}


def columns_of(settings, capsys):
    show_settings(settings, "accuracy", None, 1)
    lines = capsys.readouterr().err.splitlines()
    return lines[2].split(), [line.split() for line in lines if line.strip().startswith("tuning=")]


def test_ways_to_adapt_are_shown_with_what_they_train_and_store(capsys, monkeypatch):
    """Also where they do not differ in it; what is compared otherwise is shown only where it differs. No number
    is broken on a narrow terminal."""
    monkeypatch.setattr("kerasllm.terminal.console", Console(stderr=True, width=88))
    full = setting("tuning=full", {"tuning": {"name": "full"}}, 0.9, 22_861_826, 91.4)
    lora = setting("tuning=lora", {"tuning": {"name": "lora"}}, 0.91, 148_226, 0.6)
    names, rows = columns_of([full, lora], capsys)
    assert names == ["setting", "train", "loss", "accuracy", "seconds", "trained", "of", "all", "MB", "stored"]
    assert rows == [
        ["tuning=lora", "0.5", "0.91", "9", "148,226", "22.86", "M", "0.6"],
        ["tuning=full", "0.5", "0.9", "9", "22.86", "M", "22.86", "M", "91.4"],
    ]
    assert "trained" in columns_of([lora], capsys)[0]
    others = [{**each, "values": {"model.dropout": 0.1}} for each in (full, lora)]
    assert columns_of(others, capsys)[0][-3:] == ["trained", "MB", "stored"]
    assert columns_of(others[:1] * 2, capsys)[0][-1] == "seconds"
    old = [{**each, "trained_parameters": {"mean": None, "spread": None, "count": 0}} for each in (full, lora)]
    assert "trained" not in columns_of(old, capsys)[0]


def test_settings_with_long_names_are_numbered_and_named_below(capsys, monkeypatch):
    monkeypatch.setattr("kerasllm.terminal.console", Console(stderr=True, width=140))
    ways = [f"tuning=only, variables={'bias|' * 12}{number}" for number in range(2)]
    show_settings([setting(way, {"tuning": {}}, 0.1 * n, 10, 1.0) for n, way in enumerate(ways)], "accuracy", None, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines[4:6]] == ["1", "2"]
    assert lines[-2:] == [f"setting 1: {ways[1]}", f"setting 2: {ways[0]}"]
