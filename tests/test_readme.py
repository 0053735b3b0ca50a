"""Every command that a README shows can be typed: each is parsed, and those on the built-in dates are run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kerasllm.cli import commands
from kerasllm.recipe import find_recipe

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "saved_models/README.md"]
TINY = """
data={source: built_in, name: dates, train: 300, validation: 20, test: 20}
training={train_steps: 2}
model={num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16, max_sequence_length: 64}
generation={beam_size: 2, max_length_ratio: 0.1, max_extra_tokens: 4}
"""
WEATHER = {"sunny": "good", "rainy": "bad"}


def command_lines(page: str) -> list[list[str]]:
    """The commands in the fenced blocks of a page, as words, without environment variables, pipes and redirections."""
    blocks = re.findall(r"^```(?:\w*)\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    starts = re.compile(
        r"^(?:\$ )?((?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:kerasllm|python|tools/\w+|docker|tensorboard)\b.*)"
    )
    found = [match[1] for match in map(starts.match, lines) if match]
    return [words_of(line) for line in found]


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    ends = [index for index, word in enumerate(words) if re.fullmatch(r"[|<>]|>>|&&", word)]
    words = [word for word in words[: min(ends, default=None)] if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def parse(words: list[str]) -> None:
    """Parses a `kerasllm` command without running it; raises click's error if it cannot be typed like that."""
    group, arguments = commands, words[1:]
    while arguments and arguments[0] in getattr(group, "commands", {}):
        group, arguments = group.commands[arguments[0]], arguments[1:]
    if arguments in (["--help"], ["--version"]):
        return
    context = group.make_context(group.name, list(arguments))
    if isinstance(group, click.Group) and arguments:
        group.resolve_command(context, arguments)


def test_the_pictures_that_are_shown_are_those_that_are_drawn():
    shown = re.findall(r"!\[.+?\]\((.+?)\)", (ROOT / "README.md").read_text("utf-8"))
    drawn = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tools" / "pictures").glob("*.png")]
    assert sorted(shown) == sorted(drawn)


def test_the_pages_show_commands():
    assert {words[1] for words in command_lines("README.md") if words[0] == "kerasllm"} >= {
        "train",
        "evaluate",
        "export",
    }
    assert ["tools/quickstart"] in command_lines("README.md")
    assert ["tools/test"] in command_lines("README.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_can_be_typed(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    made: set[str] = set()
    for words in command_lines(page):
        if words[0] == "kerasllm":
            parse(words)
            if words[1] == "new":
                made.add(Path(words[2]).with_suffix(".yaml").name)
            elif words[1] in ("prepare", "train", "compare") and words[2] not in made:
                find_recipe(words[2])
        for word in words:
            if word.startswith(("tools/", "recipes/", "kerasllm/")):
                assert (ROOT / word).exists(), f"{word} in `{shlex.join(words)}`"
        if words[0].startswith("tools/"):
            assert os.access(ROOT / words[0], os.X_OK)


def test_a_wrong_command_is_found():
    assert words_of("A=1 .venv/bin/kerasllm predict runs/x 'a b' < in.txt  # a comment") == [
        "kerasllm",
        "predict",
        "runs/x",
        "a b",
    ]
    for line in (
        "kerasllm trian x",
        "kerasllm train x",
        "kerasllm evaluate runs/x --spilt test",
        "kerasllm export runs/x",
    ):
        with pytest.raises(Exception, match=r"No such|Missing|Got unexpected"):
            parse(words_of(line))


@pytest.mark.slow
def test_the_commands_on_dates_run(tmp_path, run_python, run_commands):
    """All of the pages' commands on `runs/dates`, in an empty directory and at a very small size; those of Python come
    last, since they ask what was exported."""
    for name in ("recipes", "kerasllm"):
        (tmp_path / name).symlink_to(ROOT / name)
    tiny = [part for line in TINY.strip().splitlines() for part in ("--set", line)]
    shown = [words for page in PAGES for words in command_lines(page) if any("dates" in word for word in words)]
    trains = ("prepare", "train", "compare")
    commands = [[*w[1:], *(tiny if w[1] in trains else [])] for w in shown if w[0] == "kerasllm"]
    for command in commands:
        if "--seeds" in command:  # one will do
            command[command.index("--seeds") + 1] = "1"
    done = run_commands(commands, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in shown:
        if words[0] == "python":
            done = run_python(*words[1:], cwd=tmp_path)
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    ran = {words[1] for words in shown if words[0] in ("kerasllm", "python")}
    assert {"train", "evaluate", "predict", "export", "kerasllm/serving/saved_model.py"} <= ran
    assert (tmp_path / "saved_models" / "dates" / "1" / "saved_model.pb").exists()


@pytest.mark.slow
def test_the_commands_on_reviews_run(tmp_path, run_commands):
    """From a table to a classifier, as the page says it, but for a model that is trained for two steps."""
    rows = [f"{n},It was a {word} day in week {n} of {label}" for n in range(40) for word, label in WEATHER.items()]
    lines = [f"{row},{label}" for row, label in zip(rows, list(WEATHER.values()) * 40, strict=True)]
    (tmp_path / "reviews.csv").write_text("\n".join(["number,review,sentiment", *lines]) + "\n")
    shown = [words[1:] for words in command_lines("README.md") if any("reviews" in word for word in words)]
    tiny = ["--set", "training={train_steps: 2}"]
    done = run_commands([[*words, *(tiny if words[0] == "train" else [])] for words in shown], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ran = [words[0] for words in shown]
    assert ran == ["new", "train", "evaluate", "export"]
    assert (tmp_path / "runs" / "reviews" / "predictions" / "test_confusion.png").exists()
    assert (tmp_path / "saved_models" / "reviews" / "1" / "saved_model.pb").exists()


@pytest.mark.slow
def test_the_quick_start_ends_in_its_table_and_can_run_again(tmp_path):
    """`tools/quickstart.py`, with a small recipe in place of the real one."""
    for name in ("kerasllm", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    recipe = tmp_path / "recipes" / "translate" / "dates_tiny.yaml"
    recipe.parent.mkdir(parents=True)
    lines = [line.replace("={", ": {") for line in TINY.strip().splitlines()]
    recipe.write_text(
        "\n".join(["task: translate", "name: translate/dates_tiny", "batching: {max_sequence_length: 64}", *lines])
        + "\n"
    )
    for attempt in ("first", "second"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools" / "quickstart.py")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        table = done.stderr[done.stderr.index("quick start") :]
        assert "exact match" in table, attempt
        assert "saved_models/dates/1" in table, attempt
    assert sorted(path.name for path in (tmp_path / "saved_models" / "dates").iterdir() if path.is_dir()) == ["1"]
