"""Peak memory of `kerasllm prepare` on Multi30k and on ten times as much, which should be the same.

    python tools/bench/prepare_memory.py DATA_DIR

DATA_DIR holds the folder multi30k. The greater corpus is ten copies of the training split, each made different by a
number at the end of its sentences, so that none is dropped as a duplicate.
"""

import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = "translate/multi30k_small"


def write_copies(data_dir: Path, language: str, num_copies: int, target: Path) -> None:
    """Write `num_copies` differing copies of the training text of a language."""
    with gzip.open(data_dir / f"multi30k/train.{language}.gz", "rt", encoding="utf-8") as file:
        lines = [line.rstrip() for line in file]
    with gzip.open(target, "wt", encoding="utf-8", compresslevel=1) as file:
        for copy in range(num_copies):
            file.writelines(f"{line} {copy}\n" for line in lines)


def peak_memory(data_dir: Path, num_copies: int, folder: Path) -> float:
    """Peak resident memory in MiB of a process that prepares `num_copies` copies."""
    for language in ("en", "de"):
        write_copies(data_dir, language, num_copies, folder / f"train.{language}.gz")
    command = [sys.executable, "-m", "kerasllm", "prepare", RECIPE, "--data-dir", str(data_dir)]
    command += ["--set", f"data.train.source={folder}/train.en.gz", "--set", f"data.train.target={folder}/train.de.gz"]
    process = subprocess.Popen(command, env={**os.environ, "KERASLLM_CACHE": str(folder / "cache")})
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"prepare failed for {num_copies} copies")
    return usage.ru_maxrss / 1024


def main(data_dir: Path) -> None:
    """Measure both and print the ratio."""
    peaks = {}
    for num_copies in (1, 10):
        with tempfile.TemporaryDirectory() as folder:
            peaks[num_copies] = peak_memory(data_dir, num_copies, Path(folder))
    for num_copies, peak in peaks.items():
        print(f"{num_copies:2} x Multi30k: peak {peak:.0f} MiB")
    print(f"ratio {peaks[10] / peaks[1]:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
