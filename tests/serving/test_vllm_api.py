"""What krakenlm asks of vLLM: a tested version, and graphs cut where sums begin and end."""

import pytest

from krakenlm.errors import KrakenError


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0+cpu", "1.0", "dev"])
def test_another_vllm_is_refused(version):
    from krakenlm.serving.vllm_api import check_version

    with pytest.raises(KrakenError, match=r"0\.32"):
        check_version(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.1rc1"])
def test_the_tested_one_is_taken(version):
    from krakenlm.serving.vllm_api import check_version

    check_version(version)


@pytest.mark.parametrize(
    ("before", "after"),
    [(["vllm::attention"], ["vllm::attention", "krakenlm::begin_sum"]), ([], []), (None, None)],
    ids=["piecewise", "whole graphs", "undecided"],
)
def test_graphs_in_pieces_are_cut_at_both_ends_of_a_sum(before, after):
    from vllm.config import VllmConfig, set_current_vllm_config

    from krakenlm.serving.vllm_api import run_between_graphs

    config = VllmConfig()
    config.compilation_config.splitting_ops = before
    with set_current_vllm_config(config):
        for _ in range(2):  # a second model adds nothing
            run_between_graphs(("krakenlm::begin_sum",))
    assert config.compilation_config.splitting_ops == after


def test_a_configuration_passes_vllm_s_look_at_rotary_positions():
    """A published Kraken has heads of odd width; vLLM looks at all configurations with a base."""
    from vllm.transformers_utils.config import patch_rope_parameters

    from krakenlm.integrations.hf_config import KrakenConfig

    config = KrakenConfig(num_sublayers=2, hidden_size=62, heads_per_sublayer=2, head_dim=31)
    before = config.to_dict()
    patch_rope_parameters(config)
    assert config.to_dict() == before
