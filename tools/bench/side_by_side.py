"""Timing of one thing, and the figures of two programs in turn: A B A B, so that both meet the same machine."""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any


def median_seconds(run: Callable[[], object], warm_up: int, count: int) -> float:
    """The median of `count` timed calls, after `warm_up` calls that are not timed."""
    seconds = []
    for index in range(warm_up + count):
        started = time.perf_counter()
        run()
        if index >= warm_up:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def seconds_of_a_step(trainer: Any, batch: dict[str, Any], steps: int) -> float:
    """The median of the steps that `fit` takes on one batch, without the first three."""
    import keras
    import tensorflow as tf

    clock = [time.perf_counter()]
    timer = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: clock.append(time.perf_counter()))
    dataset = tf.data.Dataset.from_tensors((batch,)).repeat()
    trainer.fit(dataset, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[timer])
    return statistics.median(after - before for before, after in pairwise(clock[3:]))


def main(script: str, description: str, measure: Callable[[], None], figures: dict[str, str]) -> None:
    """What a script does when it is called: it measures, or compares its figures with a peer's.

    Args:
        description: its help.
        measure: prints our figures.
        figures: as for `compare`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMAND", help="the peer's command")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.against:
        compare(script, arguments.against, arguments.rounds, figures)
    else:
        measure()


def compare(script: str, peer: str, rounds: int, figures: dict[str, str]) -> None:
    """Prints the figures of both, in turn, and the medians of the ratios.

    Args:
        script: ours.
        peer: their command.
        figures: what is measured -> the pattern with which each program prints it.
    """
    commands = {"ours": [sys.executable, script], "peer": shlex.split(peer)}
    found: dict[str, dict[str, list[float]]] = {name: {figure: [] for figure in figures} for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for figure, pattern in figures.items():
                found[name][figure].append(float(re.search(pattern, output)[1]))
    for figure in figures:
        ours, theirs = found["ours"][figure], found["peer"][figure]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(f"{figure}: ours {ours}, peer {theirs}, ratio {statistics.median(ratios):.2f}")
