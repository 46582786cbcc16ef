"""Compare the planner with `bench latency` on a machine calibrated in the same call.

    python scripts/plan_validate.py [--results DIR] [--quick]
    python scripts/plan_validate.py --plan
    python scripts/plan_validate.py --draw

A case is one shape in all wirings, one length of prompt, one link, two ranks: measured and planned.
Before the cases of a shape and a length the machine is calibrated, for a virtual machine changes
with what its neighbours do; how far the calibrations differ is put down as well. Each link between
network namespaces is calibrated by itself. Calibration runs none of these shapes. What is done lies
beside the results until all of it is; a call that was cut short is taken up there. Links between
namespaces are left out where the system forbids them. ``--plan`` plans anew what was measured,
``--draw`` makes pictures and tables of what was planned; ``--quick`` tries everything with tiny
models. Run nothing else on the machine meanwhile.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import plan_validate_page as page
import recording
from krakenlm.bench.latency import Setup as Timed
from krakenlm.bench.latency import measure as measure_latency
from krakenlm.bench.models import VARIANTS, Contender, in_wiring, parse_wirings
from krakenlm.calibrate.points import CPU, Extent, Probe
from krakenlm.calibrate.profiles import link_profile, over_link
from krakenlm.calibrate.run import USUAL_SECONDS, Options, calibrate, calibrate_link
from krakenlm.config import WIRINGS, ModelConfig, model_config
from krakenlm.errors import ConfigError
from krakenlm.files import resumable_directory, write_json
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.link import LinkProfile, emulated
from krakenlm.plan.planner import Setup, plan
from krakenlm.plan.profile_files import read_profiles, write_machine
from krakenlm.ranks.namespaces import Namespace, NoNamespacesError, linked_namespaces
from krakenlm.transport.links import Link
from plan_validate_page import Case, CaseResult, PlannedTimes, Shape

WIRINGS_TIMED = [
    "standard",
    "parallel",
    "ladder",
    "kraken",
    "kraken-shared",
    "shared",
    "shared/2",
    "lagged",
    "lagged-layer",
]
KRAKENS = ("published", "keep-width")
RANKS = 2
OUTPUT_LEN = 16
ROUNDS, WARM_UP = 5, 1
LINK_SECONDS = 40.0
LATENCY_US = 50.0
_CONTEXT = 2048  # that the longest prompt fits into with its answer

HOST = "one host"
SHAPES = {
    "20M": Shape(256, 9),
    "40M": Shape(384, 12),
    "91M": Shape(640, 12),
    "124M": Shape(768, 12),
    "203M": Shape(1024, 12),
    "355M": Shape(1024, 24),
}
EMULATED = tuple(f"emulated {rate} Gbit/s" for rate in ("0.1", "1", "10"))
REAL = tuple(f"real {rate} Gbit/s" for rate in ("0.1", "1", "10"))
CASES = [
    Case(shape, tokens, link)
    for shape, tokens, links in (
        ("20M", 128, (HOST, *EMULATED, REAL[1])),
        ("20M", 1024, (HOST, EMULATED[1], *REAL[1:])),
        ("40M", 512, (HOST, *EMULATED, *REAL)),
        ("91M", 256, (HOST, EMULATED[0], EMULATED[2], REAL[0], REAL[2])),
        ("124M", 128, (HOST, EMULATED[1], REAL[1])),
        ("124M", 1024, (HOST, *EMULATED[1:], *REAL[1:])),
        ("203M", 512, (HOST, EMULATED[2], REAL[1])),
        ("355M", 128, (HOST, *EMULATED, REAL[1])),
        ("355M", 1024, (HOST, EMULATED[2], REAL[2])),
    )
    for link in links
]

REFERENCE = Case("124M", 128, HOST)
"""What the calibrations are compared by."""

TINY = Shape(64, 2, vocabulary=300)
QUICK_CASES = [Case("tiny", 24, HOST), Case("tiny", 24, EMULATED[2]), Case("tiny", 24, REAL[2])]
QUICK_EXTENT = Extent(
    few_rows=(1, 2),
    rows=(2, 8, 32),
    widths=(32, 128),
    vocabulary=(256,),
    resident_widths=(32, 128),
    odd_widths=(33, 61),
    heads=(1, 4),
    queries=(8, 32),
    spans=(1, 2),
    head_widths=(16, 64),
    odd_head_widths=(13,),
    cached=(64, 128),
    norm_rows=(1, 32),
    norm_widths=(32, 128),
    moved=(64, 4096, 65536),
    working_sets=(1, 2),
    messages=(32, 4096),
    probes=(Probe("standard", 64, 1, 8), Probe("ladder", 128, 2, 8), Probe("shared", 64, 2, 24)),
    vocabulary_size=300,
)


def contenders(shape: ModelConfig) -> list[Contender]:
    """The shape in every wiring that it has."""
    models: list[Contender] = []
    for wanted in parse_wirings(WIRINGS_TIMED):
        for kind in KRAKENS if WIRINGS[wanted.wiring].own_norms else VARIANTS[:1]:
            with suppress(ConfigError):
                models += in_wiring(shape, wanted, RANKS, [kind])
    return models


def config_of(shape: Shape) -> ModelConfig:
    """The standard model of a shape."""
    return model_config(
        "124M",
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        heads_per_sublayer=max(shape.hidden // 64, RANKS),
        vocab_size=shape.vocabulary,
        max_position_embeddings=_CONTEXT,
    )


def link_of(text: str) -> Link | None:
    """What is emulated, if anything is."""
    if not text.startswith("emulated"):
        return None
    return Link(gbps=float(text.split()[1]), latency_us=LATENCY_US)


def rate_of(text: str) -> str | None:
    """Of a link between namespaces as tc takes it; None where there are none."""
    if not text.startswith("real"):
        return None
    return f"{round(float(text.split()[1]) * 1000)}mbit"


@contextmanager
def places_of(text: str) -> Iterator[tuple[Namespace, Namespace] | None]:
    """Namespaces with such a link between them, where it asks for one."""
    rate = rate_of(text)
    if rate is None:
        yield None
        return
    with linked_namespaces(rate) as places:
        yield places


class Validation:
    """Calibrates, measures and plans into one folder, and leaves out what lies there already.

    Args:
        folder: of the results.
        extent: shapes of the calibration.
        seconds: of a calibration.
        link_seconds: of a link's calibration.
    """

    def __init__(self, folder: Path, extent: Extent, seconds: float, link_seconds: float) -> None:
        self._folder = folder
        self._extent = extent
        self._seconds = seconds
        self._link_seconds = link_seconds

    def run(self, cases: Sequence[Case]) -> None:
        """Do what is not done yet."""
        left_out: dict[str, str] = {}
        for number, case in enumerate(cases, start=1):
            if case.link in left_out or self._target(case).exists():
                continue
            print(f"{number} of {len(cases)}: {case}", flush=True)
            try:
                self._measure(case)
            except NoNamespacesError as error:
                left_out[case.link] = str(error)
        for link, reason in left_out.items():
            print(f"left out: {link}: {reason}", file=sys.stderr)
        self._compare_calibrations()

    def profiles(self, case: Case) -> tuple[DeviceProfile, LinkProfile]:
        """Of the machine before the case, and of its link; each is calibrated if it was not."""
        device, host = self._machine(case)
        rate = rate_of(case.link)
        if rate is None:
            given = link_of(case.link)
            return device, host if given is None else emulated(given, host)
        beside, link = self._link(case.link, rate, device)
        return dataclasses.replace(
            device,
            compute_slowdown_beside_allreduce=beside.compute_slowdown_beside_allreduce,
            allreduce_slowdown_beside_compute=beside.allreduce_slowdown_beside_compute,
        ), link

    def _machine(self, case: Case) -> tuple[DeviceProfile, LinkProfile]:
        target = self._folder / f"machine-{case.shape}-{case.tokens}.toml"
        if not target.exists():
            print("calibrating the machine", flush=True)
            found = calibrate(Options(devices=RANKS, seconds=self._seconds, extent=self._extent))
            assert found is not None, "this script is one process"
            write_machine(target, found.device, found.link)
        return _read(target)

    def _link(
        self, link: str, rate: str, device: DeviceProfile
    ) -> tuple[DeviceProfile, LinkProfile]:
        target = self._folder / f"link-{rate}.toml"
        if not target.exists():
            print(f"calibrating the link: {link}", flush=True)
            with places_of(link) as places:
                found = calibrate_link(
                    Options(
                        devices=RANKS,
                        seconds=self._link_seconds,
                        extent=self._extent,
                        places=places,
                    )
                )
            assert found is not None
            write_machine(target, over_link(device, found), link_profile(found))
        return _read(target)

    def _compare_calibrations(self) -> None:
        """Put down what each calibration says of one and the same model."""
        standard = contenders(config_of(shape_of(REFERENCE)))[0]
        found = []
        for machine in sorted(self._folder.glob("machine-*.toml")):
            device, link = _read(machine)
            dtype = next(iter(device.peak_tflop_per_second))
            times = planned_times(standard, REFERENCE.tokens, setup_of_plan(dtype, device, link))
            found.append({"machine": machine.name, **dataclasses.asdict(times)})
        write_json(
            self._folder / page.CALIBRATIONS, {"reference": str(REFERENCE), "planned": found}
        )

    def _measure(self, case: Case) -> None:
        profiles = self.profiles(case)
        models = contenders(config_of(shape_of(case)))
        with places_of(case.link) as places:
            timed = dataclasses.replace(setup_of(case), places=places)
            measured = measure_latency(models, timed, title=str(case))
        assert measured is not None
        result = CaseResult(
            shape=case.shape,
            tokens=case.tokens,
            link=case.link,
            report=measured.report,
            planned=planned(case, measured.report.dtype, *profiles),
        )
        write_json(self._target(case), result.to_json())

    def plan(self) -> None:
        """Plan anew all cases that were measured."""
        for result in page.results(self._folder):
            case = Case(result.shape, result.tokens, result.link)
            again = planned(case, result.report.dtype, *self.profiles(case))
            write_json(self._target(case), dataclasses.replace(result, planned=again).to_json())
        self._compare_calibrations()

    def _target(self, case: Case) -> Path:
        return self._folder / case.file_name


def shape_of(case: Case) -> Shape:
    """The shape that a case names."""
    return TINY if case.shape == "tiny" else SHAPES[case.shape]


def setup_of(case: Case) -> Timed:
    """How it is measured."""
    return Timed(
        devices=RANKS,
        input_len=case.tokens,
        output_len=OUTPUT_LEN,
        iterations=ROUNDS,
        warm_up=WARM_UP,
        link=link_of(case.link),
        sums_alone=False,
    )


def _read(path: Path) -> tuple[DeviceProfile, LinkProfile]:
    found = read_profiles([path])
    device, link = found["device"], found["link"]
    assert isinstance(device, DeviceProfile) and isinstance(link, LinkProfile)
    return device, link


def planned(
    case: Case, dtype: str, device: DeviceProfile, link: LinkProfile
) -> tuple[PlannedTimes, ...]:
    """What the planner says of each model of a case."""
    setup = setup_of_plan(dtype, device, link)
    return tuple(
        planned_times(model, case.tokens, setup) for model in contenders(config_of(shape_of(case)))
    )


def setup_of_plan(dtype: str, device: DeviceProfile, link: LinkProfile) -> Setup:
    """How it is planned."""
    return Setup(device=device, link=link, dtype=dtype, output_len=OUTPUT_LEN)


def planned_times(model: Contender, tokens: int, setup: Setup) -> PlannedTimes:
    """What the planner says of one model and one length of prompt."""
    passes = plan(model, RANKS, tokens, setup)
    assert passes.decode is not None
    return PlannedTimes(
        label=model.label,
        ttft_ms=1e3 * passes.prefill.seconds,
        tpot_ms=1e3 * passes.decode.seconds,
    )


def is_worth_keeping(folder: Path) -> bool:
    """Whether a call that was cut short left something to go on from."""
    return any(folder.glob("machine-*.toml"))


def measure(options: argparse.Namespace) -> None:
    """Everything, or what an earlier call has left."""
    target: Path = options.results
    if options.quick and target == page.RESULTS:
        sys.exit("--quick: its times say nothing: give another folder as --results")
    if options.plan:
        Validation(target, CPU, 0.0, 0.0).plan()
        return
    cases = QUICK_CASES if options.quick else CASES
    with resumable_directory(target, worth_keeping=is_worth_keeping, replace=True) as folder:
        extent, seconds = (QUICK_EXTENT, 1.0) if options.quick else (CPU, USUAL_SECONDS)
        link_seconds = 1.0 if options.quick else LINK_SECONDS
        Validation(folder, extent, seconds, link_seconds).run(cases)
        page.draw(folder)


if __name__ == "__main__":
    parser = recording.option_parser(__doc__)
    parser.add_argument("--results", type=Path, default=page.RESULTS, help="the folder of results")
    parser.add_argument("--plan", action="store_true", help="plan anew what was measured")
    parser.add_argument("--quick", action="store_true", help="tiny models; give --results as well")
    recording.measure_and_draw(
        parser,
        measure,
        pages=[page.PAGE],
        tables=page.TABLES,
        pictures=lambda options: page.draw(options.results),
    )
