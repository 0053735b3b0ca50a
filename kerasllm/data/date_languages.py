"""A built-in set of texts with labels: dates as people write them, and the language that each is written in.

    {"text": "venerdì 5 marzo 2021", "label": "it"}
    {"text": "2021年3月5日金曜日", "label": "ja"}

The forms are those of `dates.py` that spell out the day of the week, because it has another name in each of the nine
languages: so the label follows from the text alone.
"""

import random
from collections.abc import Iterator

from kerasllm.data.dates import FORMS, days_of, write_form

LANGUAGE_FORMS = {
    language: [form for form in forms if form == "full" or "EEEE" in form] for language, forms in FORMS.items()
}


def generate_date_languages(split: str, num_records: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield records with `text` and `label`, always the same ones for (split, seed); the splits share no day."""
    generator = random.Random(f"date_languages/{split}/{seed}")
    days = days_of(split, seed)
    for _ in range(num_records):
        language = generator.choice(list(LANGUAGE_FORMS))
        form = generator.choice(LANGUAGE_FORMS[language])
        yield {"text": write_form(generator.choice(days), language, form, generator), "label": language}
