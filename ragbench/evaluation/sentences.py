"""Cutting a text into sentences, by rules that need no model."""

import re

_BREAK = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+(?=["'“‘(\[*#`-]*[A-Z0-9])|\s*\n\s*""")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|cf|al|Dr|Mr|Mrs|Ms|Prof|Fig|No|St|Inc|[A-Z])\.$|^\s*\d+\.$")


def sentences(text: str) -> list[str]:
    """Return the sentences of `text` in order: joined by single spaces they are the text, but for its white space.

    A line break ends a sentence, as lists and headings have no full stop. A bare bullet or number stays with what
    follows it, and an abbreviation or initial ends nothing.
    """
    pieces: list[str] = []
    start = 0
    for match in _BREAK.finditer(text):
        is_line = "\n" in match.group()
        if is_line or not _ABBREVIATION.search(text[start : match.start()]):
            pieces.append(text[start : match.end()])
            start = match.end()
    pieces.append(text[start:])
    found: list[str] = []
    for piece in (" ".join(piece.split()) for piece in pieces):
        if found and not re.search(r"\w\w", found[-1]):
            found[-1] = f"{found[-1]} {piece}".strip()
        elif piece:
            found.append(piece)
    return found
