"""Normalise texts, drop training records that teach nothing or too much, and report what was done."""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heappush, heappushpop
from itertools import chain
from typing import Any

from kerasllm.data.settings import CleaningSettings
from kerasllm.data.source_settings import NAME
from kerasllm.errors import UserError

Record = dict[str, str | bytes]
"""Texts by field; of a picture the content of its file."""

REASONS = {
    "damaged": "a picture is damaged, or has too many pixels",
    "empty": "a text is empty",
    "too_short": "a text has fewer than min_characters",
    "too_long": "a text has more than max_characters",
    "length_ratio": "one text is longer than max_length_ratio times another",
    "missing_answer": "an answer does not occur in its context",
    "duplicate": "repeats an earlier record of the split",
    "leak": "the record is also in another split",
    "over_label": "max_records_per_label others of its label were chosen",
}
UNREADABLE = {"damaged"}
"""Reasons for which a record is dropped from every split."""
_EXAMPLES_PER_REASON = 3
_EXAMPLE_CHARACTERS = 160


def bytes_of(record: Record) -> bytes:
    """What tells records apart: their texts and pictures, but not how a picture is called."""
    values = [value for field, value in record.items() if field != NAME]
    return b"\0".join(value if isinstance(value, bytes) else value.encode("utf-8") for value in values)


class RecordSet:
    """The records seen so far, at 12 to 24 bytes each whatever their length.

    Holds 64-bit hashes by open addressing in one flat array; two different records among a hundred million are taken
    for the same one with a probability of 0.03 %.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 1024))
        self._count = 0

    @staticmethod
    def _hash(record: Record) -> int:
        digest = blake2b(bytes_of(record), digest_size=8).digest()
        return int.from_bytes(digest, "little") or 1  # 0 marks an empty place

    def _place(self, value: int) -> int:
        mask = len(self._table) - 1
        place = value & mask
        while self._table[place] not in (0, value):
            place = (place + 1) & mask
        return place

    def __contains__(self, record: Record) -> bool:
        value = self._hash(record)
        return self._table[self._place(value)] == value

    def add(self, record: Record) -> bool:
        """Put a record in; True if it was not there before."""
        value = self._hash(record)
        place = self._place(value)
        if self._table[place] == value:
            return False
        self._table[place] = value
        self._count += 1
        if 3 * self._count > 2 * len(self._table):
            before = self._table
            self._table = array("Q", bytes(2 * 8 * len(before)))
            for value in filter(None, before):
                self._table[self._place(value)] = value
        return True


@dataclass
class SplitReport:
    """What happened to one split: records read and kept, and by reason how many were dropped, or noted and kept."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first few records, `number: text | text`, numbers from 1 in the order of the source."""

    def note(self, reason: str, record: Record, *, drop: bool) -> None:
        """Count the record read last."""
        (self.dropped if drop else self.noted)[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES_PER_REASON:
            texts = [value for value in record.values() if isinstance(value, str)]
            examples.append(f"{self.read}: {' | '.join(texts)}"[:_EXAMPLE_CHARACTERS])


class CleaningReport(dict[str, SplitReport]):
    """Split -> what happened to it."""

    def as_dict(self) -> dict[str, dict]:
        """For JSON."""
        return {split: {**vars(report)} for split, report in self.items()}


def format_report(report: dict[str, dict]) -> str:
    """A cleaning report, as `CleaningReport.as_dict` gives it, as lines of text."""
    lines = []
    for split, counts in report.items():
        lines.append(f"{split}: {counts['kept']:,} of {counts['read']:,} records kept")
        for action in ("dropped", "noted"):
            for reason, count in counts[action].items():
                lines.append(f"  {count:,} {action}: {REASONS[reason]}")
                lines += [f"    record {example}" for example in counts["examples"][reason]]
    return "\n".join(lines)


def normalize(text: str, settings: CleaningSettings) -> str:
    """A text in one Unicode form and with single spaces, as the settings ask."""
    if settings.normalize_unicode != "none":
        text = unicodedata.normalize(settings.normalize_unicode, text)
    return " ".join(text.split()) if settings.collapse_spaces else text


def normalize_document(text: str, settings: CleaningSettings) -> str:
    """A document whose lines are normalised one by one; those with nothing but space are left out."""
    return "\n".join(line for part in text.split("\n") if (line := normalize(part, settings)).strip())


def find_fault(
    record: Record,
    settings: CleaningSettings,
    parallel_fields: Sequence[str],
    verbatim_fields: Sequence[str] = (),
    document_fields: Sequence[str] = (),
) -> str | None:
    """The first reason that a normalised record gives by itself, None if it is sound."""
    texts = {field: value for field, value in record.items() if isinstance(value, str)}
    if not all(record[field] for field in record.keys() - texts.keys()):
        return "damaged"
    if not all(text.strip() for text in texts.values()):
        return "empty"
    lengths = [len(text) for field, text in texts.items() if field not in verbatim_fields]
    if any(length < settings.min_characters for length in lengths):
        return "too_short"
    of_any_length = {*verbatim_fields, *document_fields}
    if any(len(text) > settings.max_characters for field, text in texts.items() if field not in of_any_length):
        return "too_long"
    parallel = [len(record[field]) for field in parallel_fields]
    if parallel and settings.max_length_ratio is not None and max(parallel) > settings.max_length_ratio * min(parallel):
        return "length_ratio"
    return None


def choose_per_label(records: Iterable[Record], label_field: str, number: int, seed: int) -> list[Record]:
    """So many records of each label, in the order of the source; memory does not grow with the others.

    A record has its place in an order by chance that follows from (seed, its texts), and the first ones of each label
    are taken: others that come in or go out change as few of them as can be.
    """
    chosen: dict[str, list[tuple[int, int, Record]]] = {}
    for place, record in enumerate(records):
        digest = blake2b(f"{seed}\0".encode() + bytes_of(record), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "little"), -place, record)
        of_label = chosen.setdefault(record[label_field], [])
        if len(of_label) < number:
            heappush(of_label, entry)
        else:
            heappushpop(of_label, entry)
    kept = sorted(chain.from_iterable(chosen.values()), key=lambda entry: -entry[1])
    return [record for _, _, record in kept]


class Cleaner:
    """Cleans the splits of one corpus, `train` last, because it must not hold what stands in the other ones.

    Validation and test stay whole, or their figures could not be compared with those of others: what would be dropped
    from training is only noted in the report, but for what cannot be read at all. Memory: 12 to 24 bytes a record.

    Args:
        parallel_fields: whose texts say the same, so that `max_length_ratio` compares their lengths.
        verbatim_fields: whose texts stay as they are, however long.
        document_fields: whose texts keep the ends of their lines, and may have any length.
        fault_of: a further reason that a record gives by itself, one of `REASONS`; None if it is sound.
        label_field: which `max_records_per_label` counts; None for records without labels, of which all are kept.
    """

    def __init__(
        self,
        settings: CleaningSettings,
        parallel_fields: Sequence[str] = (),
        verbatim_fields: Sequence[str] = (),
        fault_of: Callable[[Record], str | None] = lambda record: None,
        label_field: str | None = None,
        document_fields: Sequence[str] = (),
    ) -> None:
        self._parallel_fields, self._verbatim_fields = parallel_fields, verbatim_fields
        self._document_fields, self._fault_of, self._label_field = document_fields, fault_of, label_field
        self.report = CleaningReport()
        self._settings = settings
        self._seen: dict[str, RecordSet] = {}

    def _normalize(self, field: str, text: str | bytes) -> str | bytes:
        """The text of a field, as its kind of field asks for."""
        if field in self._verbatim_fields or isinstance(text, bytes):
            return text
        return (normalize_document if field in self._document_fields else normalize)(text, self._settings)

    def _find_fault(self, record: Record, split: str) -> str | None:
        fault = find_fault(record, self._settings, self._parallel_fields, self._verbatim_fields, self._document_fields)
        try:
            return fault or self._fault_of(record)
        except UserError as error:
            raise UserError(f"data.{split}: record {self.report[split].read}: {error}") from error

    def _find_repetition(self, record: Record, split: str) -> str | None:
        settings = self._settings
        is_train = split == "train"
        others = [seen for other, seen in self._seen.items() if other != split]
        if (settings.drop_leaks or not is_train) and any(record in seen for seen in others):
            return "leak"
        if (settings.drop_duplicates or not is_train) and not self._seen[split].add(record):
            return "duplicate"
        return None

    def clean(self, split: str, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the normalised records that are kept, and count the other ones in `report`.

        Raises:
            UserError: `fault_of` cannot read a record.
        """
        if "train" in self._seen:
            raise ValueError(f"train must be cleaned last, but {split} comes after it")
        number = self._settings.max_records_per_label
        if split != "train" or number is None or self._label_field is None:
            yield from self._sound(split, records)
            return
        sound = self._sound(split, records)
        chosen = choose_per_label(sound, self._label_field, number, self._settings.choice_seed)
        report = self.report[split]
        if report.kept > len(chosen):
            report.dropped["over_label"] = report.kept - len(chosen)
            report.examples["over_label"] = []
        report.kept = len(chosen)
        yield from chosen

    def _sound(self, split: str, records: Iterable[Record]) -> Iterator[Record]:
        """Those that nothing is wrong with; of validation and test all."""
        report = self.report[split] = SplitReport()
        self._seen[split] = RecordSet()
        for raw in records:
            report.read += 1
            record = {name: self._normalize(name, text) for name, text in raw.items()}
            reason = self._find_fault(record, split) or self._find_repetition(record, split)
            is_dropped = reason is not None and (split == "train" or reason in UNREADABLE)
            if reason:
                report.note(reason, record, drop=is_dropped)
            if not is_dropped:
                report.kept += 1
                yield record


def build_cleaner(settings: CleaningSettings, task_class: Any) -> Cleaner:
    """What cleans the records of a task, which says how its fields are to be taken."""
    return Cleaner(
        settings,
        task_class.parallel_fields,
        task_class.verbatim_fields,
        task_class.fault_of,
        task_class.label_field,
        task_class.document_fields,
    )
