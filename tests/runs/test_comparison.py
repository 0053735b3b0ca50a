"""What is made of the trials' logs: closed figures, from event files with known times and values."""

import types

import matplotlib.figure
import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from kerasllm.models.settings import SurfaceSettings
from kerasllm.run_directory import RunDirectory
from kerasllm.runs.comparison import (
    Outcome,
    Target,
    draw,
    draw_paths,
    in_legend,
    legend_columns,
    loss_band,
    read_scalars,
    running_mean,
    summarize,
    without_nan,
)
from kerasllm.tasks.descend import Descend

INF, NAN = float("inf"), float("nan")


def outcome(label, losses, accuracy=0.5, seconds=1.0, evaluations=()):
    finished = {"validation": {"accuracy": accuracy}, "seconds": seconds}
    trial = types.SimpleNamespace(name=label, label=label, values={"key": label}, seed=1)
    return Outcome(trial, np.array(losses), 0.1 * np.arange(len(losses)), list(evaluations), finished)


def write_session(logs, suffix, events, name="loss"):
    """Writes (step, value, wall time) as one session of a run does."""
    writer = EventFileWriter(str(logs), filename_suffix=suffix)
    for step, value, wall_time in events:
        summary = Summary(value=[Summary.Value(tag=f"train/{name}", simple_value=value)])
        writer.add_event(Event(step=step, wall_time=wall_time, summary=summary))
        summary = Summary(value=[Summary.Value(tag="train/tokens", simple_value=99)])
        writer.add_event(Event(step=step, wall_time=wall_time, summary=summary))
    writer.close()


def test_sessions_are_joined_without_the_time_between_them(tmp_path):
    write_session(tmp_path, ".a", [(1, 4.0, 100.0), (2, 3.0, 101.0), (3, 2.5, 103.0), (4, 9.0, 104.0)])
    # Killed after step 4, with a checkpoint of step 3: step 4 is trained again.
    write_session(tmp_path, ".b", [(4, 2.0, 900.0), (5, 1.0, 900.5)])
    values, seconds = read_scalars(tmp_path, "train/loss")
    assert values == [4.0, 3.0, 2.5, 2.0, 1.0]
    assert seconds == [0.0, 1.0, 3.0, 3.0, 3.5]


def test_the_running_mean_covers_a_fiftieth():
    np.testing.assert_array_equal(running_mean([4.0, 2.0, 6.0]), [4.0, 2.0, 6.0])
    values = np.arange(200.0)
    np.testing.assert_allclose(running_mean(values)[[0, 1, 2, 3, 4, 199]], [0.0, 0.5, 1.0, 1.5, 2.5, 197.5])


def test_steps_and_seconds_to_a_target():
    lines = [{"step": step, "validation": {"accuracy": value}} for step, value in ((2, 0.5), (4, 0.9), (6, 0.7))]
    run = outcome("a", [3.0, 2.0, 1.0, 0.5, 1.5, 0.4], evaluations=lines)
    assert run.first_step_at(Target("loss", 1.0)) == 3
    assert run.first_step_at(Target("loss", 0.1)) is None
    assert run.first_step_at(Target("accuracy", 0.7)) == 4
    figures = run.figures("accuracy", Target("loss", 0.5))
    assert (figures["steps_to_target"], figures["seconds_to_target"]) == (4, 0.3)
    never = run.figures("accuracy", Target("accuracy", 0.95))
    assert (never["steps_to_target"], never["seconds_to_target"]) == (None, None)


def test_mean_and_spread_over_the_seeds():
    outcomes = [outcome("a", [9.0, 1.0], 0.5), outcome("b", [3.0]), outcome("a", [9.0, 2.0], 0.9)]
    a, b = summarize(outcomes, "accuracy", Target("loss", 1.0))
    assert (a["label"], a["trials"], a["values"]) == ("a", 2, {"key": "a"})
    assert a["train_loss"] == {"mean": 1.5, "spread": pytest.approx(0.5**0.5), "count": 2}
    assert a["validation_accuracy"] == {"mean": 0.7, "spread": pytest.approx(0.08**0.5), "count": 2}
    assert a["steps_to_target"] == {"mean": 2.0, "spread": None, "count": 1}
    assert b["train_loss"] == {"mean": 3.0, "spread": None, "count": 1}
    assert b["steps_to_target"] == {"mean": None, "spread": None, "count": 0}


def test_a_band_ends_with_the_shortest_trial():
    band = loss_band([outcome("a", [4.0, 2.0, 1.0]), outcome("a", [6.0, 1.0])])
    np.testing.assert_array_equal(band, [[4.0, 1.0], [5.0, 1.5], [6.0, 2.0]])


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([5.0, 0.5], "log"),
        ([5.0, 0.6], "linear"),
        ([5.0, -0.1], "linear"),
        ([NAN, INF], "linear"),
        ([5, INF], "linear"),
    ],
)
def test_the_picture(tmp_path, monkeypatch, losses, scale):
    drawn = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k)
    )
    draw(tmp_path / "c.png", "title", [outcome("one", losses), outcome("two", [2.0])], Target("loss", 1.0))
    (figure,) = drawn
    (axes,) = figure.axes
    assert axes.get_yscale() == scale
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two", "target: loss 1"]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, losses[0]], [2, losses[1]]])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_label_is_broken_into_lines_and_its_dollars_are_none_of_a_formula():
    assert in_legend("bias$|head$") == r"bias\$|head\$"
    assert [len(line) for line in in_legend("word " * 20).splitlines()] == [69, 29]


def test_a_legend_has_two_columns_where_there_are_many_short_labels():
    assert [legend_columns(labels) for labels in (["a"] * 6, ["a"] * 7, ["a" * 36] * 7)] == [1, 2, 1]


def test_the_ways_over_a_surface(tmp_path, monkeypatch):
    """One panel for each surface; a way begins at the start and goes through what was logged."""
    drawn, outcomes = [], []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k)
    )
    for number, landscape in enumerate(("valley", "beale")):
        directory = RunDirectory(tmp_path / landscape)
        directory.create()
        for name, values in (("x", [number, 3.0]), ("y", [0.5, 4.0])):
            write_session(directory.logs_path, f".{name}", [(1, values[0], 1.0), (2, values[1], 2.0)], name)
        recipe = types.SimpleNamespace(model=SurfaceSettings(landscape=landscape), task_class=Descend)
        each = outcome(landscape, [1.0])
        each.trial.recipe, each.trial.directory = recipe, directory
        outcomes.append(each)
    draw_paths(tmp_path / "paths.png", outcomes)
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["valley", "beale"]
    ways = [next(line for line in axes.lines if line.get_label() == axes.get_title()) for axes in figure.axes]
    np.testing.assert_array_equal(ways[0].get_xydata(), [[-2.0, 1.0], [0.0, 0.5], [3.0, 4.0]])
    np.testing.assert_array_equal(ways[1].get_xydata(), [[1.0, 1.5], [1.0, 0.5], [3.0, 4.0]])
    assert (tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")


def test_json_gets_null_for_what_is_no_number():
    assert without_nan({"a": [1, NAN, {"b": -INF}], "c": "x"}) == {"a": [1, None, {"b": None}], "c": "x"}
