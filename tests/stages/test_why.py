"""Why a picture is taken for what it is: only a run that gives pictures one label can be asked."""

import types

import pytest

import kerasllm.stages.why
from kerasllm.errors import UserError
from kerasllm.stages.why import why


@pytest.mark.parametrize(
    ("inputs", "recipe"),
    [
        ({"image_bytes": "image"}, {}),
        ({"image_bytes": "image"}, {"classification": types.SimpleNamespace(kind="number")}),
        ({"text": "text"}, {"classification": types.SimpleNamespace(kind="one_label")}),
    ],
    ids=["no labels", "a number", "texts"],
)
def test_other_runs_are_refused(tmp_path, monkeypatch, inputs, recipe):
    run = types.SimpleNamespace(
        task=types.SimpleNamespace(inputs=inputs), model=None, recipe=types.SimpleNamespace(**recipe)
    )
    monkeypatch.setattr(kerasllm.stages.why, "load_run", lambda run_dir: run)
    with pytest.raises(UserError, match=r"^runs/x: is no run that gives pictures one label"):
        why("runs/x", "cat.png", tmp_path / "why.png")
    assert not (tmp_path / "why.png").exists()
