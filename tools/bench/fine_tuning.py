"""A published encoder fine-tuned by one of our recipes, and by a peer's script on the same data: figure and seconds.

    python tools/bench/fine_tuning.py classify_text/mrpc_small --data-dir DATA --pretrained DIR --seeds 3 \
        --against "PYTHON fine_tune_hugging_face.py mrpc DATA"

Ours and the peer in turn, the peer once, after our first seed; nothing else should run. The seconds are those of the
training: ours with its evaluations and the tracing of its graphs, the peer's as its script prints them.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Measured(NamedTuple):
    """What is measured of a recipe: on which split, which figure, and how the peer prints that and its seconds.

    A figure that stands in a table of the evaluation has the names of table, row and column, with points between them.
    """

    split: str
    metric: str
    theirs: str
    seconds: str


RECIPES = {
    "classify_text/sst2_small": Measured("test", "accuracy", r"dev acc ([\d.]+)", r"train s ([\d.]+)"),
    "classify_text/mrpc_small": Measured(
        "validation", "per_label.equivalent.f1", r"'f1': ([\d.]+)", r"'sec': ([\d.]+)"
    ),
    "classify_text/stsb_small": Measured("validation", "pearson", r"'pearson': ([\d.]+)", r"'sec': ([\d.]+)"),
    "embed/stsb_small": Measured("test", "pearson", r"'pearson': ([\d.]+)", r"'sec': ([\d.]+)"),
    "tag/conll2003_small": Measured("test", "f1", r"'f1': ([\d.]+)", r"'sec': ([\d.]+)"),
    "answer/squad_small": Measured("test", "f1", r"'f1': ([\d.]+)", r"'seconds': ([\d.]+)"),
}


def ours(recipe: str, measured: Measured, arguments: argparse.Namespace, seed: int) -> tuple[float, float]:
    """The figure, and the seconds of the training."""
    kerasllm = [sys.executable, "-m", "kerasllm"]
    data = ["--data-dir", arguments.data_dir, "--json"]
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        settings = ["--set", f"model={{pretrained: {arguments.pretrained}}}", "--set", f"seed={seed}"]
        trained = output_of([*kerasllm, "train", recipe, "--run-dir", run, *settings, *data])
        evaluated = output_of([*kerasllm, "evaluate", run, "--split", measured.split, *data])
    figure = json.loads(evaluated)
    for name in measured.metric.split("."):
        figure = figure[name]
    return float(figure), float(json.loads(trained)["seconds"])


def output_of(command: list[str]) -> str:
    """What a command prints; what it says of its progress is seen."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--pretrained", required=True, help="directory in the layout of Hugging Face")
    parser.add_argument("--seeds", type=int, default=1, metavar="NUMBER", help="of our trainings: 1, 2, ...")
    parser.add_argument("--against", metavar="COMMAND", help="the peer's command")
    arguments = parser.parse_args()
    measured, figures, seconds, peer = RECIPES[arguments.recipe], [], [], None
    for seed in range(1, arguments.seeds + 1):
        figure, took = ours(arguments.recipe, measured, arguments, seed)
        print(f"ours, seed {seed}: {measured.metric} {figure:.4f} in {took:.1f} s", flush=True)
        figures.append(figure)
        seconds.append(took)
        if arguments.against and peer is None:
            printed = output_of(shlex.split(arguments.against))
            peer = [float(re.findall(pattern, printed)[-1]) for pattern in (measured.theirs, measured.seconds)]
            print(f"peer: {measured.metric} {peer[0]:.4f} in {peer[1]:.1f} s", flush=True)
    print(f"ours, mean: {measured.metric} {statistics.mean(figures):.4f} in {statistics.mean(seconds):.1f} s")
    if peer:
        print(f"seconds: {statistics.mean(seconds) / peer[1]:.3f} of the peer's")


if __name__ == "__main__":
    main()
