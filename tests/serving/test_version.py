"""An untested vLLM is refused with a message."""

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
