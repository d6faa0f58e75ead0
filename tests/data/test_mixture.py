"""Rows of several data sets in proportion."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalekit.data.sources.mixture import Mixed, Mixture
from scalekit.errors import ColumnError, ConfigError, EmptyDataError


class Rows(Sequence):
    """Any number of rows; row i is (name, i)."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length = name, length
        self.column_names = ["input_ids"]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[str, int]:
        return self.name, i


FEW = settings(max_examples=30, deadline=None)
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=4)


@st.composite
def mixed(draw: st.DrawFn) -> Mixed:
    lengths = draw(LENGTHS)
    weights = draw(st.lists(st.floats(1e-3, 1e3), min_size=len(lengths), max_size=len(lengths)))
    length = draw(st.none() | st.integers(1, 60))
    parts = [Rows(str(j), each) for j, each in enumerate(lengths)]
    return Mixed(parts, weights, draw(st.integers(0, 2**63)), length)


def rows_of(mixed: Mixed, part: int, epochs: int) -> list[int]:
    drawn = [mixed.at_epoch(epoch).locate(i) for epoch in range(epochs) for i in range(len(mixed))]
    return [row for owner, row in drawn if owner == part]


def test_an_epoch_is_as_long_as_its_parts_together_and_split_by_weight() -> None:
    mixed = Mixed([Rows("a", 30), Rows("b", 70)], [3.0, 1.0], seed=0)
    assert len(mixed) == 100
    assert Counter(name for name, _ in (mixed[i] for i in range(100))) == {"a": 75, "b": 25}


@given(mixed())
@FEW
def test_proportions_are_exact_to_one_row(mixed: Mixed) -> None:
    counts = Counter(mixed.locate(i)[0] for i in range(len(mixed)))
    total = sum(Fraction(weight) for weight in mixed.weights)
    exact = [len(mixed) * Fraction(weight) / total for weight in mixed.weights]
    lifted = sum(share < 1 for share in exact)
    for part, share in enumerate(exact):
        # Parts worth less than a row are given one, and the larger ones give theirs.
        assert -1 - lifted < counts[part] - share < 1
        assert counts[part] >= 1 or len(mixed) < len(mixed.weights)


def test_a_part_worth_less_than_a_row_still_gets_one() -> None:
    mixed = Mixed([Rows("a", 5), Rows("b", 5), Rows("c", 5)], [1000.0, 1.0, 1.0], seed=0)
    assert Counter(mixed.locate(i)[0] for i in range(15)) == {0: 13, 1: 1, 2: 1}


@given(mixed(), st.integers(1, 5))
@FEW
def test_every_row_of_a_part_comes_once_before_any_comes_twice(mixed: Mixed, epochs: int) -> None:
    for part, rows in enumerate(mixed.parts):
        seen = rows_of(mixed, part, epochs)
        for start in range(0, len(seen), len(rows)):
            one_pass = seen[start : start + len(rows)]
            assert len(set(one_pass)) == len(one_pass)
            assert set(one_pass) <= set(range(len(rows)))


@given(mixed(), st.randoms())
@FEW
def test_a_row_does_not_depend_on_what_was_read_before(mixed: Mixed, random: object) -> None:
    places = list(range(len(mixed)))
    in_order = [mixed[i] for i in places]
    random.shuffle(places)  # type: ignore[attr-defined]
    again = Mixed(mixed.parts, mixed.weights, mixed.seed, len(mixed))
    assert [again[i] for i in places] == [in_order[i] for i in places]


@given(mixed(), st.lists(st.integers(0, 59), max_size=8))
@FEW
def test_rows_asked_for_together_are_those_asked_for_one_by_one(mixed: Mixed, places: list[int]) -> None:
    places = [place % len(mixed) for place in places]
    assert mixed.at_epoch(2).__getitems__(places) == [mixed.at_epoch(2)[place] for place in places]


@given(mixed())
@FEW
def test_an_epoch_is_told_by_its_number_alone(mixed: Mixed) -> None:
    third = mixed.at_epoch(7).at_epoch(3)
    assert len(third) == len(mixed)
    assert [third[i] for i in range(len(third))] == [mixed.at_epoch(3)[i] for i in range(len(mixed))]


def test_seed_part_and_pass_each_change_the_order() -> None:
    def order(seed: int, part: int, epoch: int) -> list[int]:
        return rows_of(Mixed([Rows("a", 50), Rows("b", 50)], [1.0, 1.0], seed).at_epoch(epoch), part, 1)

    first = order(0, 0, 0)
    assert first == order(0, 0, 0)
    assert sorted(first) == list(range(50))
    mixed = Mixed([Rows("a", 50), Rows("b", 50)], [1.0, 1.0], 0)
    second = [mixed.at_epoch(1).locate(i)[1] for i in range(50)]
    assert len({tuple(each) for each in (first, second, order(1, 0, 0), order(0, 1, 0))}) == 4


def test_billions_of_rows_cost_nothing() -> None:
    lengths = (10**12, 3 * 10**11)
    mixed = Mixed([Rows(str(length), length) for length in lengths], [0.25, 0.75], seed=1).at_epoch(10**6)
    assert len(mixed) == sum(lengths)
    split = sum(lengths) // 4
    assert mixed.locate(split - 1)[0] == 0
    assert mixed.locate(split)[0] == 1
    assert 0 <= mixed.locate(len(mixed) - 1)[1] < lengths[1]


def test_places_count_from_the_end_as_in_a_list_and_end_where_it_ends() -> None:
    mixed = Mixed([Rows("a", 3), Rows("b", 4)], [1.0, 1.0], 0)
    assert mixed[-1] == mixed[6]
    assert [row for row in mixed] == [mixed[i] for i in range(7)]  # noqa: C416
    with pytest.raises(IndexError, match="7 rows"):
        mixed[7]


def test_columns_are_those_of_the_parts() -> None:
    parts = [Rows("a", 3), Rows("b", 3)]
    assert Mixed(parts, [1.0, 1.0], 0).column_names == ["input_ids"]
    parts[1].column_names = ["image"]
    with pytest.raises(ColumnError, match=r"input_ids.*image"):
        Mixed(parts, [1.0, 1.0], 0)
    assert not hasattr(Mixed([range(3)], [1.0], 0), "column_names")


@pytest.mark.parametrize(
    ("parts", "weights", "length", "error", "said"),
    [
        ([Rows("a", 3)], [0.0], None, ConfigError, "weight 0.0.*above 0"),
        ([Rows("a", 3)], [-1.0], None, ConfigError, "weight -1.0"),
        ([Rows("a", 3)], [float("nan")], None, ConfigError, "weight nan"),
        ([Rows("a", 3)], [float("inf")], None, ConfigError, "weight inf"),
        ([Rows("a", 3)], ["much"], None, ConfigError, "weight 'much'"),
        ([Rows("a", 3)], [True], None, ConfigError, "weight True"),
        ([], [], None, ConfigError, "no parts"),
        ([Rows("a", 3)], [1.0, 1.0], None, ConfigError, "1 parts and 2 weights"),
        ([Rows("a", 3), Rows("b", 0)], [1.0, 1.0], None, EmptyDataError, "part 1 of the mixture has no rows"),
        ([Rows("a", 3)], [1.0], 0, ConfigError, "length=0"),
    ],
)
def test_wrong_mixtures(parts: list, weights: list, length: int | None, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        Mixed(parts, weights, 0, length)


def test_a_users_mixture_has_a_positive_weight_for_every_part() -> None:
    assert Mixture([("a.jsonl", 0.5), ("b.jsonl", 2)]).parts == (("a.jsonl", 0.5), ("b.jsonl", 2))
    with pytest.raises(ConfigError, match="weight 0"):
        Mixture([("a.jsonl", 0)])
    with pytest.raises(ConfigError, match="pairs"):
        Mixture(["a.jsonl"])
    with pytest.raises(ConfigError, match="no parts"):
        Mixture([])
