"""Timing of one thing, and the figures of two programs in turn: A B A B, so that both meet the same machine."""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable


def median_seconds(run: Callable[[], object], warm_up: int, count: int) -> float:
    """The median of `count` timed calls, after `warm_up` calls that are not timed."""
    seconds = []
    for index in range(warm_up + count):
        started = time.perf_counter()
        run()
        if index >= warm_up:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


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
