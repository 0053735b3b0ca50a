"""An exported model answers in a process that has neither Keras nor kerasllm, and what a server refuses is refused."""

import json
import subprocess
import sys
import types

import pytest

from kerasllm.serving import saved_model

REPORT_MODULES = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
print(*{name.split(".")[0] for name, module in sys.modules.items() if module is not None})
"""


def run_script(*arguments, text=None):
    command = [sys.executable, "-I", saved_model.__file__, *map(str, arguments)]
    return subprocess.run(command, input=text and text.encode(), capture_output=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`saved_models/shout`, version 10: whitespace words looked up in a table, times a variable, in a loop."""
    import tensorflow as tf
    import tensorflow_text as tf_text

    module = tf.Module()
    module.words = tf_text.WhitespaceTokenizer()
    values = tf.lookup.KeyValueTensorInitializer(["one", "two"], tf.constant([1.0, 2.0]))
    module.table = tf.lookup.StaticHashTable(values, 0.0)
    module.factor = tf.Variable(10.0)

    def answer(text):
        words = module.words.tokenize(text)
        total = tf.reduce_sum(words.with_flat_values(module.table.lookup(words.flat_values)), axis=1)
        _, score = tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, x * module.factor), (0, total))
        return {"text": tf.strings.upper(text, encoding="utf-8"), "score": score}

    def count(text):
        return {"lengths": tf.strings.length(text)}

    signature = [tf.TensorSpec([None], tf.string, name="text")]
    endpoints = {"serving_default": answer, "count": count}
    functions = {n: tf.function(f, signature, autograph=False).get_concrete_function() for n, f in endpoints.items()}
    directory = tmp_path_factory.mktemp("saved_models") / "shout"
    tf.saved_model.save(module, str(directory / "10"), signatures=functions)
    (directory / "9").mkdir()
    (directory / ".11.tmp").mkdir()
    return directory


def test_versions_counts_integers_alone(tmp_path):
    for name in ("2", "10", ".11", "11.tmp", "x", "²"):
        (tmp_path / name).mkdir()
    assert saved_model.versions(tmp_path) == [2, 10]
    assert saved_model.find_version(tmp_path) == tmp_path / "10"


def test_no_model_is_one_line_and_exit_code_2(tmp_path):
    done = run_script(tmp_path / "nothing", "text")
    assert done.returncode == 2
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"error: {tmp_path / 'nothing'}: no exported model")


def test_fresh_process_answers_without_keras(exported):
    command = [sys.executable, "-I", "-c", REPORT_MODULES, saved_model.__file__, exported, "one ß two", "", "two"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    *answers, modules = done.stdout.decode().splitlines()
    assert answers == ["ONE SS TWO", "", "TWO"]
    assert "tensorflow" in modules.split()
    assert not set(modules.split()) & set(saved_model.BLOCKED)
    assert done.stderr == b""


def test_requests_are_batches_of_their_own(exported):
    requests = [{"inputs": ["one", "two one", "a\nb"]}, {"inputs": ["日本"], "signature_name": "count"}]
    done = run_script(exported / "10", "--requests", text="".join(json.dumps(r) + "\n" for r in requests))
    first, second = map(json.loads, done.stdout.decode().splitlines())
    assert first == {"outputs": {"text": ["ONE", "TWO ONE", "A\nB"], "score": [100.0, 300.0, 0.0]}}
    assert second == {"outputs": {"lengths": [6]}}


def test_json_lines_from_standard_input(exported):
    done = run_script(exported, "--json", text="one\n\ntwo\u2028two\n")
    rows = [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]
    assert rows[0] == {"source": "one", "text": "ONE", "score": 100.0}
    assert [row["source"] for row in rows] == ["one", "", "two\u2028two"]


def test_leaked_keras_fails(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in saved_model.BLOCKED]:
        monkeypatch.delitem(sys.modules, name)
    saved_model.check_isolation()
    monkeypatch.setitem(sys.modules, "keras.src", types.ModuleType("keras.src"))
    with pytest.raises(RuntimeError, match=r"keras\.src was imported"):
        saved_model.check_isolation()


def test_what_a_stock_server_refuses_is_refused():
    import tensorflow as tf

    def graph_of(function):
        outer = tf.function(lambda x: function(x), input_signature=[tf.TensorSpec([None])], autograph=False)
        return outer.get_concrete_function().graph.as_graph_def()

    saved_model.check_servable(graph_of(tf.function(lambda x: x + 1)))
    with pytest.raises(ValueError, match="jit_compile=True"):
        saved_model.check_servable(graph_of(tf.function(lambda x: x + 1, jit_compile=True)))
    with pytest.raises(ValueError, match="calls Python"):
        saved_model.check_servable(graph_of(lambda x: tf.py_function(lambda y: y, [x], tf.float32)))
