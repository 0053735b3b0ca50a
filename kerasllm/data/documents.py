"""Documents from text files: each one record, its paragraphs separated by line ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# In the WikiText corpora, marks inside of words and numbers stand so: `1 @,@ 000`, `role @-@ play`.
_WIKITEXT_JOINT = re.compile(r" ?@([-,.])@ ?")
_WIKITEXT_UNKNOWN, _UNKNOWN = "<unk>", "[UNK]"


def undo_wikitext(line: str) -> str:
    """A line of WikiText as people write it; what it leaves out, `<unk>`, becomes BERT's unknown token `[UNK]`.

    >>> undo_wikitext("a role @-@ playing game of <unk> with 1 @,@ 000 levels")
    'a role-playing game of [UNK] with 1,000 levels'
    """
    return _WIKITEXT_JOINT.sub(r"\1", line).replace(_WIKITEXT_UNKNOWN, _UNKNOWN)


def split_documents(lines: Iterable[str], document_start: str | None = None, escapes: str = "none") -> Iterator[str]:
    r"""Documents of a file, their lines that are not blank separated by "\n".

    Args:
        lines: with or without their ends.
        document_start: a regular expression; a document begins with each line in which it is found, and what stands
            before the first one is a document, too. None: documents are separated by lines with nothing but space.
        escapes: `wikitext` undoes those of the WikiText corpora.
    """
    starts, document = re.compile(document_start) if document_start is not None else None, []
    for line in lines:
        line = line.rstrip("\r\n")
        is_blank = not line.strip()
        if document and (starts.search(line) if starts else is_blank):
            yield "\n".join(document)
            document = []
        if not is_blank:
            document.append(undo_wikitext(line) if escapes == "wikitext" else line)
    if document:
        yield "\n".join(document)
