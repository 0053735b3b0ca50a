"""Ways to write down which words of a sentence make up an entity, and how each becomes BIO.

West  Ham   beat  Leeds  Leeds  United
I-ORG I-ORG O     I-ORG  B-ORG  I-ORG      iob1: B- only where two entities of one type touch
B-ORG I-ORG O     B-ORG  B-ORG  I-ORG      bio: B- at the first word of each entity
B-ORG E-ORG O     S-ORG  B-ORG  E-ORG      bioes: E- at the last one, S- at an only one
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

from kerasllm.errors import UserError

Scheme = Literal["iob1", "bio", "bioes"]
PREFIXES: dict[str, str] = {"iob1": "BI", "bio": "BI", "bioes": "BIES"}
OUTSIDE = "O"


class WrongTag(UserError):
    """A tag that its scheme does not have, or not there.

    Args:
        index: of the tag in its sentence, from 0.
        message: what is wrong with it.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def split_tag(tag: str) -> tuple[str, str]:
    """`B-ORG` -> ("B", "ORG"), `O` -> (OUTSIDE, "")."""
    prefix, _, type_ = tag.partition("-")
    return prefix, type_


def to_bio(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The tags of a sentence as BIO.

    Raises:
        WrongTag: the first one that cannot be in this scheme.
    """
    parts = [_read_tag(index, tag, scheme) for index, tag in enumerate(tags)]
    if scheme == "bio":
        _check_bio(tags, parts)
    elif scheme == "bioes":
        _check_bioes(tags, parts)
    begins = [prefix in "BS" for prefix, _ in parts]
    if scheme == "iob1":
        before = [(OUTSIDE, ""), *parts]
        begins = [begins[n] or type_ != before[n][1] for n, (_, type_) in enumerate(parts)]
    return [
        OUTSIDE if prefix == "O" else f"{'B' if begin else 'I'}-{type_}"
        for begin, (prefix, type_) in zip(begins, parts, strict=True)
    ]


def _read_tag(index: int, tag: str, scheme: Scheme) -> tuple[str, str]:
    prefix, type_ = split_tag(tag)
    if tag == OUTSIDE or (type_ and len(prefix) == 1 and prefix in PREFIXES[scheme]):
        return prefix, type_
    known = ", ".join(f"{each}-TYPE" for each in PREFIXES[scheme])
    raise WrongTag(index, f"tag '{tag}' is none of {scheme}, which has O, {known}")


def _check_bio(tags: Sequence[str], parts: Sequence[tuple[str, str]]) -> None:
    before = [(OUTSIDE, ""), *parts]
    for index, (prefix, type_) in enumerate(parts):
        if prefix == "I" and before[index][1] != type_:
            place = f"after '{tags[index - 1]}'" if index else "at the beginning of a sentence"
            raise WrongTag(index, f"tag '{tags[index]}' {place} is not bio, where an entity begins with B-{type_}")


def _check_bioes(tags: Sequence[str], parts: Sequence[tuple[str, str]]) -> None:
    """An entity that was begun goes on with I- or E- of its type, and these stand nowhere else."""
    for index, (before, after) in enumerate(pairwise([(OUTSIDE, ""), *parts, (OUTSIDE, "")])):
        is_open, goes_on = before[0] in "BI", after[0] in "IE"
        if is_open and not (goes_on and before[1] == after[1]):
            found = f"'{tags[index]}'" if index < len(tags) else "the end of the sentence"
            raise WrongTag(index - 1, f"tag '{tags[index - 1]}' before {found} is not bioes: the entity has no end")
        if goes_on and not is_open:
            raise WrongTag(index, f"tag '{tags[index]}' is not bioes here, where no entity was begun with B-{after[1]}")


def guess_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The strictest scheme that may be that of these sentences."""
    is_iob1 = False
    for tags in sentences:
        parts = [split_tag(tag) for tag in tags]
        if any(prefix in ("E", "S") for prefix, _ in parts):
            return "bioes"
        pairs = pairwise([(OUTSIDE, ""), *parts])
        is_iob1 |= any(prefix == "I" and type_ != before for (_, before), (prefix, type_) in pairs)
    return "iob1" if is_iob1 else "bio"


def allowed_by_bio(tags: Sequence[str]) -> tuple[list[list[bool]], list[bool]]:
    """Whether the tag of a column may follow that of a row, [C, C], and which ones may be the first, [C]."""

    def may_follow(before: str, tag: str) -> bool:
        prefix, type_ = split_tag(tag)
        return prefix != "I" or type_ == split_tag(before)[1]

    return [[may_follow(before, tag) for tag in tags] for before in tags], [may_follow(OUTSIDE, tag) for tag in tags]
