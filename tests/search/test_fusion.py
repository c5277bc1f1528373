import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.search.fusion import by_score, dbsf, rrf


def test_a_key_scores_by_its_rank_in_each_leg() -> None:
    fused = rrf([(["a", "b"], 1.0), (["b", "c"], 1.0)], k=60)

    best = 2 / 61
    assert [key for key, _ in fused] == ["b", "a", "c"]
    assert [score * best for _, score in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_first_in_every_leg_is_one() -> None:
    assert dict(rrf([(["a"], 0.3), (["a"], 2.0), (["a", "b"], 1.0)]))["a"] == pytest.approx(1.0)


def test_weights_decide_between_legs_that_disagree() -> None:
    legs = (["a", "b"], ["b", "a"])

    assert [key for key, _ in rrf([(legs[0], 1.0), (legs[1], 0.5)])] == ["a", "b"]
    assert [key for key, _ in rrf([(legs[0], 0.5), (legs[1], 1.0)])] == ["b", "a"]


def test_a_leg_of_no_weight_is_not_looked_at() -> None:
    assert rrf([(["a"], 1.0), (["b"], 0.0)]) == [("a", 1.0)]


def test_a_smaller_constant_favours_the_first_rank() -> None:
    legs = [(["a", "x", "b"], 1.0), (["y", "z", "b"], 1.0)]

    assert rrf(legs, k=60)[0][0] == "b"
    assert rrf(legs, k=0)[0][0] == "a"


def test_equal_scores_keep_the_order_of_the_legs() -> None:
    assert [key for key, _ in rrf([(["a", "b"], 1.0), (["c", "d"], 1.0)])] == ["a", "c", "b", "d"]


@pytest.mark.parametrize("legs", [[], [([], 1.0)], [(["a"], 0.0)]])
def test_nothing_fuses_to_nothing(legs: list[tuple[list[str], float]]) -> None:
    assert rrf(legs) == []


_rankings = st.lists(st.integers(0, 20), max_size=15, unique=True)


@given(first=_rankings, second=_rankings, weight=st.floats(0.01, 10), k=st.integers(1, 100))
def test_all_keys_come_back_once_with_falling_scores(
    first: list[int], second: list[int], weight: float, k: int
) -> None:
    fused = rrf([(first, 1.0), (second, weight)], k=k)

    scores = [score for _, score in fused]
    assert sorted(key for key, _ in fused) == sorted({*first, *second})
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 + 1e-9 for score in scores)


@given(ranking=_rankings, weight=st.floats(0.01, 10))
def test_one_leg_keeps_its_order(ranking: list[int], weight: float) -> None:
    assert [key for key, _ in rrf([(ranking, weight), ([], 1.0)])] == ranking


def test_scores_are_scaled_by_how_far_they_stand_out_of_the_others() -> None:
    near = {"a": 0.9} | {f"x{n}": 0.5 + n / 500 for n in range(49)}
    worded = {"b": 12.0} | {f"x{n}": 5.0 + n / 10 for n in range(49)}

    vector, keyword = by_score(near, among=50), by_score(worded, among=50)

    assert 0.9 < vector["a"] < 1.0  # seven standard deviations from the least
    assert 0.6 < keyword["b"] < 0.7  # four and a half
    assert vector["x0"] == keyword["x0"] == 0.0
    assert by_score({"a": 2.0, "b": 1.0}, among=2) == {"a": 1.0, "b": 0.0}


def test_a_leg_that_found_fewer_stands_out_of_what_has_none_of_the_words() -> None:
    few = {"a": 6.0, "b": 5.0}

    assert by_score({"a": 6.0}, among=50) == {"a": pytest.approx(1.0)}
    assert by_score(few, among=2) == {"a": 1.0, "b": 0.0}
    scaled = by_score(few, among=50)
    assert scaled["b"] / scaled["a"] == pytest.approx(5 / 6)
    assert 0.7 < scaled["a"] < 1.0


def test_the_leg_in_which_a_match_stands_out_further_decides() -> None:
    others = [f"x{n}" for n in range(40)]
    near = {"a": 0.95, "b": 0.62} | {key: 0.6 - n / 200 for n, key in enumerate(others)}
    worded = {"b": 8.0, "a": 6.0} | {key: 7.5 - n / 20 for n, key in enumerate(others)}

    assert dbsf([(near, 1.0), (worded, 1.0)])[0][0] == "a"
    assert rrf([(list(near), 1.0), (sorted(worded, key=lambda key: -worded[key]), 1.0)])[0][0] == "b"


def test_what_a_leg_lacks_counts_as_its_last() -> None:
    near = {"a": 0.9, "b": 0.8, "c": 0.5}
    worded = {"b": 9.0, "d": 7.0, "e": 5.0}

    lacking = dict(dbsf([(near, 1.0), (worded, 1.0)]))

    assert lacking["a"] == pytest.approx(dict(dbsf([(near, 1.0)]))["a"] / 2)
    assert lacking["c"] == lacking["e"] == 0.0


def test_scores_that_are_all_alike_are_all_the_best() -> None:
    assert by_score({"a": 0.1 + 0.2, "b": 0.3}, among=2) == {"a": 1.0, "b": 1.0}
    assert by_score({"a": 7.0}, among=1) == {"a": 1.0}
    assert by_score({}, among=50) == {}


def test_fusion_by_scores_keeps_a_lead_that_fusion_by_ranks_forgets() -> None:
    near = {"a": 0.91, "b": 0.90, "c": 0.89}
    worded = {"b": 1.1, "c": 1.0, "a": 9.0}

    assert dbsf([(near, 1.0), (worded, 1.0)])[0][0] == "a"
    assert dbsf([(near, 1.0), (worded, 0.0)])[0][0] == "a"
    assert dbsf([(near, 0.0), ({}, 1.0)]) == []


@given(
    st.lists(st.dictionaries(st.integers(0, 9), st.floats(-1e6, 1e6), max_size=8), min_size=1, max_size=3),
    st.floats(0.01, 100),
    st.floats(-100, 100),
)
def test_fused_scores_lie_between_0_and_1_and_do_not_depend_on_the_scale(
    legs: list[dict[int, float]], factor: float, shift: float
) -> None:
    ordered = [dict(sorted(leg.items(), key=lambda item: -item[1])) for leg in legs]

    fused = dbsf([(leg, 1.0) for leg in ordered])

    assert all(0 <= score <= 1 for _, score in fused)
    assert {key for key, _ in fused} == {key for leg in legs for key in leg}
    if max(map(len, legs)) > min(map(len, legs)):
        shift = 0.0  # the rest of a leg that has less scores 0
    moved = [{key: score * factor + shift for key, score in leg.items()} for leg in ordered]
    if all(len(leg) < 2 or max(leg.values()) - min(leg.values()) > 1 for leg in ordered):
        assert dict(dbsf([(leg, 1.0) for leg in moved])) == pytest.approx(dict(fused), abs=1e-5)
