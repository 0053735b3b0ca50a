"""Every recipe in `recipes/` is complete, says what it gave when it was measured, and runs."""

import json
import os
import re
from pathlib import Path

import pytest

from kerasllm.recipe import list_recipes, load_recipe

FILES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.*"))
LABS = {"gradient_descent"}
"""Folders that are named by what is shown; all others by the task."""
SIZES = {"tiny", "small", "base", "large"}
HEADER = ("command", "hardware", "minutes", "measured")

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")

# Two steps of a very small model; keys that a recipe's task does not have are left out.
TINY = {
    "ticks": "[]",
    "training.train_epochs": "null",
    "training.train_steps": "2",
    "training.evaluate_every_epochs": "null",
    "training.evaluate_every_steps": "null",
    "training.schedule.warmup_steps": "1",
    "training.average_checkpoints": "1",
    "cleaning.max_records_per_label": "100",
    "picture.height": "16",
    "picture.width": "16",
    "model.num_layers": "1",
    "model.num_heads": "2",
    "model.hidden_dim": "16",
    "model.intermediate_dim": "16",
    "tuning.num_layers": "1",
    "generation.beam_size": "1",
    "generation.max_length_ratio": "0.1",
    "generation.max_extra_tokens": "2",
}


def tiny_overrides(file: Path) -> list[str]:
    """The `--set` options that make a recipe run in seconds."""
    recipe = load_recipe(file)
    known = recipe.dump()
    chosen = [f"{key}={value}" for key, value in TINY.items() if has_key(known, key)]
    if blocks := known["model"].get("blocks"):
        chosen.append(f"model.blocks={[1] * len(blocks)}")
    if recipe.training.lookahead_every_steps:  # its average begins by a tick, and these are left out
        chosen.append("training.average_decay=0.5")
    if known["batching"]["global_batch_size"]:
        chosen.append("batching.global_batch_size=16")
    pretrained = known["model"].get("pretrained")
    if pretrained and not pretrained.startswith("runs/"):  # a run is trained before, at tiny size as well
        chosen.append("model.pretrained=null")
    if "model.pretrained=null" in chosen or str(known["tokenizer"]["vocabulary"]).startswith("hf:"):
        chosen.append("tokenizer={kind: wordpiece, max_vocabulary_size: 8000}")
    if recipe.data.source == "built_in":
        sizes = {"train": 300, "validation": 20, "test": 20}
        chosen += [f"data.{split}={sizes[split]}" for split in recipe.data.splits]
    if recipe.data.source == "documents":  # the small files will do
        chosen += [f"data.train={recipe.data.test}", "data.test=null"]
    if recipe.data.source in ("idx", "pictures"):  # so will their test pictures, and a few of these
        chosen += [f"data.train={json.dumps(recipe.dump()['data']['test'])}", "data.validation=0.02", "data.test=null"]
        chosen += ["cleaning.max_records_per_label=20"]
    return [part for override in chosen for part in ("--set", override)]


def commands_before(file: Path) -> list[list[str]]:
    """What makes the run that a recipe's header says must be there before, at tiny size as well."""
    (listed,) = [recipe for recipe in list_recipes() if recipe.path.resolve() == file]
    command = listed.header.get("before", "").split()
    if not command:
        return []
    assert command[:2] == ["kerasllm", "train"]
    recipe, run_dir = file.parents[2] / command[2], command[command.index("--run-dir") + 1]
    return [["train", str(recipe), "--run-dir", run_dir, *tiny_overrides(recipe), "--json"]]


def has_key(section: dict, key: str) -> bool:
    first, _, rest = key.partition(".")
    return first in section and (not rest or has_key(section[first], rest))


def test_all_files_are_listed():
    assert FILES
    assert [recipe.path.resolve() for recipe in list_recipes()] == FILES


@each_file
def test_it_loads_strictly_under_its_name(file):
    recipe = load_recipe(file)
    assert recipe.name == f"{file.parent.name}/{file.stem}"
    assert recipe.task == file.parent.name or file.parent.name in LABS
    assert re.fullmatch(r"[a-z0-9_]+_([a-z]+)", file.stem)[1] in SIZES


@each_file
def test_its_copy_in_a_run_is_equal(file, tmp_path):
    recipe = load_recipe(file)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").dump() == recipe.dump()


@each_file
def test_its_header_says_what_was_measured(file):
    (listed,) = [recipe for recipe in list_recipes() if recipe.path.resolve() == file]
    assert listed.purpose.endswith(".")
    assert [key for key in HEADER if not listed.header.get(key)] == []
    assert str(file.relative_to(file.parents[2])) in listed.header["command"]
    assert re.search(r"\d", listed.header["minutes"])
    assert re.search(r"\d{4}-\d{2}-\d{2}", listed.header["measured"]), "no date"


FOLDERS = sorted({file.parent for file in FILES})


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_two_steps_at_tiny_size(folder, run_commands, tmp_path):
    files = [file for file in FILES if file.parent == folder]
    if not os.environ.get("KERASLLM_DATA"):
        files = [file for file in files if load_recipe(file).data.source == "built_in"]
    if not files:
        pytest.skip("needs data files: set KERASLLM_DATA to the directory that holds them")
    commands = [command for file in files for command in commands_before(file)]
    num_before = len(commands)
    for file in files:
        options = [*tiny_overrides(file), "--json"]
        commands += [["prepare", str(file), *options], ["train", str(file), "--run-dir", file.stem, *options]]
    done = run_commands(commands, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()[num_before:]]
    assert len(reports) == 2 * len(files)
    for prepared, trained in zip(reports[::2], reports[1::2], strict=True):
        assert prepared["splits"]["train"] > 0
        assert trained["steps"] == 2
