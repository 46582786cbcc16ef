"""Which attempts of torchrun get a part of the store of their own."""

import pytest
from torch.distributed import HashStore

from krakenlm.errors import KrakenError
from krakenlm.ranks import attempts


@pytest.fixture
def under_torchrun(monkeypatch):
    def set_up(number=0, most=3, *, machines=1, shared="True"):
        values = {
            "TORCHELASTIC_RESTART_COUNT": number,
            "TORCHELASTIC_MAX_RESTARTS": most,
            "TORCHELASTIC_USE_AGENT_STORE": shared,
            "GROUP_WORLD_SIZE": machines,
        }
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return set_up


def test_a_further_attempt_does_not_see_what_the_first_one_left(under_torchrun, monkeypatch):
    all_of_it = HashStore()
    all_of_it.set("address", "of the first")
    monkeypatch.setattr(attempts, "rendezvous", lambda url: iter([(all_of_it, 0, 2)]))
    under_torchrun(number=1)
    mine = attempts.store_of_this_attempt()
    assert not mine.check(["address"])
    mine.set("address", "of the second")
    under_torchrun(number=2)
    assert not attempts.store_of_this_attempt().check(["address"])
    assert all_of_it.get("address") == b"of the first"


def test_others_meet_as_torchrun_has_them(under_torchrun, monkeypatch):
    assert attempts.store_of_this_attempt() is None
    for settings in ({}, {"most": 0}, {"number": 1, "shared": "False"}):
        under_torchrun(**settings)
        assert attempts.store_of_this_attempt() is None


def test_several_machines_that_share_a_store_are_told_what_to_set(under_torchrun):
    under_torchrun(machines=2)
    with pytest.raises(KrakenError, match="start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        attempts.store_of_this_attempt()
    under_torchrun(machines=2, shared="False")
    assert attempts.store_of_this_attempt() is None
