"""A built-in set to learn from at once: dates as people write them, and the same dates in ISO 8601.

    {"source": "5. März 2021", "target": "2021-03-05"}
    {"source": "friday march 5th 2021", "target": "2021-03-05"}
    {"source": "2021年3月5日 星期五", "target": "2021-03-05"}

What the Unicode CLDR knows (names, orders, punctuation of nine languages) comes from Babel; how people bend it is
listed below. The answer follows from the text alone: years have four digits, and numbers stand in an order that
their separators tell (dots: day.month.year or year.month.day; slashes and dashes: year first; never 03/04/2021).
"""

import hashlib
import random
import re
from collections.abc import Iterator
from datetime import date, timedelta

from babel.dates import format_date

FIRST_DAY = date(1900, 1, 1)
LAST_DAY = date(2099, 12, 31)

# Patterns of the CLDR: y year, M or MM month, MMM its abbreviation, MMMM its name, d or dd day, EEE and EEEE weekday,
# text in quotes. {nth} is the ordinal of the day.
FORMS = {
    "en": (
        "full", "long", "medium", "MMMM {nth}, y", "{nth} 'of' MMMM y", "EEEE, MMMM {nth}, y", "EEE, MMM d, y",
        "d MMMM y", "EEE, d MMM y", "MMMM dd, y", "d-MMM-y", "y MMMM d",
    ),
    "de": (
        "full", "long", "medium", "dd. MMMM y", "d. MMM y", "EEE, d. MMM y", "EEEE, 'den' d. MMMM y", "EEE, dd.MM.y",
        "d.M.y",
    ),
    "fr": ("full", "long", "medium", "EEEE {nth} MMMM y", "'le' {nth} MMMM y", "EEE d MMM y", "dd MMMM y"),
    "es": (
        "full", "long", "medium", "d MMMM y", "EEEE d 'de' MMMM 'de' y", "d 'de' MMM 'de' y", "EEE d MMM y",
        "dd 'de' MMMM 'del' y",
    ),
    "it": ("full", "long", "medium", "{nth} MMMM y", "EEEE {nth} MMMM y", "EEE d MMM y", "dd MMMM y"),
    "ru": ("full", "long", "medium", "d MMMM y", "EEEE, d MMMM y", "EEE, d MMM y", "dd.MM.y"),
    "zh": (
        "full", "long", "y年M月d日 EEEE", "y年M月d日 EEE", "y年M月d日（EEE）", "y年MM月dd日", "EEEE y年M月d日", "y-M-d",
        "y-MM-dd",
    ),
    "ja": (
        "full", "long", "medium", "y年M月d日(EEE)", "y年M月d日 EEEE", "y年MM月dd日", "y/M/d", "y/MM/dd(EEE)",
    ),
    "ko": ("full", "long", "medium", "y년 M월 d일 (EEE)", "y년 MM월 dd일", "y년M월d일", "y.MM.dd"),
}  # fmt: skip


def without_dots(text: str) -> str:
    """Drop the dots of abbreviations and ordinals; those between numbers stay, for they tell the order."""
    return re.sub(r"(?<!\d)\.|\.(?!\d)", "", text) if any(map(str.isalpha, text)) else text


BENDS = {
    "as it is": lambda text: text,
    "lower case": str.lower,
    "upper case": str.upper,
    "no comma": lambda text: text.replace(",", ""),
    "no dot": without_dots,
}
BEND_WEIGHTS = (6, 2, 1, 2, 1)


def ordinal(day: int, language: str) -> str:
    """The day of a month as it is counted: 1st, 2nd, 3rd, 4th in English, 1er in French, 1º in Italian."""
    if language == "en":
        return f"{day}th" if day in (11, 12, 13) else f"{day}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th') }"
    first = {"fr": "1er", "it": "1º"}
    return first[language] if day == 1 else str(day)


def split_of(day: date, seed: int) -> str:
    """The split that a day of the calendar belongs to, in whatever way it is written: 1 in 20 is validation, 1 test."""
    bucket = hashlib.sha256(f"{seed}/{day.isoformat()}".encode()).digest()[0] % 20
    return {0: "validation", 1: "test"}.get(bucket, "train")


def days_of(split: str, seed: int) -> list[date]:
    """The days of a split, in the order of the calendar."""
    days = (FIRST_DAY + timedelta(n) for n in range((LAST_DAY - FIRST_DAY).days + 1))
    return [day for day in days if split_of(day, seed) == split]


def write_form(day: date, language: str, form: str, generator: random.Random) -> str:
    """A day in one of the `FORMS` of a language, bent or not."""
    if "{nth}" in form:
        form = form.replace("{nth}", f"'{ordinal(day.day, language)}'")
    text = format_date(day, form, locale=language)
    (bend,) = generator.choices(list(BENDS), BEND_WEIGHTS)
    return BENDS[bend](text)


def write_date(day: date, generator: random.Random) -> str:
    """One of the ways to write a day."""
    language = generator.choice(list(FORMS))
    return write_form(day, language, generator.choice(FORMS[language]), generator)


def generate_dates(split: str, num_records: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield records with `source` and `target`, always the same ones for (split, seed).

    The days of the split are walked through in random order, so that none comes twice before each came once. No day
    of one split occurs in another: the answers of `test` are never seen in training.
    """
    days = days_of(split, seed)
    generator = random.Random(f"dates/{split}/{seed}")
    generator.shuffle(days)
    for n in range(num_records):
        day = days[n % len(days)]
        yield {"source": write_date(day, generator), "target": day.isoformat()}
