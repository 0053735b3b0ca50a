"""A built-in set of sentences whose words are tagged: dates, times and sums of money that they mention.

    {"words": "Wir trafen uns am 5. März 2021 um 14:30 .", "tags": "O O O O B-DATE I-DATE I-DATE O B-TIME O"}
    {"words": "The bill of $ 1,250.00 came on Mar 5 , 2021 .", "tags": "O O O B-MONEY I-MONEY O O B-DATE ..."}

What the Unicode CLDR knows of five languages comes from Babel, the sentences are below. Punctuation is split off as in
`words.py`, but for the period of an ordinal, which stands inside of a date.
"""

import random
import re
from collections.abc import Iterator
from datetime import date, time

from babel.dates import format_time
from babel.numbers import format_currency

from kerasllm.data.dates import FORMS, days_of, write_form

SENTENCES = {
    "en": (
        "We met on {DATE} at {TIME}.", "The bill of {MONEY} came on {DATE}.", "Please pay {MONEY} before {TIME}.",
        "On {DATE}, the price fell to {MONEY}.", "Nobody was there at {TIME}.", "May I call you again?",
        "{DATE}: train to London, second platform, {TIME}, {MONEY}.", "She was born on {DATE} (in Paris).",
    ),
    "de": (
        "Wir trafen uns am {DATE} um {TIME}.", "Die Rechnung über {MONEY} kam am {DATE}.", "Es kostet {MONEY}.",
        "Bitte zahlen Sie {MONEY} vor {TIME}.", "Um {TIME} war niemand da.", "Rufen Sie bitte wieder an!",
        "{DATE}: Zug nach Berlin, Gleis zwei, {TIME}, {MONEY}.", "Sie wurde am {DATE} geboren (in Wien).",
    ),
    "fr": (
        "Nous nous sommes vus le {DATE} vers {TIME}.", "La facture de {MONEY} est du {DATE}.", "Merci de rappeler.",
        "Payez {MONEY} avant {TIME}.", "{DATE} : train pour Lyon, {TIME}, {MONEY}.", "Elle est née le {DATE}.",
    ),
    "es": (
        "Nos vimos el {DATE} sobre {TIME}.", "La factura de {MONEY} es del {DATE}.", "Llame otra vez, por favor.",
        "Pague {MONEY} antes de {TIME}.", "{DATE}: tren a Sevilla, {TIME}, {MONEY}.", "Nació el {DATE} (en Lima).",
    ),
    "it": (
        "Ci siamo visti il {DATE} verso {TIME}.", "La fattura di {MONEY} è del {DATE}.", "Richiami, per favore.",
        "Paghi {MONEY} prima di {TIME}.", "{DATE}: treno per Milano, {TIME}, {MONEY}.", "È nata il {DATE} (a Roma).",
    ),
}  # fmt: skip
CURRENCIES = ("EUR", "USD", "GBP", "JPY")
_MENTION = re.compile(r"\{([A-Z]+)\}")
_WORD = re.compile(r"\w+(?:[.,:/’'-]\w+)*(?:(?<=\.\w)\.)?|[^\w\s]")


def split_words(text: str) -> list[str]:
    """The words of a text, each sign of punctuation by itself unless it stands inside of a word."""
    return _WORD.findall(text)


def write_mention(kind: str, language: str, days: list[date], generator: random.Random) -> str:
    """A date of one of the days, a time of any day, or a sum of money."""
    if kind == "DATE":
        form = generator.choice(FORMS[language])
        return write_form(generator.choice(days), language, form, generator)
    if kind == "TIME":
        moment = time(generator.randrange(24), generator.randrange(60), generator.randrange(60))
        return format_time(moment, generator.choice(("short", "medium")), locale=language)
    amount = generator.choice((generator.randrange(1, 100), generator.randrange(100, 1_000_000) / 100))
    return format_currency(amount, generator.choice(CURRENCIES), locale=language)


def generate_date_mentions(split: str, num_records: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield records with `words` and `tags` (BIO), always the same ones for (split, seed); the splits share no day."""
    generator = random.Random(f"date_mentions/{split}/{seed}")
    days = days_of(split, seed)
    for _ in range(num_records):
        language = generator.choice(list(SENTENCES))
        words, tags = [], []
        for index, part in enumerate(_MENTION.split(generator.choice(SENTENCES[language]))):
            found = split_words(write_mention(part, language, days, generator) if index % 2 else part)
            words += found
            tags += [f"{'I' if place else 'B'}-{part}" if index % 2 else "O" for place in range(len(found))]
        yield {"words": " ".join(words), "tags": " ".join(tags)}
