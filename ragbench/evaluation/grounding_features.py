"""What a sentence's wording tells about its support by passages: shared words, foreign names and numbers, negation.

The ideas are old ones of factual consistency: n-gram precision against the source (ROUGE, Lin 2004), and entities,
numbers and negations as the usual places of an unfaithful change (FactCC, Kryściński et al. 2020).
"""

import re
from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# In the middle of a sentence: its first word, a bullet's and a quotation's have a capital anyway.
_NAME = re.compile(r"(?<=[\w,;)] )[A-Z][\w-]+")
_IDENTIFIER = re.compile(r"\w+(?:[._]\w+)+|[a-z]+[A-Z]\w*|(?<!\w)--?[a-z][\w-]*")
_NEGATION = re.compile(r"\b(no|not|never|none|neither|nor|nothing|cannot|without|unable)\b|n['’]t\b", re.IGNORECASE)
# Not "one", which is more often a pronoun.
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], start=2
    )
}
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about above after again all also am an and any are as at be because been before being below between "
        "both but by can could did do does doing down during each either etc few for from further had has have "
        "having he her here hers him his how however i if in into is it its itself just may me might more most "
        "must my no nor not of off on once only onto or other our out over own per same shall she should since so "
        "some such than that the their them then there therefore these they this those though through thus to too "
        "under until up upon us very via was we were what when where whether which while who whom whose why will "
        "with within without would you your yours yes",
    )
)


@dataclass(frozen=True)
class Passages:
    """The words of passages, taken apart once for all the sentences that are held against them.

    Attributes:
        stems: of every content word.
        pairs: of neighbouring words in one sentence, function words included.
        numbers: as they are written, without thousands separators.
        sentences: the stems of each sentence, and whether it negates.
    """

    stems: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    numbers: frozenset[str]
    sentences: tuple[tuple[frozenset[str], bool], ...]


def passages(sentences: Sequence[str]) -> Passages:
    """Take the sentences of passages apart; neither their order nor their grouping matters."""
    parts = tuple((frozenset(content_stems(text)), negates(text)) for text in sentences)
    return Passages(
        frozenset().union(*(stems for stems, _ in parts)),
        frozenset(pair for text in sentences for pair in _pairs(text)),
        frozenset(number for text in sentences for number in numbers(text)),
        parts,
    )


def wording(sentence: str, sources: Passages) -> dict[str, float]:
    """Return how a sentence's wording agrees with passages.

    Keys: ``coverage``, the share of content words that the passages have; ``pairs``, the same of neighbouring words;
    ``foreign_names``, the share of names (and code identifiers) that no passage has; ``foreign_numbers``, 1 if it has a
    number that no passage has; ``negation``, where the sentence negates and the one nearest in wording does not or the
    other way round, the cube of the share of words that they have in common, else 0: only between near copies does it
    tell something. All are between 0 and 1.
    """
    stems = content_stems(sentence)
    nearest, negated = max(sources.sentences, key=lambda part: _share(stems, part[0]), default=(frozenset(), False))
    return {
        "coverage": _share(stems, sources.stems),
        "pairs": _share(list(_pairs(sentence)), sources.pairs),
        "foreign_names": 1 - _share(names(sentence), sources.stems),
        "foreign_numbers": float(not sources.numbers.issuperset(numbers(sentence))),
        "negation": _share(stems, nearest) ** 3 if stems and negates(sentence) != negated else 0.0,
    }


def content_stems(text: str) -> list[str]:
    """Return the stems of all words but function words, in order."""
    return [stem(word) for word in _WORD.findall(text.lower()) if word not in _FUNCTION_WORDS]


def names(sentence: str) -> list[str]:
    """Return the stems of capitalised words inside the sentence and of the parts of code identifiers."""
    found = [*_NAME.findall(sentence), *_IDENTIFIER.findall(sentence)]
    parts = [part for name in found for part in re.findall(r"[^\W_]+", name.lower())]
    return [stem(part) for part in parts if part not in _FUNCTION_WORDS and not part.isdigit()]


def numbers(text: str) -> list[str]:
    """Return the numbers in digits, small ones in words too, without thousands separators."""
    spelled = [_NUMBER_WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _NUMBER_WORDS]
    return [number.replace(",", "") for number in _NUMBER.findall(text)] + spelled


def negates(text: str) -> bool:
    """Whether the text has a negation."""
    return _NEGATION.search(text) is not None


def stem(word: str) -> str:
    """Return a lower-case word without the commonest English endings: copies, copied and copying become one."""
    if any(character.isdigit() for character in word):
        return word.replace(",", "")
    for ending, instead in (("ies", "y"), ("ied", "y"), ("s", ""), ("ing", ""), ("ed", ""), ("ly", ""), ("e", "")):
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending) + instead
    return word


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    words = _WORD.findall(text.lower())
    return pairwise(words)


def _share(wanted: Sequence[Hashable], present: Set[Hashable]) -> float:
    """Share of `wanted` that is present; 1 where nothing is wanted."""
    return sum(each in present for each in wanted) / len(wanted) if wanted else 1.0
