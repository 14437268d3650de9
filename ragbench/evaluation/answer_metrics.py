"""What can be told of an answer without another model: overlap with the reference, form, citations, refusal.

Every function takes one answer and returns a number between 0 and 1, or None where the metric does not apply.
"""

import re
from collections import Counter
from collections.abc import Collection as Container

CITATION = re.compile(r"(?<![\w)`])\[([^\[\]\s]+)\]")
"""An id in square brackets that does not follow a word: ``d[key]`` is code, not a citation."""
HOUSE_STYLE = r".*\S (\[[^\[\]\s]+\] ?)+"
"""The default form: text that ends with one or more sources in square brackets."""

_REFUSAL = re.compile(
    r"\[none\]"
    # "The documents do not say", as a sentence of its own: "returns -1 if the text does not contain it" is an answer.
    r"|(^|[.!?:]\s+)(sorry, |unfortunately, )?(the |these |this |your )?(provided |given )?"
    r"(documents?|documentation|passages?|context|sources?)\b.{0,20}\b(do|does|did)(n't| not) "
    r"(say|tell|mention|contain|state|provide)"
    r"|(\bnot|n't) (mentioned|stated|specified|provided) in the (documents?|documentation|passages?|context|sources?)\b"
    r"|\b(i|we)( am|'m| are|'re)? (cannot|can't|can not|unable to) (answer|determine)"
    r"|\b(cannot|can't|can not) be answered",
    re.IGNORECASE,
)
_ARTICLES = {"a", "an", "the"}


def citations(answer: str) -> list[str]:
    """Return the ids cited in square brackets, each once, in order; ``[none]`` is no citation."""
    return [cited for cited in dict.fromkeys(CITATION.findall(answer)) if cited != "none"]


def words(text: str) -> list[str]:
    """Return the lower-cased words of an answer, without citations and English articles.

    SQuAD's normalization (Rajpurkar et al. 2016), but punctuation separates words rather than vanishing, so that
    ``shutil.copytree(src)`` shares its words with ``copytree``.
    """
    return [word for word in re.findall(r"\w+", CITATION.sub(" ", text).lower()) if word not in _ARTICLES]


def exact_match(answer: str, reference: str) -> float:
    """Return 1 if answer and reference have the same words in the same order."""
    return float(words(answer) == words(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of word precision and recall, as SQuAD does; 1 if both are empty."""
    ours, theirs = words(answer), words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def conforms(answer: str, pattern: str = HOUSE_STYLE) -> float:
    """Return 1 if the whole answer matches the regular expression `pattern`."""
    return float(re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None)


def form(answer: str) -> str:
    """Return the kind of text an answer is: ``empty``, ``refusal``, ``code``, ``list``, ``cited`` or ``plain`` text."""
    if not answer.strip():
        return "empty"
    if refuses(answer):
        return "refusal"
    if "```" in answer:
        return "code"
    if len(re.findall(r"^\s*([-*\u2022]|\d+[.)]) ", answer, re.MULTILINE)) > 1:
        return "list"
    return "cited" if citations(answer) else "plain"


def refuses(answer: str) -> bool:
    """Whether the answer says that the documents do not tell."""
    return _REFUSAL.search(answer.replace("\u2019", "'")) is not None


def refusal(answer: str, answerable: bool) -> float:
    """Return 1 if an unanswerable question is refused, or an answerable one is not."""
    return float(refuses(answer) != answerable)


def citation_precision(answer: str, gold: Container[str]) -> float | None:
    """Return the share of cited passages that are gold; 0 if nothing is cited; None if there is no gold."""
    if not gold:
        return None
    cited = citations(answer)
    return sum(passage_id in gold for passage_id in cited) / len(cited) if cited else 0.0


def citation_recall(answer: str, groups: Container[frozenset[str]]) -> float | None:
    """Return the share of needed groups of passages of which one is cited; None if nothing is needed."""
    if not groups:
        return None
    cited = set(citations(answer))
    return sum(bool(cited & group) for group in groups) / len(groups)
