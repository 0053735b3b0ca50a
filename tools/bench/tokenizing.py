"""Sentences that `kerasllm prepare` tokenizes in a second: its own stage, from the stored texts to the stored ids.

    python tools/bench/tokenizing.py                       # 100,000 sentences made of random words
    python tools/bench/tokenizing.py FILE COLUMN           # the column of a table, csv, tsv or jsonl, also .gz
    python tools/bench/tokenizing.py FILE COLUMN --vocabulary VOCABULARY --times 10

With `--times` all sentences are taken so often: the graph is traced once, which in a small file is much of the time.

VOCABULARY is one of BERT's, as `tokenizer.vocabulary` names it; without it, 8,000 word pieces are learnt. The seconds
of the processor tell more than those of the clock where other work runs beside.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kerasllm import environment

environment.configure()

RECIPE = """\
task: classify_text
data: {source: table, train: sentences.tsv, columns: {text: text, label: label}}
tokenizer: {kind: wordpiece, lowercase: true, max_training_sentences: 20000}
model: {max_sequence_length: 64}
training: {train_steps: 1}
"""


def random_sentences(number: int) -> Iterator[str]:
    """Sentences of 1 to 18 words, as long as those of SST-2 in the mean; the same ones each time."""
    generator = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(generator.choices(letters, k=generator.randint(1, 9))) for _ in range(20_000)]
    for _ in range(number):
        yield " ".join(generator.choices(words, k=generator.randint(1, 18)))


def measure(sentences: list[str], vocabulary: str | None) -> str:
    """Tokenizes them as `prepare` does, and says how fast."""
    from kerasllm.data.preparation import _encoder, _learn_vocabulary, _write_features
    from kerasllm.data.store import RaggedWriter, text_path
    from kerasllm.recipe import load_recipe

    fields = ("text", "label")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        chosen = [f"tokenizer.vocabulary={Path(vocabulary).resolve()}"] if vocabulary else []
        recipe = load_recipe(folder / "recipe.yaml", chosen)
        labels = [str(index % 2) for index in range(len(sentences))]
        for field, texts in zip(fields, (sentences, labels), strict=True):
            with RaggedWriter(text_path(folder, "train", field), "uint8") as writer:
                writer.append_texts(texts)
        task = recipe.task_class(recipe, _learn_vocabulary(folder, recipe, fields, None))
        clock, processor = time.perf_counter(), time.process_time()
        _write_features(folder, "train", fields, _encoder(task, fields, len(sentences)))
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
    number = len(sentences)
    return (
        f"{number:,} sentences in {clock:.2f} s, {number / clock:,.0f}/s; {processor:.2f} s of the processor, "
        f"{number / processor:,.0f} in one of them"
    )


def main() -> None:
    """Reads or makes the sentences, and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("column", nargs="?")
    parser.add_argument("--vocabulary")
    parser.add_argument("--times", type=int, default=1, metavar="NUMBER")
    arguments = parser.parse_args()
    if arguments.file and not arguments.column:
        parser.error("name the column that holds the sentences")
    if arguments.file:
        from kerasllm.data.tables import read_table

        sentences = [record["text"] for record in read_table(arguments.file, {"text": arguments.column})]
    else:
        sentences = list(random_sentences(100_000))
    print(measure(sentences * arguments.times, arguments.vocabulary))


if __name__ == "__main__":
    main()
