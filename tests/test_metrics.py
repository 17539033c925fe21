"""Metrics of maps and answers against the public code's own numbers, and against what they are given."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qavit import metrics

GOLDEN = Path(__file__).parent / "data" / "golden"
VQA = GOLDEN / "vqa_score"
THREE = range(3)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN / "metrics" / "metrics.npz") as file:
        return dict(file)


def near(got: Any, expected: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(got, float), np.asarray(expected, float), atol=tolerance, rtol=0)  # 3.1e-7


def model(golden: dict[str, Any], number: int) -> Callable[[Any], Any]:
    weights = golden["weights"].astype(np.float64)

    def score(pictures: Any) -> Any:
        logits = pictures.reshape(len(pictures), -1) @ weights.T
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (probabilities / probabilities.sum(axis=1, keepdims=True))[:, golden["top_class"][number]]

    return score


def over(golden: dict[str, Any], call: Callable[..., Any]) -> list[Any]:
    return [call(golden["maps"][i], golden["images"][i], model(golden, i)) for i in THREE]


def test_maps_beside_masks(golden):
    maps, masks = golden["maps"], golden["masks"]
    hits = [[metrics.pointing_hit(maps[i], masks[i], tolerance=t) for t in (0, 3, 15)] for i in THREE]
    np.testing.assert_array_equal(hits, golden["pointing"])
    near([metrics.energy_inside(maps[i], masks[i]) for i in THREE], golden["energy"])
    near([metrics.inside_top_k(maps[i], masks[i]) for i in THREE], golden["inside_topk"])


def test_segmentation(golden):
    metric = metrics.Segmentation()
    for _ in range(2):
        for i in THREE:
            metric.update(golden["maps"][i], golden["masks"][i])
        summary = metric.summary()
        near([summary["pixel_accuracy"], summary["miou"], summary["map"]], golden["seg_pixel_accuracy_mIoU_mAP"])
        assert summary["count"] == 3
        metric.reset()
    with pytest.raises(ValueError, match="call update"):
        metric.summary()


def test_pointing_game_is_the_mean_over_classes():
    metric = metrics.PointingGame(tolerance=0)
    heatmap, mask = np.zeros((4, 4)), np.zeros((4, 4))
    heatmap[1, 1] = mask[1, 1] = 1
    for _ in range(3):
        metric.update(heatmap, mask, "cat")
    metric.update(heatmap[::-1], mask, "dog")
    assert metric.summary() == {"pointing": 0.5, "hits": 0.75, "count": 4.0}
    metric.reset()
    with pytest.raises(ValueError, match="no maps yet"):
        metric.summary()


def test_maps_beside_maps(golden):
    maps = golden["maps"]
    pairs = [(maps[i], maps[(i + 1) % 3]) for i in THREE]
    near([metrics.spearman(*pair) for pair in pairs], golden["spearman"], 1e-12)
    near([metrics.pearson(*pair) for pair in pairs], golden["pearson"], 1e-12)
    near([metrics.kl_divergence(*pair) for pair in pairs], golden["kl"])
    near([metrics.overlap(*pair) for pair in pairs], golden["sim"])
    near(metrics.spearman(golden["ties_a"], golden["ties_b"]), golden["ties_spearman"], 1e-12)


@given(st.lists(st.integers(-3, 3), min_size=12, max_size=12), st.lists(st.integers(-3, 3), min_size=12, max_size=12))
def test_spearman_is_scipys(one, other):
    first, second = np.reshape(one, (3, 4)), np.reshape(other, (3, 4))
    expected = 0.0 if len(set(one)) == 1 or len(set(other)) == 1 else stats.spearmanr(one, other).statistic
    assert metrics.spearman(first, second) == pytest.approx(expected, abs=1e-12)


def test_deletion_and_insertion(golden):
    step = int(golden["rise_step"])
    for call, scores, auc in (
        (metrics.deletion, "rise_del_scores", "rise_del_auc"),
        (metrics.insertion, "rise_ins_scores", "rise_ins_auc"),
    ):
        curves = over(golden, lambda *given, call=call: call(*given, step=step))
        near([curve.scores for curve in curves], golden[scores])
        near([curve.auc for curve in curves], golden[auc])
    expected = golden["torchcam_del_ins_drop_increase"]
    near([c.auc for c in over(golden, lambda *given: metrics.deletion(*given, variant="torch-cam"))], expected[:, 0])
    near([c.auc for c in over(golden, lambda *given: metrics.insertion(*given, variant="torch-cam"))], expected[:, 1])
    near(over(golden, metrics.drop_and_increase), expected[:, 2:])
    absolute = over(golden, lambda *given: metrics.drop_and_increase(*given, variant="grad-cam"))
    near([drop for drop, _ in absolute], golden["gradcam_drop"])
    near([rise for _, rise in absolute], golden["gradcam_increase"])


def test_insertion_begins_with_its_substrate_and_ends_with_the_picture(golden):
    score, picture = model(golden, 0), golden["images"][0]
    blurred = np.broadcast_to(picture.mean(axis=(1, 2), keepdims=True), picture.shape)
    curve = metrics.insertion(golden["maps"][0], picture, score, step=37, substrate=blurred)
    near([curve.scores[0], curve.scores[-1]], score(np.stack([blurred, picture])), 1e-12)
    assert curve.fractions[0] == 0
    assert curve.fractions[-1] == 1
    half = metrics.deletion(golden["maps"][0], picture, score, variant="grad-eclip")
    assert (len(half.scores), half.fractions[-1]) == (101, 0.5)


def test_perturbation(golden):
    near(np.transpose([c.scores for c in over(golden, metrics.perturbation)]), golden["perturbation_positive"])
    bottom = over(golden, lambda *given: metrics.perturbation(*given, positive=False))
    near(np.transpose([c.scores for c in bottom]), golden["perturbation_negative"])


def test_road(golden):
    results = over(golden, lambda *given: metrics.road(*given, percentiles=golden["road_percentiles"]))
    near(np.transpose([r.most for r in results]), golden["road_most"])
    near(np.transpose([r.least for r in results]), golden["road_least"])
    near([r.combined for r in results], golden["road_combined"])
    for side in ("most", "least"):
        for percentile in (20, 80):
            for i in THREE:
                ranked = golden["maps"][i] if side == "most" else 1 - golden["maps"][i]
                imputed = metrics.impute(golden["images"][i], ranked >= np.percentile(ranked, percentile))
                near(imputed, golden[f"road_{side}_imputed_{percentile}"][i])
    picture = golden["images"][0]
    np.testing.assert_array_equal(metrics.impute(picture, np.zeros(picture.shape[1:], bool)), picture)
    assert not metrics.impute(picture, np.ones(picture.shape[1:], bool)).any()


def test_road_names_its_extra(golden, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r"qavit\[metrics\]"):
        metrics.impute(np.zeros((3, 2, 2)), np.eye(2) > 0)


def ones(pictures: Any) -> Any:
    return np.ones(len(pictures))


def answer_tables() -> tuple[Any, Any]:
    return json.loads((VQA / "results.json").read_text()), json.loads((VQA / "annotations.json").read_text())


def test_vqa_accuracy_is_the_public_scorers():
    expected = json.loads((VQA / "expected.json").read_text())
    for tables in ((VQA / "results.json", VQA / "annotations.json"), answer_tables()):
        score = metrics.vqa_accuracy(*tables)
        assert score["overall"] == expected["accuracy"]["overall"]
        assert score["per_answer_type"] == expected["accuracy"]["perAnswerType"]
        assert score["per_question_type"] == expected["accuracy"]["perQuestionType"]
        assert {str(number): percent for number, percent in score["per_question"].items()} == expected["per_question"]


def test_answers_are_normalised_as_the_public_scorer_does():
    cases = json.loads((VQA / "normalise.json").read_text())["normalise"]
    assert len(cases) > 500
    assert [(text, metrics.normalize_answer(text)) for text, _ in cases] == [tuple(case) for case in cases]


def test_a_part_of_the_questions_scores_only_when_asked():
    results, annotations = answer_tables()
    with pytest.raises(ValueError, match=r"of \d+ annotated questions have no result.*partial=True \(--partial\)"):
        metrics.vqa_accuracy(results[:5], annotations)
    score = metrics.vqa_accuracy(results[:5], annotations, partial=True)
    whole = metrics.vqa_accuracy(results, annotations)
    assert score["per_question"] == {row["question_id"]: whole["per_question"][row["question_id"]] for row in results[:5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results, _: results.append(dict(results[0])), "question_id 7000 stands twice"),
        (lambda results, _: results.append({"question_id": 1, "answer": "x"}), "question_id 1 has no annotation"),
        (lambda results, _: results[0].pop("answer"), "row 0: expected a text as 'answer', got NoneType"),
        (lambda results, _: results[1].update(answer=3), "row 1: expected a text as 'answer', got int"),
        (lambda results, _: results[2].update(question_id=None), "row 2: expected a whole number or a text"),
        (lambda results, _: results.insert(0, "text"), "row 0: .*'question_id'"),
        (lambda _, annotations: annotations["annotations"][0].update(answers=[]), "7000: expected a list of at least two"),
        (lambda _, annotations: annotations["annotations"][0]["answers"][3].pop("answer"), "7000: expected a text as"),
        (lambda _, annotations: annotations.update(annotations={}), "annotations: expected a list of rows, got dict"),
        (lambda results, annotations: (results.clear(), annotations["annotations"].clear()), "0 of 0"),
    ],
)
def test_wrong_tables_are_named(change, message):
    results, annotations = answer_tables()
    change(results, annotations)
    with pytest.raises(ValueError, match=message):
        metrics.vqa_accuracy(results, annotations)


def test_wrong_files_are_named(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("[{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        metrics.vqa_accuracy(broken, VQA / "annotations.json")
    with pytest.raises(FileNotFoundError):
        metrics.vqa_accuracy(tmp_path / "absent.json", VQA / "annotations.json")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.pointing_hit(np.ones((2, 2)), np.zeros((2, 2))), "marks no pixel"),
        (lambda: metrics.pointing_hit(np.ones((2, 2)), np.ones((3, 2))), r"mask: shape \[3, 2\] for a map of \[2, 2\]"),
        (lambda: metrics.energy_inside(np.full((2, 2), np.nan), np.ones((2, 2))), "map: holds values that are not finite"),
        (lambda: metrics.energy_inside(-np.ones((2, 2)), np.ones((2, 2))), "no negative values"),
        (lambda: metrics.inside_top_k(np.ones((2, 2)), np.full((2, 2), 7)), "mask: expected 1"),
        (lambda: metrics.spearman(np.ones(4), np.ones(4)), r"shape \[4\], expected \[H, W\]"),
        (lambda: metrics.overlap(np.ones((2, 2)), np.ones((2, 3))), "expected the same"),
        (lambda: metrics.deletion(np.ones((2, 2)), np.ones((3, 2, 3)), len), r"expected \[H, W\] and \[3, H, W\]"),
        (lambda: metrics.deletion(np.ones((2, 2)), np.ones((3, 2, 2)), lambda x: 1.0), r"score: gave shape \[\]"),
        (lambda: metrics.deletion(np.ones((2, 2)), np.ones((3, 2, 2)), len, variant="x"), "variant: got 'x'"),
        (lambda: metrics.deletion(np.ones((2, 2)), np.ones((3, 2, 2)), len, step=0), "step: got 0"),
        (lambda: metrics.deletion(np.ones((2, 2)), np.ones((3, 2, 2)), len, step=1, variant="torch-cam"), "step: of"),
        (lambda: metrics.drop_and_increase(np.ones((2, 2)), np.ones((3, 2, 2)), ones, variant="y"), "'y'"),
        (lambda: metrics.road(np.ones((2, 2)), np.ones((3, 2, 2)), ones, percentiles=[101]), "percentiles"),
        (lambda: metrics.road(np.ones((2, 2)), np.full((3, 2, 2), np.inf), len), "not finite"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_flat_maps_say_nothing():
    flat = np.ones((3, 3))
    assert metrics.spearman(flat, np.arange(9).reshape(3, 3)) == 0
    assert metrics.energy_inside(np.zeros((2, 2)), np.eye(2)) == 0.5


def gqa_questions() -> dict[str, Any]:
    kinds = [("query", "attr"), ("verify", "obj"), ("verify", "rel"), ("choose", "attr")]
    answers = ["red", "yes", "no", "2"]
    return {
        f"0{number}": {"question": "q", "answer": answer, "types": {"structural": kind, "semantic": about}}
        for number, (answer, (kind, about)) in enumerate(zip(answers, kinds))
    }


def test_gqa_accuracy_is_an_exact_match_after_the_two_rules():
    results = [{"questionId": f"0{i}", "prediction": text} for i, text in enumerate(["The red.", "Yes", "none", "two"])]
    score = metrics.gqa_accuracy(results, gqa_questions())
    assert score["per_question"] == {"00": 100.0, "01": 100.0, "02": 0.0, "03": 100.0}
    assert score["overall"] == 75.0
    assert score["per_structural_type"] == {"query": 100.0, "verify": 50.0, "choose": 100.0}
    assert score["per_semantic_type"] == {"attr": 100.0, "obj": 100.0, "rel": 0.0}
    listed = [{"question_id": int(name), "answer": row["answer"]} for name, row in gqa_questions().items()]
    theirs = [{"question_id": i, "pred_ans": "yes"} for i in range(3)]
    assert metrics.gqa_accuracy(theirs, listed, partial=True)["overall"] == 33.33


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"questionId": "00", "prediction": "x"}], "3 of 4 annotated questions have no result"),
        ([{"questionId": "9", "prediction": "x"}], "question_id '9' has no annotation"),
        ([{"questionId": "00", "prediction": None}], "expected a text as 'prediction', got NoneType"),
        ([{"id": "00", "prediction": "x"}], "expected a whole number or a text as 'questionId'"),
        ({"00": "x"}, "results: expected a list of rows, got dict"),
        ([], "4 of 4"),
    ],
)
def test_wrong_gqa_tables_are_named(results, message):
    with pytest.raises(ValueError, match=message):
        metrics.gqa_accuracy(results, gqa_questions())


def test_an_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        whole = 100.0 * (random.random(500) < 0.6)
        low, high = metrics.accuracy_interval(list(random.permutation(whole)[:200]), 500)
        held += low <= whole.mean() <= high
    assert 0.92 < held / 400 <= 1.0
    assert metrics.accuracy_interval([50.0, 100.0], 2) == (75.0, 75.0)
    low, high = metrics.accuracy_interval([0.0] * 20)
    assert (low, round(high, 1)) == (0.0, 16.1)  # Wilson's table
    for scores, total in (([], None), ([1.0, 2.0], 1)):
        with pytest.raises(ValueError, match="scores: "):
            metrics.accuracy_interval(scores, total)
