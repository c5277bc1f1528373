import math

import pytest

from appliance.search.quality import ndcg, recall


def test_a_perfect_ranking_has_ndcg_one() -> None:
    assert ndcg(["a", "b", "x"], {"a": 2, "b": 1}, k=10) == 1.0


def test_ndcg_by_hand() -> None:
    dcg = 1 / math.log2(3) + 2 / math.log2(5)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)

    assert ndcg(["x", "b", "y", "a"], {"a": 2, "b": 1, "c": 1, "y": 0}, k=10) == pytest.approx(dcg / ideal)


def test_gain_is_linear() -> None:
    assert ndcg(["b", "a"], {"a": 3, "b": 1}, k=2) == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_only_the_first_k_count_for_the_ranking_and_for_the_ideal() -> None:
    judged = dict.fromkeys("abcdef", 1)

    assert ndcg(["a", "b"], judged, k=2) == 1.0
    assert ndcg(["x", "y", "a"], judged, k=2) == 0.0


def test_recall_is_the_share_of_the_relevant_that_was_found() -> None:
    judged = {"a": 1, "b": 2, "c": 0, "d": 1}

    assert recall(["x", "a", "c", "b"], judged, k=10) == pytest.approx(2 / 3)
    assert recall(["x", "a", "c", "b"], judged, k=2) == pytest.approx(1 / 3)


def test_judged_below_zero_is_not_relevant() -> None:
    assert ndcg(["a", "b"], {"a": -1, "b": 1}, k=2) == pytest.approx(1 / math.log2(3))
    assert recall(["a"], {"a": -1, "b": 1}, k=2) == 0.0


def test_a_query_without_relevant_documents_scores_nothing() -> None:
    assert ndcg(["a"], {"a": 0}, k=10) == 0.0
    assert recall(["a"], {}, k=10) == 0.0
