"""Which of the present signs is the fault itself, and which are only its consequences."""

from collections.abc import Sequence

from ragbench.diagnosis.sign import Sign

EXPLAINS: dict[str, tuple[str, ...]] = {
    "blind_topic": ("missed",),
    "over_refusal": ("wrong_despite_retrieval", "format"),
    "off_topic": ("wrong_despite_retrieval", "hallucination", "ignores_passages", "domain_terms"),
    "ignores_passages": ("wrong_despite_retrieval", "hallucination", "synthesis", "domain_terms"),
    "hallucination": ("wrong_despite_retrieval", "synthesis", "domain_terms"),
    "domain_terms": ("wrong_despite_retrieval", "hallucination", "off_topic"),
    "synthesis": ("wrong_despite_retrieval",),
    "format": ("off_topic",),
}
"""What a fault brings with it: an answer that ignores its passages is wrong and unsupported; one that is wrong on
questions with special terms is wrong on some. So the first is named, and the others are told as its consequences."""


def explained(signs: Sequence[Sign]) -> dict[str, str]:
    """Return, for each present sign that is the consequence of another present one, the name of that.

    Of two that would explain each other, neither is told as the other's consequence. A blind topic explains that
    passages are missed only if without its questions too few are left for that sign.
    """
    present = {sign.name: sign for sign in signs if sign.state == "present"}
    found: dict[str, str] = {}
    for cause, sign in present.items():
        for effect in EXPLAINS.get(cause, ()):
            if effect in present and effect not in found and cause not in EXPLAINS.get(effect, ()):
                rest = len(set(present[effect].query_ids) - set(sign.query_ids))
                if cause != "blind_topic" or rest <= present[effect].threshold * present[effect].n:
                    found[effect] = cause
    return found


def faults(signs: Sequence[Sign]) -> tuple[Sign, ...]:
    """Return the present signs that no other one explains, the worst first.

    Worst is what lies farthest above its threshold, as a share of the way from there to 1.
    """
    causes = explained(signs)
    kept = [sign for sign in signs if sign.state == "present" and sign.name not in causes]
    return tuple(sorted(kept, key=lambda sign: -(sign.rate - sign.threshold) / (1 - min(sign.threshold, 0.999))))
