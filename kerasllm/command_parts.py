"""What the commands share: their common options, texts from a file, and what is said at the end."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from kerasllm.errors import UserError

COMMAND = "kerasllm"


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what every stage takes; all take the same, so that a script can hand its options on."""
    options = [
        click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one setting."),
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path),
            envvar="KERASLLM_DATA",
            help="Where the files that a recipe names lie. [environment variable: KERASLLM_DATA]",
        ),
        click.option("--json", "as_json", is_flag=True, help="Write the result to standard output as JSON."),
        click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and TensorFlow's messages."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_lines(stream: Any, name: str) -> list[str]:
    """Returns the lines of a binary stream.

    Raises:
        UserError: it is not UTF-8, or empty.
    """
    if stream.isatty():
        click.echo("one text a line; Ctrl-D ends", err=True)
    content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}:{line}: byte {error.start}: not UTF-8; convert it to UTF-8") from error
    if not text:
        raise UserError(f"{name}: empty; give one text a line, or as arguments")
    # Only a newline ends a text; str.splitlines would also cut at eleven other characters.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def report(result: dict[str, Any], as_json: bool) -> None:
    """Writes a stage's result to standard output, if that was asked for."""
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False, default=str))


def repeated(overrides: Sequence[str], data_dir: Path | None) -> list[str]:
    """Returns the options that the next command needs again."""
    options = [part for override in overrides for part in ("--set", override)]
    from_command_line = data_dir is not None and str(data_dir) != os.environ.get("KERASLLM_DATA")
    return [*options, "--data-dir", str(data_dir)] if from_command_line else options


def say_next(*arguments: str, instead: str = "next:") -> None:
    click.echo(f"{instead} {shlex.join([COMMAND, *arguments])}", err=True)
