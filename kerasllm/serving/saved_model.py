"""Answers from an exported model the way TensorFlow Serving gives them: without Keras and without kerasllm.

    python saved_model.py saved_models/dates "5. März 2021" "March 5th, 2021"     one answer a line
    python saved_model.py saved_models/dates/3 --json < sentences.txt             one JSON object a line
    python saved_model.py saved_models/dates --requests < requests.jsonl          bodies as the REST API takes them

The model is loaded through the TensorFlow 1 session loader, the path that TensorFlow Serving takes. Run by its path,
this file needs nothing but tensorflow and tensorflow-text, blocks every import of Keras and kerasllm, and fails if one
came in after all.
"""

import argparse
import base64
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENDPOINT = "serving_default"
DESCRIPTION = "kerasllm.json"
"""In `assets.extra`: where the model comes from, and its inputs and outputs in their order, which the model forgets."""
BLOCKED = ("keras", "tf_keras", "keras_hub", "keras_nlp", "kerasllm")
PYTHON_OPERATIONS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def versions(directory: Path) -> list[int]:
    """The published versions below `saved_models/NAME`, ascending; other names (hidden, unfinished) do not count."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isascii() and path.name.isdigit())


def find_version(directory: Path) -> Path:
    """The directory that holds `saved_model.pb`: `directory` itself, or its newest version.

    Raises:
        FileNotFoundError: there is no exported model.
    """
    if (directory / "saved_model.pb").is_file():
        return directory
    found = versions(directory)
    if not found:
        raise FileNotFoundError(f"{directory}: no exported model; make one with `kerasllm export RUN --to {directory}`")
    return directory / str(found[-1])


def register_text_operations(tensorflow: Any) -> None:
    """Make the operations of tensorflow_text known without importing it, since its Python part imports Keras."""
    spec = importlib.util.find_spec("tensorflow_text")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("tensorflow_text is missing; install it with `pip install tensorflow-text`")
    for library in sorted(Path(spec.submodule_search_locations[0], "python", "ops").glob("*.so")):
        tensorflow.load_op_library(str(library))


def check_servable(graph: Any) -> None:
    """Raise ValueError for what runs in Python and not in a stock server: compiled functions, Python operations."""
    compiled = [f.signature.name for f in graph.library.function if f.attr["_XlaMustCompile"].b]
    if compiled:
        raise ValueError(f"function {compiled[0]} has jit_compile=True, which a stock TensorFlow Serving refuses")
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    python = [node.name for node in nodes if node.op in PYTHON_OPERATIONS]
    if python:
        raise ValueError(f"operation {python[0]} calls Python, which TensorFlow Serving has not")


class ServedModel:
    """A SavedModel in a TensorFlow 1 session.

    Args:
        directory: `saved_models/NAME` (its newest version is taken) or a version directory.
    """

    def __init__(self, directory: Path) -> None:
        self.path = find_version(directory)
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
        register_text_operations(tf)
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        loaded = tf.compat.v1.saved_model.loader.load(self.session, [tf.saved_model.SERVING], str(self.path))
        check_servable(loaded.graph_def)
        self.endpoints = {name: e for name, e in loaded.signature_def.items() if not name.startswith("__")}
        described = self.path / "assets.extra" / DESCRIPTION
        endpoint = self.endpoints[ENDPOINT]
        order = json.loads(described.read_text(encoding="utf-8"))["endpoints"][ENDPOINT] if described.exists() else {}
        self.inputs = order.get("inputs", sorted(endpoint.inputs))
        self.outputs = order.get("outputs", sorted(endpoint.outputs, reverse=True))

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer the body of a REST `:predict` request in columns.

        Args:
            request: `{"inputs": {name: [text, ...]}, "signature_name": endpoint}`, the latter optional; where there is
                one input its list alone will do. It is one batch. What is no text is `{"b64": its bytes in base64}`.

        Returns:
            `{"outputs": {name: list of the values of the batch}}`.
        """
        endpoint = self.endpoints[request.get("signature_name", ENDPOINT)]
        columns = request["inputs"]
        if isinstance(columns, list):
            columns = dict.fromkeys(endpoint.inputs, columns)
        feeds = {endpoint.inputs[name].name: list(map(to_bytes, values)) for name, values in columns.items()}
        fetches = {name: tensor.name for name, tensor in sorted(endpoint.outputs.items())}
        outputs = self.session.run(fetches, feeds)
        return {"outputs": {name: to_json(values) for name, values in outputs.items()}}

    def answer(self, lines: Iterable[str], batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Yield the outputs by name for each line, in order.

        A line has a text for each input, with TAB between them, or a file for one whose name ends in `_bytes`.

        Raises:
            ValueError: a line has another number of texts, or names a file that cannot be read.
        """
        names = self.inputs
        rows = [line.split("\t") if len(names) > 1 else [line] for line in lines]
        for number, row in enumerate(rows, start=1):
            if len(row) != len(names):
                raise ValueError(f"text {number}: has {len(row)} parts; give {', '.join(names)} with TAB between them")
        for start in range(0, len(rows), batch_size):
            parts = zip(*rows[start : start + batch_size], strict=True)
            columns = dict(zip(names, parts, strict=True))
            inputs = {n: list(map(in_file if n.endswith("_bytes") else str, column)) for n, column in columns.items()}
            outputs = self.reply({"inputs": inputs})["outputs"]
            for values in zip(*(outputs[name] for name in self.outputs), strict=True):
                yield dict(zip(self.outputs, values, strict=True))


def in_file(name: str) -> dict[str, str]:
    """The content of a file, as JSON has it."""
    try:
        return in_json(Path(name).read_bytes())
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror})") from error


def in_json(value: str | bytes) -> str | dict[str, str]:
    """A value of a request: a text, or bytes in base64, as TensorFlow Serving takes them."""
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def to_bytes(value: str | dict[str, str]) -> bytes:
    """The opposite of `in_json`, with a text in UTF-8."""
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def to_json(values: Any) -> Any:
    """An output array as nested lists, its bytes as text."""
    return _to_plain(values.tolist())


def _to_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_plain(each) for each in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def read_lines() -> list[str]:
    """Standard input as UTF-8, split at line feeds alone."""
    lines = sys.stdin.buffer.read().decode().split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def check_isolation() -> None:
    """Raise RuntimeError if a blocked package has been loaded: then the answers prove nothing about a server."""
    loaded = [name for name, module in sys.modules.items() if module is not None and name.split(".")[0] in BLOCKED]
    if loaded:
        raise RuntimeError(f"{loaded[0]} was imported; run this file by its path, with `python -I`")


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what TensorFlow's native part writes to standard error; show it if the block fails."""
    with tempfile.TemporaryFile() as held_back:
        original = os.dup(2)
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(original, held_back.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="saved_models/NAME (its newest version is taken) or a version")
    parser.add_argument("text", nargs="*", help="what to answer; without it, lines are read from standard input")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per text, with all outputs")
    form.add_argument("--requests", action="store_true", help="standard input holds one REST request body a line")
    return parser.parse_intermixed_args(arguments)


def answer_all(options: argparse.Namespace) -> None:
    """Write the answers to what the command line asks for."""
    model = ServedModel(options.directory)
    if options.requests:
        for line in read_lines():
            print(json.dumps(model.reply(json.loads(line)), ensure_ascii=False), flush=True)
    else:
        texts = options.text or read_lines()
        for text, answer in zip(texts, model.answer(texts), strict=True):
            shown = {"source": text, **answer} if options.json else answer[model.outputs[0]]
            print(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in BLOCKED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # an entry of None makes the import fail
    try:
        with quiet_stderr():
            answer_all(options)
            check_isolation()
    except (FileNotFoundError, ModuleNotFoundError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
