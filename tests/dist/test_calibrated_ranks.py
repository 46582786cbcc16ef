"""``krakenlm calibrate`` on two ranks: the sums between them, on a host and between namespaces."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import plan_validate
import plan_validate_page as page
from krakenlm.calibrate.profiles import link_profile
from krakenlm.calibrate.run import Options, calibrate, calibrate_link
from krakenlm.plan.profile_files import read_profiles, write_machine
from krakenlm.ranks.namespaces import NoNamespacesError, linked_namespaces
from krakenlm.transport.links import Link

pytestmark = [pytest.mark.dist, pytest.mark.alone]
EXTENT = dataclasses.replace(
    plan_validate.QUICK_EXTENT, few_rows=(1,), heads=(1,), norm_rows=(1,), messages=(32, 65536)
)


def test_two_ranks_find_what_is_between_them(tmp_path):
    options = Options(devices=2, device="cpu", seconds=1.0, extent=EXTENT, threads=1)
    found = calibrate(dataclasses.replace(options, link=Link(gbps=1.0, latency_us=50.0)))
    measured = found.measured
    assert measured.machine.ranks == 2 and len(measured.probes) == len(EXTENT.probes)
    assert [(s.nbytes, s.ranks) for s in measured.sums] == [(32, 2), (65536, 2)]
    for each in measured.sums:
        assert 0.0 < each.begin < each.whole and each.wait > 0.0
    assert all(t.silent_ttft > 0 < t.silent_tpot for _, t in measured.probes)
    # The link of the profile is the emulated one, with the compute of what carries it.
    assert found.link.held_back
    cost = found.link.sums(None, on_cpu=True)(1_000_000, 2)
    assert cost.wire == pytest.approx(8e-3) and cost.begin > 0.0
    path = tmp_path / "machine.toml"
    write_machine(path, found.device, found.link)
    assert read_profiles([path]) == {"device": found.device, "link": found.link}


def test_a_link_between_namespaces_is_measured_by_itself():
    nbytes = 1 << 19
    extent = dataclasses.replace(EXTENT, messages=(32, nbytes))
    options = Options(devices=2, device="cpu", seconds=1.0, extent=extent, threads=1)
    try:
        with linked_namespaces("100mbit") as places:
            found = calibrate_link(dataclasses.replace(options, places=places))
    except NoNamespacesError as error:
        pytest.skip(f"no namespaces here: {error}")
    assert found.points == found.probes == ()
    assert found.transport == "sockets" and found.beside is not None
    # After a pause the link lets 80 KB through at once, and what is left at 12.5 MB/s. A fifth is
    # for the ranks' not beginning at the same moment.
    assert found.sums[-1].whole > 0.8 * (nbytes - 80_000) / 12.5e6
    link = link_profile(found)
    assert link.sums(None, on_cpu=True)(nbytes, 2).alone == pytest.approx(
        found.sums[-1].whole, rel=0.2
    )


@pytest.mark.slow
def test_the_validation_runs_through_with_tiny_models(tmp_path):
    options = plan_validate.argparse.Namespace(results=tmp_path / "results", quick=True, plan=False)
    plan_validate.measure(options)
    found = page.results(options.results)
    assert {case.link for case in found} >= {plan_validate.HOST, plan_validate.EMULATED[2]}
    assert (options.results / page.PICTURE).is_file()
    assert "Not measured" not in page.summary_table(options.results)
