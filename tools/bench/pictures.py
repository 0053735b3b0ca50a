"""Pictures/s that the pipeline gives: decoding in `prepare`, and batches with the augmentations of a recipe.

    python tools/bench/pictures.py                                  # flip and shift, as CIFAR-10's recipe has them
    python tools/bench/pictures.py '[{name: rand_augment}]'         # any others, in YAML

Random pictures of 32 x 32, in batches of 128. Compare the second figure with what `tools/bench/resnet.py` consumes.
Nothing else should run meanwhile.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from kerasllm.environment import configure

NUM_PICTURES, SIDE, BATCH_SIZE, NUM_BATCHES = 4096, 32, 128, 200
STANDARD = "[{name: flip}, {name: shift, pixels: 4}]"
RECIPE = """\
task: classify_image
data: {{source: pictures, train: pictures, validation: 0.1}}
picture: {{height: 32, width: 32}}
batching: {{global_batch_size: 128}}
augmentation: {augmentation}
training: {{train_steps: 1}}
"""


def write_pictures(folder: Path) -> None:
    """Writes JPEG files of two labels."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        path = folder / "pictures" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((SIDE, SIDE)).save(buffer, "JPEG")
        path.write_bytes(buffer.getvalue())


def main() -> None:
    configure()
    import tensorflow as tf

    from kerasllm.data.batching import BatchStream
    from kerasllm.data.preparation import prepare_data
    from kerasllm.recipe import load_recipe
    from kerasllm.runs.trained_run import build_task
    from kerasllm.runs.training_run import build_augmentations

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder)
        path = folder / "recipe.yaml"
        path.write_text(RECIPE.format(augmentation=sys.argv[1] if len(sys.argv) > 1 else STANDARD))
        recipe = load_recipe(path)
        prepared = prepare_data(recipe, folder)
        task, examples = build_task(recipe, prepared.directory), prepared.examples("train")
        contents = tf.constant([examples.texts["image"][row] for row in range(len(examples))])
        signature = [tf.TensorSpec([None], tf.string)]
        decode = tf.function(task.picture.decode, input_signature=signature, autograph=False)  # as `prepare` does
        decode(contents[:BATCH_SIZE])
        started = time.perf_counter()
        decode(contents)
        print(f"decoding: {len(contents) / (time.perf_counter() - started):,.0f} pictures/s, on one core", flush=True)
        stream = BatchStream(examples, recipe.batching, recipe.seed)
        stream.augmentation = build_augmentations(recipe, [], task, examples)
        batches = iter(stream.dataset())
        next(batches)
        started = time.perf_counter()
        count = sum(len(next(batches)[0]["present"]) for _ in range(NUM_BATCHES))
        print(f"batches: {count / (time.perf_counter() - started):,.0f} pictures/s", flush=True)


if __name__ == "__main__":
    main()
