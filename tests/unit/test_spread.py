"""Middle and range of repeated measurements, against values known by hand."""

import statistics

import pytest

from krakenlm.spread import Quantiles, Spread


def test_quantiles_of_values_known_by_hand():
    assert Quantiles.of([3.0, 1.0, 2.0]) == Quantiles(median=2.0, p10=1.2, p90=2.8)
    values = [float(value) for value in range(101)]
    assert Quantiles.of(values[::-1]) == Quantiles(median=50.0, p10=10.0, p90=90.0)
    assert Quantiles.of([5.0, 5.0]) == Quantiles(median=5.0, p10=5.0, p90=5.0)
    with pytest.raises(statistics.StatisticsError):
        Quantiles.of([])


def test_spread_of_values_known_by_hand():
    assert Spread.of([3.0, 1.0, 2.0, 9.0]) == Spread(median=2.5, least=1.0, most=9.0)
    assert Spread.of([5.0]) == Spread(median=5.0, least=5.0, most=5.0)
    with pytest.raises(statistics.StatisticsError):
        Spread.of([])


def test_a_spread_in_a_table_shows_its_range_where_it_has_one():
    assert Spread.of([1.755, 1.7, 1.81]).text(2, "x") == "1.75x (1.70–1.81)"
    assert Spread.of([12.0, 30.0, 14.26]).text(1) == "14.3 (12.0–30.0)"
    assert Spread.of([85.0, 85.0]).text(0, " %") == "85 %"
