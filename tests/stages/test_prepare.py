"""`prepare` as a command: one JSON object, the report for the person, and no TensorFlow the second time."""

import json

RECIPE = """
task: translate
data: {source: parallel_text, train: {source: a.en, target: a.de}, test: {source: b.en, target: b.de}}
tokenizer: {kind: characters}
model: {num_layers: 1, num_heads: 2, hidden_dim: 32, intermediate_dim: 64, max_sequence_length: 64}
batching: {max_sequence_length: 64}
training: {train_steps: 10}
"""
IN_ONE_PROCESS = """
import sys
from kerasllm.cli import main
code = main(sys.argv[1:])
print(code, sorted({"tensorflow", "keras", "tensorflow_text", "pyarrow"} & set(sys.modules)), file=sys.stderr)
"""


def test_prepare_twice(tmp_path, run_command, run_python):
    for name, text in (
        ("a.en", "dog\ncat\ncat\n"),
        ("a.de", "Hund\nKatze\nKatze\n"),
        ("b.en", "owl\n"),
        ("b.de", "Eule\n"),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = ["prepare", str(tmp_path / "recipe.yaml"), "--data-dir", str(tmp_path), "--json"]
    environment = {"KERASLLM_CACHE": str(tmp_path / "cache")}

    first = run_command(*arguments, **environment)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["splits"] == {"train": 2, "test": 1}
    assert result["vocabulary_size"] == 4 + len(set("dogcatHundKatze"))
    assert result["cleaning"]["train"]["dropped"] == {"duplicate": 1}
    assert result["from_cache"] is False
    assert "train: 2 of 3 records kept" in first.stderr
    assert "1 dropped: repeats an earlier record of the split" in first.stderr

    second = run_python("-c", IN_ONE_PROCESS, *arguments, **environment)
    assert second.stderr.splitlines()[-1] == "0 []"
    again = json.loads(second.stdout)
    assert again["from_cache"] is True
    assert {**again, "seconds": 0, "from_cache": False} == {**result, "seconds": 0}
    assert "train: 2 of 3 records kept" in second.stderr

    (tmp_path / "a.de").write_text("Hund\n")
    broken = run_command(*arguments, **environment)
    assert broken.returncode == 2
    assert broken.stdout == ""
    assert "a.en has 3 lines" in broken.stderr.splitlines()[-1]
    assert "a.de has 1 lines; line n of each must belong to the same record" in broken.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "cache" / "prepared").iterdir()] == [
        result["directory"].rpartition("/")[2]
    ]
