"""Checkpoints: bits come back, damage is noticed, and something whole is always left."""

import keras
import numpy as np
import pytest

from kerasllm.errors import UserError
from kerasllm.run_directory import RunDirectory
from kerasllm.training.checkpoints import Checkpoints, average, load_weights, read_variables, write_variables


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(1, name="b")])


def save(checkpoints, step, value=0.0, score=None, loss=1.0):
    progress = {"score": score, "validation": {"loss": loss}}
    checkpoints.save(step, {"w": np.full(2, value, "float32")}, {"m": np.zeros(2)}, progress)


def test_variables_come_back_to_the_bit(model, tmp_path):
    checkpoints = Checkpoints(RunDirectory(tmp_path))
    before = read_variables(model.weights)
    checkpoints.save(7, before, {}, {"score": None})
    for variable in model.weights:
        variable.assign(variable + 1.0)
    latest = checkpoints.latest()
    write_variables(model.weights, latest.load("weights"), "here")
    assert latest.progress["step"] == 7
    for name, array in read_variables(model.weights).items():
        np.testing.assert_array_equal(array, before[name])


def test_last_and_best_are_kept(tmp_path):
    checkpoints = Checkpoints(RunDirectory(tmp_path), keep_last=2, keep_best=2)
    for step, score in enumerate([0.1, 0.9, 0.2, 0.8, None, 0.3, None]):
        save(checkpoints, step, score=score)
    assert [int(c.path.name[5:]) for c in checkpoints.saved()] == [1, 3, 5, 6]
    assert [c.progress["step"] for c in checkpoints.best()] == [1, 3]
    assert not (tmp_path / "checkpoints" / "step_00000001" / "state.npz").exists()
    assert checkpoints.best()[0].is_whole()
    assert checkpoints.latest().progress["step"] == 6


def test_of_equal_scores_the_smaller_loss_counts_and_then_the_earlier_step(tmp_path):
    checkpoints = Checkpoints(RunDirectory(tmp_path), keep_best=3)
    for step, (score, loss) in enumerate([(1.0, 0.3), (1.0, 0.1), (0.9, 0.0), (1.0, 0.1), (1.0, 0.2)]):
        save(checkpoints, step, score=score, loss=loss)
    assert [c.progress["step"] for c in checkpoints.best()] == [1, 3, 4]


def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path, capsys):
    checkpoints = Checkpoints(RunDirectory(tmp_path))
    save(checkpoints, 1)
    save(checkpoints, 2)
    file = tmp_path / "checkpoints" / "step_00000002" / "weights.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert checkpoints.latest().progress["step"] == 1
    assert "step_00000002: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["weights.npz", "state.npz", "progress.json", "manifest.json"])
def test_a_missing_file_is_damage_too(tmp_path, capsys, name):
    checkpoints = Checkpoints(RunDirectory(tmp_path), keep_last=3)
    save(checkpoints, 1, score=0.1)
    save(checkpoints, 2, score=0.2)
    (tmp_path / "checkpoints" / "step_00000002" / name).unlink()
    save(checkpoints, 3)
    (tmp_path / "checkpoints" / "step_00000003" / "weights.npz").unlink()
    assert checkpoints.latest().progress["step"] == 1
    assert "step_00000002: damaged" in capsys.readouterr().err


def test_nothing_is_left_of_a_failed_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(RunDirectory(tmp_path))
    save(checkpoints, 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="step_00000002: cannot be written: No space left on device"):
        save(checkpoints, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert checkpoints.latest().progress["step"] == 1


def test_weights_of_another_model_are_refused_whole(model):
    before = read_variables(model.weights)
    arrays = {name: array + 1.0 for name, array in before.items()}
    kernel = next(name for name in arrays if name.endswith("b/kernel"))
    arrays[kernel] = np.zeros((5, 1), "float32")
    with pytest.raises(UserError, match=r"here: .*b/kernel: the model has \(3, 1\), the file has \(5, 1\)"):
        write_variables(model.weights, arrays, "here")
    for name, array in read_variables(model.weights).items():
        np.testing.assert_array_equal(array, before[name])


def test_average_is_the_mean(tmp_path):
    checkpoints = Checkpoints(RunDirectory(tmp_path), keep_last=3)
    for step, value in enumerate([1.0, 2.0, 6.0]):
        checkpoints.save(step, {"w": np.float32([value])}, {}, {})
    mean = average(checkpoints.saved())
    assert mean["w"] == 3.0
    assert mean["w"].dtype == np.float32


def test_load_weights_prefers_the_chosen_then_the_best(model, tmp_path):
    run = RunDirectory(tmp_path)
    checkpoints = Checkpoints(run, keep_last=3)
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        load_weights(model, run)
    weights = read_variables(model.weights)
    for step, score in ((1, 0.5), (2, 0.1)):
        checkpoints.save(step, weights, {}, {"score": score, "validation": {"loss": 1.0}})
    assert load_weights(model, run)["step"] == 1
    checkpoints.choose(weights, {"chosen": "the mean"})
    assert load_weights(model, run) == {"chosen": "the mean"}


def change(run, what):
    """As when a file of the run is taken from another one."""
    if what == "data":
        run.write_manifest(prepared="f" * 64)
    else:
        path = {"recipe": run.recipe_path, "tokenizer": run.tokenizer_path / "tokenizer.json"}[what]
        path.write_text("another")


@pytest.mark.parametrize("what", ["recipe", "tokenizer", "data"])
def test_what_was_saved_with_another_recipe_tokenizer_or_data_is_refused(model, tmp_path, what):
    run = RunDirectory(tmp_path)
    run.tokenizer_path.mkdir()
    run.recipe_path.write_text("task: translate")
    (run.tokenizer_path / "tokenizer.json").write_text("{}")
    run.write_manifest(prepared="0123456789abcdef" * 4)
    weights = read_variables(model.weights)
    Checkpoints(run).save(1, weights, {}, {"score": 0.5, "validation": {"loss": 1.0}})
    assert Checkpoints(run).latest().progress["step"] == 1
    change(run, what)
    digits = "[0-9a-f]{12}"
    message = f"step_00000001: was saved with another {what} \\({digits}, and the run has {digits}\\); put back"
    with pytest.raises(UserError, match=message):
        Checkpoints(run).latest()
    if what == "data":
        assert load_weights(model, run)["step"] == 1, "answers do not depend on it"
    else:
        with pytest.raises(UserError, match=message):
            load_weights(model, run)
        Checkpoints(run).choose(weights, {})
        change(run, what)
        assert load_weights(model, run) == {}
        (run.recipe_path if what == "recipe" else run.tokenizer_path / "tokenizer.json").unlink()
        with pytest.raises(UserError, match=f"chosen: was saved with another {what} "):
            load_weights(model, run)


def test_the_fingerprints_are_those_of_the_beginning(tmp_path):
    """A recipe that is edited while the run is trained is not the one that the weights come from."""
    run = RunDirectory(tmp_path)
    run.recipe_path.write_text("seed: 1")
    checkpoints = Checkpoints(run)
    assert checkpoints.latest() is None
    before = run.fingerprints()
    run.recipe_path.write_text("seed: 2")
    save(checkpoints, 1)
    assert checkpoints.saved()[-1].manifest["saved_with"] == before
    with pytest.raises(UserError, match="another recipe"):
        Checkpoints(run).latest()


def test_after_a_fall_back_the_newer_ones_do_not_displace_what_is_saved(tmp_path):
    checkpoints = Checkpoints(RunDirectory(tmp_path))
    for step in (1, 2, 3):
        save(checkpoints, step, score=float(step))
    (tmp_path / "checkpoints" / "step_00000003" / "state.npz").unlink()
    assert checkpoints.latest().progress["step"] == 2
    checkpoints.go_back_to(2)
    assert [checkpoint.progress["step"] for checkpoint in checkpoints.best()] == [2]
    save(checkpoints, 3, score=0.5)
    assert checkpoints.latest().progress["step"] == 3
    checkpoints.go_back_to(0)
    assert checkpoints.saved() == []


def test_dropping_the_state_does_not_vouch_for_damaged_weights(tmp_path):
    checkpoints = Checkpoints(RunDirectory(tmp_path), keep_last=1)
    save(checkpoints, 1, score=1.0)
    weights = tmp_path / "checkpoints" / "step_00000001" / "weights.npz"
    weights.write_bytes(weights.read_bytes()[:-1])
    save(checkpoints, 2)
    assert not weights.with_name("state.npz").exists()
    assert not checkpoints.best()[0].is_whole()


def test_code_in_a_file_is_never_run(tmp_path):
    checkpoints = Checkpoints(RunDirectory(tmp_path))
    checkpoints.save(1, {"w": np.array([print], dtype=object)}, {}, {})
    with pytest.raises(UserError, match=r"weights\.npz: cannot be read"):
        checkpoints.latest().load("weights")
