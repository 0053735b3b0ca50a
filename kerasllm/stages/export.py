"""A run becomes a SavedModel that TensorFlow Serving mounts: text in, answer out, and proved before it is published."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kerasllm
from kerasllm.data.preparation import cache_directory
from kerasllm.data.store import Prepared
from kerasllm.errors import UserError
from kerasllm.run_directory import atomic_directory, atomic_write_text, sha256_of_file
from kerasllm.runs.trained_run import TrainedRun, answer_function, as_graph, load_run
from kerasllm.serving import saved_model
from kerasllm.serving.warmup import BATCHING, BATCHING_FILE, write_warmup_requests
from kerasllm.terminal import say

if TYPE_CHECKING:
    import tensorflow as tf

NUM_SENTENCES = 12
BATCH_SIZES = (1, 7)
SCORE_TOLERANCE = 1e-4
DEVICE = "CPU:0"
"""Both processes compute here: a GPU rounds differently. The graphs are traced outside, so that they name no device."""


def next_version(to: Path) -> Path:
    """`saved_models/NAME` -> `saved_models/NAME/<newest + 1>`; a path that ends in an integer stays.

    Raises:
        UserError: that integer version exists.
    """
    if not (to.name.isascii() and to.name.isdigit()):
        return to / str(max(saved_model.versions(to), default=0) + 1)
    if to.exists():
        raise UserError(f"{to}: exists already, and a published version never changes; --to {to.parent} takes the next")
    return to


def sample_inputs(run: TrainedRun) -> list[tuple[str | bytes, ...]]:
    """What to verify with, a value for each input of the task: what an evaluation asks of the validation split, if that
    is still in the cache of `prepare`, and then the task's odd ones."""
    manifest = json.loads(run.directory.manifest_path.read_text(encoding="utf-8"))
    directory = cache_directory() / manifest["prepared"]
    fields = run.task.inputs.values()
    records: list[tuple[str | bytes, ...]] = []
    if directory.is_dir() and Prepared(directory).splits:
        prepared = Prepared(directory)
        split = "validation" if "validation" in prepared.splits else "train"
        columns, _ = run.task.questions(prepared.examples(split).texts)
        records = list(islice(zip(*columns, strict=True), NUM_SENTENCES))
    # In a further input the odd ones come in another order.
    odd = run.task.odd_inputs()
    return [*records, *(tuple(odd[(i + 2 * j) % len(odd)] for j in range(len(fields))) for i in range(len(odd)))]


def build_endpoints(task: Any) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """The graphs that become endpoints, from named strings [B] to named outputs whose first dimension is B."""
    import tensorflow as tf

    def tokenize(text: tf.Tensor) -> dict[str, tf.Tensor]:
        token_ids = task.tokenizer.tokenize(text)
        return {"token_ids": token_ids.to_tensor(), "lengths": tf.cast(token_ids.row_lengths(), tf.int32)}

    functions = {saved_model.ENDPOINT: answer_function(task)}
    functions |= {name: as_graph(function, task.inputs) for name, function in task.further_endpoints().items()}
    if task.tokenizer is not None:
        functions["tokenize"] = as_graph(tokenize, ["text"])
    return {name: function.get_concrete_function() for name, function in functions.items()}


def write_saved_model(task: Any, endpoints: dict[str, Any], directory: Path) -> None:
    """Write the endpoints with their variables and tokenizer.

    TensorFlow Serving finds a Keras variable only through the TensorFlow variable inside it; those are what a traced
    function lists. (`keras.export.ExportArchive` would store them twice.)
    """
    import tensorflow as tf

    module = tf.Module()
    if task.tokenizer is not None:
        module.tokenizer = task.tokenizer
    module.weights = list({id(v): v for endpoint in endpoints.values() for v in endpoint.variables}.values())
    tf.saved_model.save(module, str(directory), signatures=endpoints)


def answer_in_fresh_process(directory: Path, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replies of the exported model, loaded by a process that has neither Keras nor kerasllm, on the CPU.

    Raises:
        UserError: it cannot be loaded or fails on a request.
    """
    command = [sys.executable, "-I", saved_model.__file__, str(directory), "--requests"]
    body = "".join(json.dumps(request) + "\n" for request in requests)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, input=body.encode(), capture_output=True, env=environment, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        reason = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1])
        raise UserError(f"not published: the exported model does not run in a fresh process: {reason}")
    # An answer may hold line ends of Unicode, such as U+2028, which JSON leaves as they are.
    return [json.loads(line) for line in done.stdout.decode().removesuffix("\n").split("\n")]


def is_same(expected: Any, actual: Any) -> bool:
    """Whether two values, or nested lists of them, differ in no more than rounding of a score."""
    if isinstance(expected, list):
        return len(expected) == len(actual) and all(map(is_same, expected, actual))
    if isinstance(expected, float):
        return bool(np.allclose(expected, actual, rtol=0.0, atol=SCORE_TOLERANCE, equal_nan=True))
    return expected == actual


def compare(text: Any, endpoint: str, batch_size: int, expected: dict[str, Any], actual: dict[str, Any]) -> None:
    """Raise UserError if two answers to one input differ in more than rounding of a score."""
    shown = str(text)[:80]
    for name, value in expected.items():
        if not is_same(value, actual[name]):
            raise UserError(
                f"not published: for {shown!r} (endpoint {endpoint}, batch of {batch_size}) the exported model "
                f"gives {name} {actual[name]!r} instead of {value!r}"
            )


def input_names(endpoint: Any) -> list[str]:
    """The names of an endpoint's arguments, in their order."""
    arguments, by_name = endpoint.structured_input_signature
    return [*(spec.name for spec in arguments), *by_name]


def build_request(endpoint: str, function: Any, records: Sequence[tuple[str | bytes, ...]]) -> dict[str, Any]:
    """The body of a REST request to an endpoint, in columns; `tokenize` takes the first text of each record."""
    columns = {
        name: list(map(saved_model.in_json, values))
        for name, values in zip(input_names(function), zip(*records, strict=True), strict=False)
    }
    return {"signature_name": endpoint, "inputs": columns}


def verify(directory: Path, endpoints: dict[str, Any], records: Sequence[tuple[str | bytes, ...]]) -> None:
    """Compare the answers of the exported model in a fresh process with those of this process, at two batch sizes.

    Raises:
        UserError: they differ; the message names the first text for which they do.
    """
    import tensorflow as tf

    requests = [
        build_request(endpoint, function, records[start : start + size])
        for endpoint, function in endpoints.items()
        for size in BATCH_SIZES
        for start in range(0, len(records), size)
    ]
    replies = answer_in_fresh_process(directory, requests)
    for request, reply in zip(requests, replies, strict=True):
        endpoint, columns = request["signature_name"], list(request["inputs"].values())
        with tf.device(DEVICE):
            outputs = endpoints[endpoint](*(tf.constant(list(map(saved_model.to_bytes, c))) for c in columns))
        expected = {name: saved_model.to_json(values.numpy()) for name, values in outputs.items()}
        for row, text in enumerate(columns[0]):
            mine, theirs = ({n: values[row] for n, values in found.items()} for found in (expected, reply["outputs"]))
            compare(text, endpoint, len(columns[0]), mine, theirs)


def write_manifest(run: TrainedRun, endpoints: dict[str, Any], num_verified: int, directory: Path) -> None:
    """Write `assets.extra/kerasllm.json`: where the model comes from."""
    weights = sorted(run.directory.checkpoints_path.glob("*/weights.npz"))
    manifest = {
        "recipe": run.recipe.dump(),
        "weights": run.progress,
        "sha256": {f"{path.parent.name}/{path.name}": sha256_of_file(path) for path in weights},
        "endpoints": {
            name: {"inputs": input_names(endpoint), "outputs": list(endpoint.structured_outputs)}
            for name, endpoint in endpoints.items()
        },
        "num_verified": num_verified,
        "versions": {
            "kerasllm": kerasllm.__version__,
            "python": platform.python_version(),
            **{name: installed_version(name) for name in ("tensorflow", "tensorflow-text", "keras")},
        },
    }
    path = directory / "assets.extra" / saved_model.DESCRIPTION
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def publish(run: TrainedRun, target: Path) -> dict[str, Any]:
    """Write the model of a run to a hidden directory, verify it, and rename it to `target`."""
    endpoints = build_endpoints(run.task)
    records = sample_inputs(run)
    with atomic_directory(target) as directory:
        say(f"export: writing {target}")
        write_saved_model(run.task, endpoints, directory)
        say(f"export: verifying {len(records)} records in a fresh process")
        verify(directory, endpoints, records)
        requests = [build_request(name, f, records[:size]) for name, f in endpoints.items() for size in (1, 8)]
        write_warmup_requests(directory, requests)
        write_manifest(run, endpoints, len(records), directory)
        if not (target.parent / BATCHING_FILE).exists():
            atomic_write_text(target.parent / BATCHING_FILE, BATCHING)
    return {
        "path": str(target),
        "version": int(target.name),
        "bytes": sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
        "inputs": list(run.task.inputs),
        "endpoints": list(endpoints),
        "num_verified": len(records),
    }


def export_huggingface(run_dir: Path | str, to: Path | str, data_dir: Path | str | None = None) -> dict[str, Any]:
    """Write the model of a run as a directory that `transformers` loads, and read it back.

    Args:
        run_dir: the run directory, of a task with a `Bert` that reads WordPiece.
        to: a directory that does not exist yet.
        data_dir: where the published weights lie that the run builds on, if it does.

    Returns:
        `path`, `bytes`, `architecture` and `num_tensors`.

    Raises:
        UserError: the run cannot be loaded, Hugging Face has no such model, the directory exists or cannot be written.
    """
    from kerasllm.models.published.bert import published_of, read_published, write_huggingface

    run, target = load_run(run_dir, data_dir=data_dir), Path(to)
    if run.recipe.tuning.name in ("prompt", "prefix"):
        raise UserError(
            f"{run_dir}: has learnt a {run.recipe.tuning.name}, and Hugging Face's Bert has no place for one; "
            "export it as a SavedModel"
        )
    architecture, heads, labels = run.task.published_form()
    vocabulary = getattr(run.task.tokenizer, "vocabulary", None)
    if vocabulary is None:
        raise UserError(f"{run_dir}: has a tokenizer of kind {run.recipe.tokenizer.kind}, and BERT's is wordpiece")
    write_huggingface(run.model, vocabulary, target, architecture, heads, labels)
    written, expected = read_published(str(target.absolute())).tensors, published_of(run.model, "", heads).tensors
    different = [name for name in expected if not np.array_equal(written.get(name), expected[name])]
    if different:
        raise UserError(f"{target}: {different[0]} reads back as something else; remove the directory")
    size = sum(path.stat().st_size for path in target.iterdir())
    say(f"export: {target} reads back the same ({architecture}, {size / 1e6:.1f} MB)")
    return {"path": str(target), "bytes": size, "architecture": architecture, "num_tensors": len(written)}


def export(
    run_dir: Path | str, to: Path | str, overrides: Sequence[str] = (), data_dir: Path | str | None = None
) -> dict[str, Any]:
    """Publish the model of a run as the next version of `to`, after a fresh process gave the same answers.

    Args:
        run_dir: the run directory.
        to: `saved_models/NAME`, for its next version; or a version in it that does not exist yet.
        overrides: `section.key=value`, such as `generation.beam_size=1`.
        data_dir: where the published weights lie that the run builds on, if it does.

    Returns:
        `path`, `version`, `bytes`, `seconds`, the names of `inputs` and `endpoints`, and `num_verified`, the number of
        records compared.

    Raises:
        UserError: the run cannot be loaded, the version exists, the disk is full, or an answer differs; nothing is
            published then.
    """
    import tensorflow as tf

    from kerasllm.layers.convolution import fold_normalizations

    started = time.monotonic()
    target = next_version(Path(to))
    is_new = not target.parent.exists()
    try:
        with tf.device(DEVICE):
            run = load_run(run_dir, overrides, data_dir)
            fold_normalizations(run.model)
        report = publish(run, target)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                target.parent.rmdir()
        raise
    report["seconds"] = round(time.monotonic() - started, 1)
    say(f"export: {target} gives the same answers ({report['bytes'] / 1e6:.1f} MB, {report['seconds']} s)")
    return report
