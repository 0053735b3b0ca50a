"""Normalise texts, drop training records that teach nothing or too much, and report what was done."""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from kerasllm.data.settings import CleaningSettings

Record = dict[str, str]

REASONS = {
    "empty": "a text is empty",
    "too_short": "a text has fewer than min_characters",
    "too_long": "a text has more than max_characters",
    "length_ratio": "one text is longer than max_length_ratio times another",
    "duplicate": "repeats an earlier record of the split",
    "leak": "the record is also in another split",
}
_EXAMPLES_PER_REASON = 3
_EXAMPLE_CHARACTERS = 160


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
        digest = blake2b("\0".join(record.values()).encode("utf-8"), digest_size=8).digest()
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
            examples.append(f"{self.read}: {' | '.join(record.values())}"[:_EXAMPLE_CHARACTERS])


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
    record: Record, settings: CleaningSettings, parallel_fields: Sequence[str], document_fields: Sequence[str] = ()
) -> str | None:
    """The first reason that a normalised record gives by itself, None if it is sound."""
    lengths = [len(text) for text in record.values()]
    if min(lengths) == 0 or not all(text.strip() for text in record.values()):
        return "empty"
    if min(lengths) < settings.min_characters:
        return "too_short"
    if any(len(text) > settings.max_characters for name, text in record.items() if name not in document_fields):
        return "too_long"
    parallel = [len(record[field]) for field in parallel_fields]
    if parallel and settings.max_length_ratio is not None and max(parallel) > settings.max_length_ratio * min(parallel):
        return "length_ratio"
    return None


class Cleaner:
    """Cleans the splits of one corpus, `train` last, because it must not hold what stands in the other ones.

    Validation and test stay whole, or their figures could not be compared with those of others: what would be dropped
    from training is only noted in the report. Memory: 12 to 24 bytes a record.

    Args:
        parallel_fields: whose texts say the same, so that `max_length_ratio` compares their lengths.
        document_fields: whose texts keep the ends of their lines, and may have any length.
    """

    def __init__(
        self, settings: CleaningSettings, parallel_fields: Sequence[str] = (), document_fields: Sequence[str] = ()
    ) -> None:
        self._parallel_fields, self._document_fields = parallel_fields, document_fields
        self.report = CleaningReport()
        self._settings = settings
        self._seen: dict[str, RecordSet] = {}

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
        """Yield the normalised records that are kept, and count the other ones in `report`."""
        if "train" in self._seen:
            raise ValueError(f"train must be cleaned last, but {split} comes after it")
        report = self.report[split] = SplitReport()
        self._seen[split] = RecordSet()
        for raw in records:
            report.read += 1
            record = {
                name: (normalize_document if name in self._document_fields else normalize)(text, self._settings)
                for name, text in raw.items()
            }
            fault = find_fault(record, self._settings, self._parallel_fields, self._document_fields)
            reason = fault or self._find_repetition(record, split)
            if reason:
                report.note(reason, record, drop=split == "train")
            if reason is None or split != "train":
                report.kept += 1
                yield record
