"""How good the entities are that a task has found: counted as the shared task of CoNLL counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kerasllm.data.tag_schemes import OUTSIDE, split_tag

Entity = tuple[int, int, str]
"""First word, the one after the last, type."""


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence, by the definition of `conlleval`, which takes any order of B- and I-.

    One begins at B-, and at an I- after O or after another type; it ends before the next that begins, and before O.

    >>> entities_of(["I-PER", "I-PER", "B-PER", "I-LOC", "O"])
    [(0, 2, 'PER'), (2, 3, 'PER'), (3, 4, 'LOC')]

    Reference: [Tjong Kim Sang and De Meulder, 2003](https://aclanthology.org/W03-0419).
    """
    entities: list[Entity] = []
    start, open_type = 0, ""
    for index, tag in enumerate([*tags, OUTSIDE]):
        prefix, type_ = split_tag(tag)
        begins = prefix == "B" or type_ != open_type
        if open_type and begins:
            entities.append((start, index, open_type))
        if begins:
            start, open_type = index, type_
    return entities


def entity_metrics(wanted: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Figures over all sentences; what would be divided by 0 is 0.

    Args:
        wanted: the right tags of each sentence.
        given: as many tags for each.

    Returns:
        `precision`, `recall` and `f1` of entities, which are right if words and type are; `accuracy`, the share of
        words with the right tag; and the table `per_type`, with the number of `entities` that there are of each type.

    Raises:
        ValueError: a sentence has another number of tags.
    """
    counts: dict[str, Counter[str]] = {"wanted": Counter(), "given": Counter(), "both": Counter()}
    words = right = 0
    for ours, theirs in zip(wanted, given, strict=True):
        words += len(ours)
        right += sum(one == other for one, other in zip(ours, theirs, strict=True))
        found = {"wanted": {*entities_of(ours)}, "given": {*entities_of(theirs)}}
        found["both"] = found["wanted"] & found["given"]
        for name, entities in found.items():
            counts[name].update(type_ for _, _, type_ in entities)
    types = sorted(counts["wanted"] | counts["given"])
    table = {
        type_: {**_figures(*(each[type_] for each in counts.values())), "entities": counts["wanted"][type_]}
        for type_ in types
    }
    figures = _figures(*(each.total() for each in counts.values()))
    return {**figures, "accuracy": right / max(1, words), **({"per_type": table} if table else {})}


def _figures(wanted: int, given: int, both: int) -> dict[str, float]:
    precision, recall = both / max(1, given), both / max(1, wanted)
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
