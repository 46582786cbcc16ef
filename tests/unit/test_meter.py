"""Speed, MFU and time left are arithmetic on a clock; sequences are divided among processes."""

import pytest

from krakenlm.config import ModelConfig, count_parameters, model_config, training_flops_per_token
from krakenlm.errors import KrakenError
from krakenlm.train.meter import Meter, peak_flops
from krakenlm.train.ranks import share


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speed_leaves_out_the_start_and_the_pauses():
    clock = Clock()
    meter = Meter(1000, 6e6, 20, 2e10, clock)
    assert (meter.tokens_per_second, meter.mfu, str(meter)) == (None, None, "-")
    meter.begin(0)
    clock.now += 50  # compiling, and five steps
    meter.mark(5)
    assert meter.tokens_per_second == pytest.approx(100)
    clock.now += 5
    with meter.paused():
        clock.now += 1000
    meter.mark(10)
    assert meter.tokens_per_second == pytest.approx(1000)
    clock.now += 15
    meter.mark(15)
    assert meter.tokens_per_second == pytest.approx(500)
    assert meter.mfu == pytest.approx(500 * 6e6 / 2e10)
    assert str(meter) == "500 tokens/s, MFU 15%"
    assert meter.summary() == pytest.approx(
        {
            "seconds": 70,
            "flops_per_token": 6e6,
            "tokens_per_second": 500,
            "seconds_left": 5 * 1000 / 500,
            "mfu": 0.15,
        }
    )


def test_a_run_that_goes_on_counts_its_own_speed_and_all_of_its_time():
    clock = Clock()
    meter = Meter(1000, 6e6, 20, None, clock)
    meter.begin(10, seconds_before=70)
    clock.now += 10
    meter.mark(12)
    assert meter.seconds == pytest.approx(80)
    assert meter.tokens_per_second == pytest.approx(200)
    assert "mfu" not in meter.summary() and "MFU" not in str(meter)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA A10", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Some Accelerator 9000", None),
    ],
)
def test_peaks_are_known_by_the_whole_name(name, flops):
    assert peak_flops(name) == flops


def test_flops_are_six_a_parameter_and_attention():
    gpt2 = model_config("124M")
    tables = gpt2.max_position_embeddings * gpt2.hidden_size
    products = 6 * (count_parameters(gpt2) - tables)
    assert training_flops_per_token(gpt2, 1024) == products + 12 * 12 * 768 * 1024
    # Kraken's attention is wider than its stream.
    kraken = model_config("kraken-125M-4way")
    tables = kraken.max_position_embeddings * kraken.hidden_size
    products = 6 * (count_parameters(kraken) - tables)
    assert training_flops_per_token(kraken, 512) == products + 12 * 12 * 4 * 504 * 512
    # A head of its own multiplies; the table it is not tied to is only looked up.
    untied = ModelConfig(tie_word_embeddings=False, position="rope", head_dim=112)
    tied = untied.replace(tie_word_embeddings=True)
    assert training_flops_per_token(untied, 64) == training_flops_per_token(tied, 64)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "ranks", "shared"),
    [
        (12, 40, 1, (12, 40)),
        (12, 40, 8, (12, 5)),
        (12, 42, 8, (9, 7)),
        (4, 1, 2, (2, 1)),
        (4, 3, 6, (2, 1)),
        (16, 32, 32, (16, 1)),
        (7, 1, 1, (7, 1)),
    ],
)
def test_a_step_learns_from_as_many_sequences_on_any_number_of_processes(
    batch_size, accumulation, ranks, shared
):
    assert share(batch_size, accumulation, ranks) == shared
    assert shared[0] * shared[1] * ranks == batch_size * accumulation


@pytest.mark.parametrize(("batch_size", "ranks"), [(4, 3), (1, 2), (6, 4)])
def test_sequences_that_cannot_be_divided_are_refused(batch_size, ranks):
    with pytest.raises(KrakenError, match=f"divided among {ranks} processes"):
        share(batch_size, 1, ranks)
