"""Small passes whose times were worked out by hand."""

import pytest

from krakenlm.plan.schedule import ALONE as ALONE_IN_TIME
from krakenlm.plan.schedule import Await, Compute, Contention, Send, play, total

BOTH = (0, 1)
ALONE = (0,)


def played(*programs, contention=ALONE_IN_TIME):
    return play(programs, contention)


def test_without_sums_work_follows_work():
    (rank,) = played([Compute(2.0, "a"), Compute(0.0), Compute(3.0, "b")])
    assert (rank.seconds, rank.exposed) == (5.0, 0.0)
    assert rank.spans == [("a", "compute", 0.0, 2.0), ("b", "compute", 2.0, 5.0)]


def test_an_exposed_sum_is_waited_for():
    (rank,) = played([Compute(2.0), Send(0, ALONE, 3.0), Await(0), Compute(1.0)])
    assert (rank.seconds, rank.exposed) == (6.0, 3.0)
    assert ("0", "wire", 2.0, 5.0) in rank.spans and ("0", "wait", 2.0, 5.0) in rank.spans


@pytest.mark.parametrize(("beside", "seconds", "exposed"), [(2.0, 6.0, 1.0), (4.0, 7.0, 0.0)])
def test_a_sum_hides_behind_what_is_computed_meanwhile(beside, seconds, exposed):
    steps = [Compute(2.0), Send(0, ALONE, 3.0), Compute(beside), Await(0), Compute(1.0)]
    (rank,) = played(steps)
    assert (rank.seconds, rank.exposed) == (seconds, exposed)
    assert total(steps) == 3.0 + beside


def test_sums_follow_each_other_on_the_wire():
    (rank,) = played([Send(0, ALONE, 3.0), Send(1, ALONE, 2.0), Await(1), Await(0)])
    assert (rank.seconds, rank.exposed) == (5.0, 5.0)


def test_what_is_in_flight_leaves_the_wire_to_the_next():
    # On the wire until 3 and 6, there at 5 and 8.
    steps = [Send(0, ALONE, 3.0, 2.0), Send(1, ALONE, 3.0, 2.0), Await(0), Compute(1.0), Await(1)]
    (rank,) = played(steps)
    assert rank.seconds == 8.0
    assert rank.exposed == 5.0 + 2.0
    assert [span for span in rank.spans if span.lane == "wire"] == [
        ("0", "wire", 0.0, 3.0),
        ("1", "wire", 3.0, 6.0),
    ]


def test_the_slowest_rank_decides_when_a_sum_starts():
    def steps(before):
        return [Compute(before), Send(0, BOTH, 1.0), Await(0), Compute(2.0)]

    fast, slow = played(steps(1.0), steps(4.0))
    assert (fast.seconds, slow.seconds) == (7.0, 7.0)
    assert (fast.exposed, slow.exposed) == (4.0, 1.0)


def test_a_rank_that_waits_for_nobody_goes_on():
    first, second = played([Send(0, ALONE, 2.0), Await(0)], [Compute(5.0)])
    assert (first.seconds, second.seconds) == (2.0, 5.0)


def test_a_late_sum_of_one_pair_holds_up_the_queue_of_another():
    # Rank 1 takes part in both; its link carries the sum with rank 0 first, which is late.
    first, middle, last = played(
        [Compute(3.0), Send(0, (0, 1), 1.0), Await(0)],
        [Send(0, (0, 1), 1.0), Send(1, (1, 2), 1.0), Await(1), Await(0)],
        [Send(1, (1, 2), 1.0), Await(1)],
    )
    assert (first.seconds, middle.seconds, last.seconds) == (4.0, 5.0, 5.0)


def test_computing_beside_a_sum_takes_longer():
    # Half speed for the one second on the wire, so half a second is left of it afterwards.
    steps = [Send(0, ALONE, 1.0), Compute(2.0), Await(0)]
    (rank,) = played(steps, contention=Contention(compute=2.0))
    assert (rank.seconds, rank.exposed) == (2.5, 0.0)


def test_a_sum_beside_computing_takes_longer():
    # A third of its way in the first second, the rest alone.
    steps = [Send(0, ALONE, 1.0), Compute(1.0), Await(0)]
    (rank,) = played(steps, contention=Contention(wire=3.0))
    assert rank.seconds == pytest.approx(1.0 + 2 / 3)
    assert rank.exposed == pytest.approx(2 / 3)


def test_a_chunk_hides_the_sum_of_another():
    # Two chunks of one layer each: attend, sum, feed.
    steps = [
        Compute(2.0), Send(0, ALONE, 2.0),
        Compute(2.0), Send(1, ALONE, 2.0),
        Await(0), Compute(1.0),
        Await(1), Compute(1.0),
    ]  # fmt: skip
    (rank,) = played(steps)
    assert (rank.seconds, rank.exposed) == (7.0, 1.0)


def test_ranks_that_begin_in_another_order_are_noticed():
    with pytest.raises(AssertionError, match="same order"):
        played(
            [Send(0, BOTH, 1.0), Send(1, BOTH, 1.0), Await(0)],
            [Send(1, BOTH, 1.0), Send(0, BOTH, 1.0), Await(0)],
        )
