"""Trains, evaluates, exports and asks the built-in translator of dates; run by `tools/quickstart`.

Run again, it goes on where it stopped, and keeps what is done.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kerasllm.serving import saved_model
from kerasllm.terminal import say, show_table

RECIPE = "recipes/translate/dates_tiny.yaml"
RUN = Path("runs/dates")
MODEL = Path("saved_models/dates")
TEXTS = (
    "5. März 2021",
    "March 5th, 2021",
    "vendredi 5 mars 2021",
    "5 de marzo de 2021",
    "2021年3月5日 星期五",
    "5 mar 2021",
)


def kerasllm(*arguments: str) -> dict[str, Any]:
    """Runs one command, with its progress on the terminal, and returns its figures; if it fails, all ends."""
    say(f"\n$ kerasllm {' '.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "kerasllm", *arguments, "--json"], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def ask(model: Path, texts: tuple[str, ...]) -> list[str]:
    """Answers of an exported model, from a process that knows neither Keras nor kerasllm."""
    say(f"\n$ python {saved_model.__file__} {model} ...")
    command = [sys.executable, "-I", saved_model.__file__, str(model), *texts]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout.splitlines()


def published(run: Path, model: Path) -> Path | None:
    """The newest exported version, if it was made after the run was last changed."""
    versions = saved_model.versions(model)
    newest = model / str(versions[-1]) if versions else None
    if newest and newest.stat().st_mtime > (run / "manifest.json").stat().st_mtime:
        return newest
    return None


def main() -> None:
    started = time.monotonic()
    trained = kerasllm("train", RECIPE, "--run-dir", str(RUN))
    measured = kerasllm("evaluate", str(RUN))
    version = published(RUN, MODEL) or Path(kerasllm("export", str(RUN), "--to", str(MODEL))["path"])
    answers = ask(version, TEXTS)
    show_table(f"asked {version}", ("text", "answer"), list(zip(TEXTS, answers, strict=True)))
    rows = [
        ("trained", f"{RECIPE}, {trained['steps']:,} steps in {trained['seconds']:.0f} s"),
        ("exact match", f"{measured['exact_match']:.2%} of {measured['records']:,} unseen dates"),
        ("this run took", f"{time.monotonic() - started:.0f} s"),
        ("the model", f"{version}, for TensorFlow Serving and the line below"),
        ("ask it", f'.venv/bin/python kerasllm/serving/saved_model.py {MODEL} "March 5th, 2021"'),
        ("the next one", ".venv/bin/kerasllm recipes"),
        ("watch it", f".venv/bin/tensorboard --logdir {RUN / 'logs'}"),
    ]
    show_table("quick start", ("", ""), rows)


if __name__ == "__main__":
    main()
