import pytest

from ragbench.evaluation import verdict as module
from ragbench.evaluation.verdict import tuning_verdict

KEPT = {"kept": "tuned", "reason": "nDCG@10 on dev rose by 0.1"}
NOT_KEPT = {"kept": "base", "reason": "recall on dev fell."}


def entry(split, metric, difference, low, high, p=0.001, holm=0.02, n=80):
    return {
        "split": split, "metric": metric, "baseline": "base", "system": "retriever", "difference": difference,
        "ci": [low, high], "p_value": p, "p_holm": holm, "n": n,
    }  # fmt: skip


def metrics(*entries):
    measured = {}
    for found in entries:
        for system, mean in (("base", 0.4), ("retriever", 0.4 + (found["difference"] or 0))):
            measured.setdefault(system, {}).setdefault(found["split"], {})[found["metric"]] = {"mean": mean}
    return {"systems": measured, "comparisons": list(entries)}


GAIN = entry("test", "ndcg@10", 0.08, 0.03, 0.13)
NONE = entry("test", "ndcg@10", 0.01, -0.02, 0.04, p=0.4, holm=1.0)
LOSS = entry("test", "ndcg@10", -0.05, -0.08, -0.02)
OOD_LOSS = entry("ood", "ndcg@10", -0.02, -0.03, -0.011)
OOD_HELD = entry("ood", "ndcg@10", 0.002, -0.008, 0.012, p=0.6, holm=1.0)
OOD_UNSURE = entry("ood", "ndcg@10", -0.02, -0.06, 0.02, p=0.3, holm=1.0)


def verdict(*entries, decision=KEPT, **options):
    return tuning_verdict(metrics(*entries), decision, **options)


def reason(found, start):
    [sentence] = [sentence for sentence in found["reasons"] if sentence.startswith(start)]
    return sentence


@pytest.mark.parametrize(
    ("main", "headline"),
    [
        (GAIN, "Fine-tuning the retriever raised nDCG@10 on test by 0.080 [0.030, 0.130]."),
        (
            NONE,
            "Keep the base: fine-tuning the retriever made no clear difference to nDCG@10 on test "
            "(+0.010 [-0.020, +0.040]).",
        ),
        (LOSS, "Keep the base: fine-tuning the retriever lowered nDCG@10 on test by 0.050 [0.020, 0.080]."),
    ],
    ids=["gain", "none", "loss"],
)
def test_the_headline_is_the_change_of_the_parts_own_measure_on_test(main, headline):
    assert verdict(main, OOD_HELD, entry("test", "answer_f1", 0.3, 0.2, 0.4))["headline"] == headline


def test_an_interval_beside_0_is_no_gain_where_the_test_says_it_may_be_chance():
    few = entry("test", "ndcg@10", 0.2, 0.1, 0.3, p=0.25, holm=1.0, n=3)
    found = verdict(few)
    assert "made no clear difference" in found["headline"]
    assert "+0.200 [+0.100, +0.300], no clear difference, n = 3" in reason(found, "On test")


def test_a_small_p_is_no_gain_where_the_interval_holds_0():
    assert "no clear difference" in verdict(entry("test", "ndcg@10", 0.1, 0.0, 0.2, p=0.04))["headline"]


@pytest.mark.parametrize(
    ("ood", "tolerance", "said"),
    [
        (OOD_LOSS, 0.01, "a clear loss, n = 80; the loss is more than the 0.010 that is tolerated."),
        (OOD_LOSS, 0.03, "a clear loss, n = 80; at most the tolerated 0.030 is lost."),
        (OOD_LOSS, 0.025, "a clear loss, n = 80; whether more than the tolerated 0.025 is lost cannot be told."),
        (OOD_HELD, 0.01, "no clear difference, n = 80; at most the tolerated 0.010 is lost."),
        (
            OOD_UNSURE,
            0.01,
            "no clear difference, n = 80; whether more than the tolerated 0.010 is lost cannot be told.",
        ),
        (entry("ood", "ndcg@10", 0.05, 0.01, 0.09), 0.01, "a clear gain, n = 80."),
    ],
)
def test_the_loss_out_of_domain_is_held_against_what_is_tolerated(ood, tolerance, said):
    assert reason(verdict(GAIN, ood, tolerance=tolerance), "On ood, nDCG@10 went from 0.400 to").endswith(said)


@pytest.mark.parametrize("main", [GAIN, NONE, LOSS])
def test_a_loss_beyond_what_is_tolerated_stands_in_the_headline_whatever_happened_on_test(main):
    said = "; on ood it lost 0.020 [0.011, 0.030], more than the 0.010 that is tolerated."
    assert verdict(main, OOD_LOSS)["headline"].endswith(said)
    for other in (OOD_HELD, OOD_UNSURE):
        assert "ood" not in verdict(main, other)["headline"]
    assert "ood" not in verdict(main, OOD_LOSS, tolerance=0.02)["headline"]


def test_what_happened_downstream_on_test_is_told_each_with_its_evidence():
    found = verdict(
        GAIN,
        OOD_HELD,
        entry("test", "context_recall", 0.07, 0.02, 0.12),
        entry("test", "answer_f1", -0.01, -0.03, 0.01, p=0.3, n=78),
        entry("ood", "answer_f1", 0.5, 0.4, 0.6),
    )
    shown, answered = [sentence for sentence in found["reasons"] if sentence.startswith("Elsewhere, on test")]
    assert "(context_recall) went from 0.400 to 0.470: +0.070 [+0.020, +0.120], a clear gain, n = 80." in shown
    assert "(answer_f1) went from 0.400 to 0.390: -0.010 [-0.030, +0.010], no clear difference, n = 78." in answered


def test_the_choice_on_dev_is_told_with_its_reason():
    assert verdict(GAIN)["reasons"][0] == "Decided on dev: nDCG@10 on dev rose by 0.1."


@pytest.mark.parametrize("entries", [(), (entry("test", "ndcg@10", 0.0, 0.0, 0.0, 1.0, 1.0), OOD_HELD)])
def test_a_base_that_training_kept_is_the_verdict_and_no_comparison_with_itself_is_told(entries):
    found = verdict(*entries, decision=NOT_KEPT)
    assert found["headline"] == "Keep the base: fine-tuning the retriever did not pass the checks on dev."
    assert found["certainty"].startswith("Nothing was tested")
    assert found["reasons"] == [
        "Decided on dev: recall on dev fell.",
        "So the system 'retriever' is the same as 'base' in this report.",
    ]


def test_the_certainty_gives_p_before_and_after_the_correction_and_what_survives_it():
    said = verdict(
        GAIN,
        OOD_LOSS,
        entry("test", "recall@5", 0.1, 0.05, 0.2, p=0.0002, holm=0.04),
        entry("test", "answer_f1", 0.1, 0.05, 0.2, p=0.02, holm=0.2),
    )["certainty"]
    assert said == (
        "80 questions, paired: randomization test p = 0.001, p = 0.020 after Holm's correction for 4 comparisons. "
        "After it, 2 of 4 measures over the splits are clearly better and 1 clearly worse."
    )
    assert "p < 0.001, p = 0.040" in verdict(entry("test", "ndcg@10", 0.1, 0.05, 0.2, 0.0002, 0.04))["certainty"]


def test_another_pair_of_systems_is_not_told_but_belongs_to_the_family():
    other = GAIN | {"system": "generator", "difference": 0.7}
    found = verdict(other, GAIN)
    assert "0.080" in found["headline"]
    assert "for 2 comparisons" in found["certainty"] and "1 of 1 measures" in found["certainty"]


@pytest.mark.parametrize(
    "entries", [(), (GAIN | {"difference": 0.1, "ci": None, "p_value": None, "p_holm": None, "n": 1},)]
)
def test_too_few_questions_are_said_to_tell_nothing(entries):
    found = verdict(*entries)
    assert found["headline"].startswith("Whether fine-tuning the retriever helped cannot be told: fewer than two")
    assert found["certainty"] == "Nothing was tested."
    assert "fewer than two questions" in reason(found, "On ood")


def test_nothing_lost_is_written_without_a_sign_of_its_own():
    still = entry("test", "ndcg@10", 0.0, -0.0001, 0.0, p=1.0, holm=1.0)
    assert "+0.000 [+0.000, +0.000]" in verdict(still)["headline"]


def test_another_part_is_judged_by_its_own_measure():
    tuned = entry("test", "answer_f1", 0.1, 0.05, 0.2) | {"system": "generator"}
    both = {"systems": {name: {"test": {"answer_f1": {"mean": 0.3}}} for name in ("base", "generator")}}
    found = tuning_verdict(both | {"comparisons": [tuned]}, KEPT, system="generator")
    assert found["headline"] == "Fine-tuning the generator raised answer_f1 on test by 0.100 [0.050, 0.200]."


# Several systems


def against(system, f1, low, high, metric="answer_f1", p=0.001, split="test"):
    return entry(split, metric, f1, low, high, p) | {"system": system}


def judged(*entries, decisions=None, **options):
    measured = {}
    for found in entries:
        for system, mean in (("base", 0.4), (found["system"], 0.4 + found["difference"])):
            measured.setdefault(system, {}).setdefault(found["split"], {})[found["metric"]] = {"mean": mean}
    systems = dict.fromkeys(found["system"] for found in entries)
    return module.verdict(
        {"systems": measured, "comparisons": list(entries)}, decisions or dict.fromkeys(systems, KEPT), **options
    )


RETRIEVER = (against("retriever", 0.05, 0.02, 0.08, "ndcg@10"), against("retriever", 0.01, -0.02, 0.04, p=0.5))
GENERATOR = against("generator", 0.10, 0.05, 0.15)
BOTH = against("both", 0.12, 0.06, 0.18)
LOST = against("generator", -0.10, -0.15, -0.05)


def test_used_is_the_system_whose_answers_gained_most_among_those_that_clearly_gained():
    found = judged(*RETRIEVER, GENERATOR, BOTH)
    assert found["use"] == "both"
    assert found["headline"] == "Use 'both'. Fine-tuning each part raised answer_f1 on test by 0.120 [0.060, 0.180]."
    assert "picked by its answers on test among the 3 systems with a clear gain" in found["certainty"]
    assert list(found["sections"]) == ["retriever", "generator", "both"]
    assert "raised nDCG@10 on test by 0.050" in found["sections"]["retriever"][0]


def test_a_larger_difference_that_is_not_clear_is_not_used():
    found = judged(*RETRIEVER, LOST, against("both", 0.2, -0.1, 0.5, p=0.4))
    assert found["use"] == "retriever"
    assert "picked" not in found["certainty"]
    assert "lowered answer_f1 on test by 0.100" in found["sections"]["generator"][0]


def test_without_a_clear_gain_the_base_is_kept_and_each_system_is_told():
    found = judged(LOST, against("both", 0.0, -0.1, 0.1, p=0.9))
    assert (found["use"], found["headline"]) == ("base", "Keep the base: no tuned system is clearly better on test.")
    assert list(found["sections"]) == ["generator", "both"]


def test_a_system_whose_training_kept_the_base_is_never_used():
    found = judged(GENERATOR, BOTH, decisions={"generator": NOT_KEPT, "both": KEPT})
    assert found["use"] == "both"
    assert "recall on dev fell" in found["sections"]["generator"][1]


def test_a_single_tuned_system_is_told_without_a_heading_of_its_own():
    found = judged(GENERATOR, against("generator", 0.2, 0.1, 0.3, "grounding"))
    assert found["headline"] == "Fine-tuning the generator raised answer_f1 on test by 0.100 [0.050, 0.150]."
    [reasons] = found["sections"].values()
    assert any("(grounding) went from 0.400 to 0.600" in reason for reason in reasons)


def test_a_loss_out_of_domain_of_the_used_system_stands_in_the_headline():
    lost = against("both", -0.05, -0.08, -0.02, split="ood")
    assert "on ood it lost 0.050 [0.020, 0.080]" in judged(*RETRIEVER, BOTH, lost)["headline"]


def test_joint_training_that_kept_nothing_is_the_system_that_it_started_from():
    metrics = {"systems": {"base": {}, "both": {}, "end_to_end": {}}, "comparisons": []}
    found = tuning_verdict(metrics, NOT_KEPT, system="end_to_end")
    assert found["headline"] == "Keep 'both': training both parts together did not pass the checks on dev."
    assert found["reasons"][1] == "So the system 'end_to_end' is the same as 'both' in this report."
