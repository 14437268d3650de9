"""Which of the present signs is the fault itself, and which are only its consequences."""

from collections.abc import Sequence

from ragbench.diagnosis.sign import Sign

EXPLAINS: dict[str, tuple[str, ...]] = {
    "cut_off": ("missed",),
    "blind_topic": ("missed",),
    "over_refusal": ("wrong_despite_retrieval", "format", "synthesis", "domain_terms"),
    "off_topic": ("wrong_despite_retrieval", "hallucination", "ignores_passages", "domain_terms"),
    "ignores_passages": ("wrong_despite_retrieval", "hallucination", "synthesis", "domain_terms"),
    "hallucination": ("wrong_despite_retrieval", "synthesis", "domain_terms"),
    "domain_terms": ("wrong_despite_retrieval", "hallucination", "off_topic"),
    "synthesis": ("wrong_despite_retrieval",),
    "format": ("off_topic",),
}
"""What a fault brings with it: an answer that ignores its passages is wrong and unsupported; one that is wrong on
questions with special terms is wrong on some. So the first is named, and the others are told as its consequences."""


def explained(present: Sequence[Sign]) -> dict[str, str]:
    """Return, for each present sign that is the consequence of another present one, the name of that."""
    names = [sign.name for sign in present]
    return {effect: cause for cause in names for effect in EXPLAINS.get(cause, ()) if effect in names}


def faults(signs: Sequence[Sign]) -> tuple[Sign, ...]:
    """Return the present signs that no other one explains, the worst first.

    Worst is what lies farthest above its threshold, as a share of the way from there to 1. Two signs that explain each
    other both stay.
    """
    present = [sign for sign in signs if sign.state == "present"]
    causes = explained(present)
    kept = [sign for sign in present if sign.name not in causes or causes.get(causes[sign.name]) == sign.name]
    return tuple(sorted(kept, key=lambda sign: -(sign.rate - sign.threshold) / (1 - sign.threshold)))
