"""Tests of serving with vLLM, which has an environment of its own: ``make test-vllm``."""

from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # marked before unwanted marks are dropped
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(reason="vLLM is not installed here: run `make test-vllm`")
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if find_spec("vllm") is None:
                item.add_marker(missing)
