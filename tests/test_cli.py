"""The command line: what goes where, which exit code, and what a person reads. The stages are stand-ins here."""

import io
import json
import sys
import time
import types

import pytest

import kerasllm.cli
from kerasllm.errors import UserError

RECIPE = """# Dates.
task: translate
data: {source: built_in, name: dates, train: 10}
training: {train_steps: 2}
"""


@pytest.fixture
def stages(monkeypatch):
    """Stand-ins for the stages: `outcomes` says what each returns or raises, `calls` what it was given."""
    compared = {"logs": "runs/c/trials", "failed": {}}
    outcomes = {"prepare": {}, "train": {}, "compare": compared, "evaluate": {}, "predict": [], "export": {}}
    calls = []

    def stand_in(name):
        def stage(*arguments, **options):
            calls.append((name, (*arguments, options) if options else arguments))
            if isinstance(outcomes[name], BaseException):
                raise outcomes[name]
            return outcomes[name]

        return types.SimpleNamespace(**{name: stage})

    for name in outcomes:
        monkeypatch.setitem(sys.modules, f"kerasllm.stages.{name}", stand_in(name))
    monkeypatch.setattr(kerasllm.cli, "load_tensorflow", lambda without: None)
    monkeypatch.delenv("KERASLLM_DATA", raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    return types.SimpleNamespace(outcomes=outcomes, calls=calls)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs one command in a directory that holds `r.yaml`; returns exit code, standard output and error."""
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = kerasllm.cli.main(arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_help_is_fast_and_loads_click_only(run_python):
    code = """
import sys
from kerasllm.cli import main
assert main(["--help"]) == 0
heavy = {"tensorflow", "keras", "numpy", "pydantic", "rich", "ruamel.yaml"} & set(sys.modules)
assert not heavy, heavy
"""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        result = run_python("-c", code)
        seconds.append(time.monotonic() - started)
        assert result.returncode == 0, result.stderr
        assert "Commands:" in result.stdout
    assert min(seconds) < 1.0, seconds  # 0.4 s is the aim; a busy machine is allowed more


def test_recipes_load_no_tensorflow(run_python):
    code = """
import sys
from kerasllm.cli import main
assert main(["recipes"]) == 0
assert not {"tensorflow", "keras"} & set(sys.modules)
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert "translate/" in result.stdout


@pytest.mark.parametrize(
    "command",
    [(), *((name,) for name in ("recipes", "new", "prepare", "train", "compare", "evaluate", "predict", "export"))],
)
def test_every_command_has_help_with_an_example(run, command):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert "\n  kerasllm " in out


def test_commands_are_listed_in_the_order_of_use(run):
    _, out, _ = run()
    names = ["recipes", "new", "prepare", "preview", "train", "compare", "evaluate", "predict", "why", "export"]
    assert [line.split()[0] for line in out[out.index("Commands:") :].splitlines()[1:]] == names


def test_version(run):
    assert run("--version") == (0, f"kerasllm, version {kerasllm.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "r.yaml"], "error: No such command 'trian'. Did you mean 'train'?"),
        (["train", "r.yaml", "--run-dri", "x"], "error: No such option '--run-dri'. Did you mean '--run-dir'?"),
        (["train", "r.yaml"], "error: Missing option '--run-dir'."),
        (["train", "x.yaml", "--run-dir", "x"], "error: x.yaml: no such file and no recipe of that name"),
        (["prepare", "r.yaml", "--set", "seed"], "error: --set seed: must be section.key=value"),
        (["prepare", "r.yaml", "--set", "seed=x"], 'error: --set seed: must be an integer, found "x"'),
        (["evaluate", "x", "--split", "tset"], "error: Invalid value for '--split': 'tset' is not one of"),
        (["predict", "x", "--input", "none.txt"], "error: Invalid value for '--input': 'none.txt': No such file"),
        (["predict", "x", "text", "--input", "r.yaml"], "error: texts were given both as arguments and by --input"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, stages, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message), err
    assert err.count("\n") == 1
    assert not stages.calls


def test_an_error_of_a_stage_is_one_line_and_exit_code_2(run, stages):
    stages.outcomes["evaluate"] = UserError("runs/x: holds no run")
    assert run("evaluate", "runs/x") == (2, "", "error: runs/x: holds no run\n")


def test_a_fault_is_one_line_and_exit_code_1(run, stages):
    stages.outcomes["evaluate"] = ValueError("first\nsecond")
    code, out, err = run("evaluate", "runs/x")
    assert (code, out) == (1, "")
    assert err == "error: unexpected ValueError: first second; run again with --debug for the traceback\n"
    stages.outcomes["evaluate"] = EOFError()
    code, out, err = run("evaluate", "runs/x")
    assert (code, out) == (1, "")
    assert err.endswith("error: unexpected EOFError; run again with --debug for the traceback\n")


@pytest.mark.parametrize(("error", "code"), [(ValueError("x"), 1), (UserError("x"), 2)])
def test_a_traceback_with_debug(run, stages, error, code):
    stages.outcomes["evaluate"] = error
    found, _, err = run("evaluate", "runs/x", "--debug")
    assert found == code
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_control_c(run, stages):
    stages.outcomes["train"] = KeyboardInterrupt()
    code, out, err = run("train", "r.yaml", "--run-dir", "x")
    assert (code, out) == (130, "")
    assert err.strip() == "stopped; type the same command again to go on"
    stages.outcomes["train"] = KeyboardInterrupt("stopped after step 7, which is saved")
    assert run("train", "r.yaml", "--run-dir", "x")[2].strip() == "stopped after step 7, which is saved"


def test_json_is_the_only_thing_on_standard_output(run, stages):
    stages.outcomes["evaluate"] = {"bleu": 36.5, "text": "Grüße"}
    code, out, err = run("evaluate", "runs/x", "--json")
    assert code == 0
    assert out.count("\n") == 1
    assert json.loads(out) == {"bleu": 36.5, "text": "Grüße"}
    assert err == "next: kerasllm export runs/x --to saved_models/x\n"
    assert run("evaluate", "runs/x")[1] == ""


def test_each_command_passes_its_arguments_and_names_the_next(run, stages, tmp_path):
    data = ("--data-dir", str(tmp_path))
    _, _, err = run("prepare", "r.yaml", "--set", "seed=5", *data)
    assert err == f"next: kerasllm train r.yaml --run-dir runs/r --set seed=5 --data-dir {tmp_path}\n"
    _, _, err = run("train", "r.yaml", "--run-dir", "runs/my run", "--set", "seed=6", *data)
    assert err == f"next: kerasllm evaluate 'runs/my run' --data-dir {tmp_path}\n"
    run("evaluate", "runs/x", "--split", "validation", "--set", "generation.beam_size=1", *data)
    run("predict", "runs/x", "a", "b c", *data)
    for inputs, asked in ((["text"], "TEXT"), (["image_bytes"], "PICTURE")):
        stages.outcomes["export"] = {"inputs": inputs}
        _, _, err = run("export", "runs/x", "--to", "saved_models/x")
        assert err.startswith("next: python ")
        assert f"saved_model.py saved_models/x {asked}" in err
    (_, prepare), (_, train), *others = stages.calls
    assert (prepare[0].seed, prepare[1]) == (5, tmp_path)
    assert (train[0].seed, str(train[1]), train[2]) == (6, "runs/my run", tmp_path)
    assert [(name, *map(str, arguments)) for name, arguments in others] == [
        ("evaluate", "runs/x", "validation", str(tmp_path), "('generation.beam_size=1',)"),
        ("predict", "runs/x", "('a', 'b c')", "()", str(tmp_path)),
        *[("export", "runs/x", "saved_models/x", "()", "None")] * 2,
    ]


def test_compare_passes_its_options_and_names_the_failed_trials(run, stages):
    words = ("compare", "r.yaml", "--over", "seed=1,2", "--over", "model.dropout=0,0.1", "--run-dir", "runs/c")
    code, out, err = run(*words, "--seeds", "3", "--target", "loss=0.5", "--jobs", "2", "--set", "seed=5")
    assert (code, out, err) == (0, "", "next: tensorboard --logdir runs/c/trials\n")
    ((_, (recipe, options)),) = stages.calls
    assert recipe == "r.yaml"
    assert {key: str(value) for key, value in options.items()} == {
        "over": "('seed=1,2', 'model.dropout=0,0.1')",
        "num_seeds": "3",
        "run_dir": "runs/c",
        "target": "loss=0.5",
        "jobs": "2",
        "overrides": "('seed=5',)",
        "data_dir": "None",
    }
    stages.outcomes["compare"]["failed"]["a"] = "no such file"
    code, out, err = run(*words, "--json")
    assert code == 2
    assert json.loads(out)["failed"] == {"a": "no such file"}
    assert err.splitlines()[-1] == "error: 1 of the trials failed; the same command tries them again"


def test_the_data_directory_comes_from_the_environment(run, stages, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASLLM_DATA", str(tmp_path))
    _, _, err = run("prepare", "r.yaml")
    assert stages.calls[0][1][1] == tmp_path
    assert "--data-dir" not in err


def test_predict_reads_lines_and_writes_answers(run, stages, tmp_path, monkeypatch):
    answers = [("5. März\u2028 2021", "2021-03-05"), ("", ""), ("last", "x")]
    stages.outcomes["predict"] = [{"source": source, "text": text, "score": -0.1} for source, text in answers]
    (tmp_path / "in.txt").write_bytes("\ufeff5. März\u2028 2021\r\n\nlast".encode())
    code, out, _ = run("predict", "runs/x", "--input", "in.txt")
    assert (code, out) == (0, "2021-03-05\n\nx\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    code, out, _ = run("predict", "runs/x", "--json")
    assert json.loads(out) == {"predictions": stages.outcomes["predict"]}
    assert [list(arguments[1]) for _, arguments in stages.calls] == [["5. März\u2028 2021", "", "last"], ["a", "b"]]


def test_predict_refuses_what_is_not_text(run, stages, tmp_path):
    (tmp_path / "latin.txt").write_bytes("a\nMüll\n".encode("latin-1"))
    code, _, err = run("predict", "runs/x", "--input", "latin.txt")
    assert (code, err) == (2, "error: latin.txt:2: byte 3: not UTF-8; convert it to UTF-8\n")
    (tmp_path / "empty.txt").write_text("")
    code, _, err = run("predict", "runs/x", "--input", "empty.txt")
    assert (code, err) == (2, "error: empty.txt: empty; give one text a line, or as arguments\n")


def test_recipes_are_listed_and_copied(run):
    code, out, err = run("recipes")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert "translate/multi30k_small" in names
    first = next(name for name in names if name.endswith("_tiny"))  # the others need data files
    assert f"next: kerasllm train {first} --run-dir runs/" in err
    code, out, err = run("recipes", "copy", "translate/multi30k_small", "mine.yaml")
    assert (code, out) == (0, "mine.yaml\n")
    assert "next: kerasllm train mine.yaml --run-dir runs/mine" in err
    code, out, err = run("recipes", "copy", "translate/multi30k_small", "mine.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("error: mine.yaml: exists already")
    assert run("recipes", "copy", "multi30k_smal")[2].startswith("error: multi30k_smal: no such file and no recipe")
