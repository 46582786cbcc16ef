"""Rounds become results: quantiles in milliseconds, ratios by round, shares of communication.

Ratios are taken within a round, where both models met the same machine, and then their median.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from krakenlm.bench.models import Contender
from krakenlm.bench.results import BASELINE, ModelLatency
from krakenlm.bench.runner import Timing
from krakenlm.config import count_parameters
from krakenlm.spread import Quantiles


class Facts(NamedTuple):
    """What does not change from round to round.

    Attributes:
        allreduces: sums of one prefill.
        message_bytes: of the largest.
        units: held by each rank.
    """

    allreduces: int
    message_bytes: int
    units: tuple[int, ...]


def summarise(
    contenders: Sequence[Contender],
    facts: Sequence[Facts],
    timings: Sequence[Timing],
    output_len: int,
) -> tuple[ModelLatency, ...]:
    """Results in the order of the contenders.

    Args:
        contenders: the models.
        facts: of each of them.
        timings: of all rounds, each model once a round; two rounds or more.
        output_len: tokens generated for each prompt.
    """
    rounds = [[t for t in timings if t.model == index] for index in range(len(contenders))]
    baseline = next(
        (r for c, r in zip(contenders, rounds, strict=True) if c.config.wiring == BASELINE), None
    )
    return tuple(
        _summarise_one(contender, fact, mine, baseline, output_len)
        for contender, fact, mine in zip(contenders, facts, rounds, strict=True)
    )


def _summarise_one(
    contender: Contender,
    facts: Facts,
    rounds: Sequence[Timing],
    baseline: Sequence[Timing] | None,
    output_len: int,
) -> ModelLatency:
    exposed = [r.ttft - r.no_comm_ttft for r in rounds]
    tpot = _tpot(rounds, output_len)
    ratios = [b.ttft / r.ttft for b, r in zip(baseline or (), rounds, strict=baseline is not None)]
    # Of all rounds or of none.
    alone = [r.alone for r in rounds if facts.allreduces and r.alone is not None]
    return ModelLatency(
        wiring=contender.config.wiring,
        label=contender.label,
        variant=contender.variant,
        late_layers=contender.config.late_layers or None,
        parameters=count_parameters(contender.config),
        prefill_chunks=contender.prefill_chunks,
        units=facts.units,
        ttft_ms=_milliseconds([r.ttft for r in rounds]),
        tpot_ms=_milliseconds(tpot) if tpot else None,
        latency_ms=_milliseconds([r.latency for r in rounds]),
        no_comm_ttft_ms=_milliseconds([r.no_comm_ttft for r in rounds]),
        no_comm_tpot_ms=_milliseconds([r.no_comm_tpot for r in rounds]) if tpot else None,
        allreduces=facts.allreduces,
        message_bytes=facts.message_bytes,
        allreduce_ms=_milliseconds([a.largest for a in alone]) if alone else None,
        communication_ms=_milliseconds([a.communication for a in alone]) if alone else None,
        exposed_ms=_milliseconds(exposed),
        hidden_share=_median(
            [hidden_share(e, a.communication) for e, a in zip(exposed, alone, strict=False)]
        ),
        hideable_share=_median(
            [
                hideable_share(e, a.communication, a.hideable)
                for e, a in zip(exposed, alone, strict=False)
            ]
        ),
        speedup=statistics.median(ratios) if ratios else None,
        speedup_spread=Quantiles.of(ratios) if ratios else None,
        tpot_speedup=_tpot_speedup(baseline, tpot, output_len),
    )


def hidden_share(exposed: float, communication: float) -> float | None:
    """How much of the communication did not show; None where there is none."""
    return hideable_share(exposed, communication, communication)


def hideable_share(exposed: float, communication: float, hideable: float) -> float | None:
    """How much of the hideable part was hidden, if what cannot hide is exposed in full.

    Args:
        exposed: what communication added to the pass.
        communication: of all sums alone.
        hideable: of those that have compute to hide behind.

    Returns:
        0 to 1; None where nothing can hide.
    """
    if hideable <= 0.0:
        return None
    return min(max((communication - exposed) / hideable, 0.0), 1.0)


def _tpot(rounds: Sequence[Timing], output_len: int) -> list[float]:
    """Seconds per token after the first, by round; empty where there is only the first."""
    if output_len == 1:
        return []
    return [(r.latency - r.ttft) / (output_len - 1) for r in rounds]


def _tpot_speedup(
    baseline: Sequence[Timing] | None, mine: Sequence[float], output_len: int
) -> float | None:
    if not baseline or not mine:
        return None
    theirs = _tpot(baseline, output_len)
    return statistics.median(b / m for b, m in zip(theirs, mine, strict=True))


def _milliseconds(seconds: Sequence[float]) -> Quantiles:
    return Quantiles.of([1000 * value for value in seconds])


def _median(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return statistics.median(known) if known else None
