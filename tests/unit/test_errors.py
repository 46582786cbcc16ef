"""What people are told of errors that are not ours."""

import signal
import traceback

import pytest

import tiny
from krakenlm.cli.main import _report
from krakenlm.engine import engine, rank_model
from krakenlm.errors import KrakenError, RankFailedError, described, trying
from krakenlm.ranks.failures import Failure, failure_of, once, vanished


def failed(error: BaseException, *tries: tuple[str, str]) -> BaseException:
    """The error, behind blocks that were trying something, the innermost first."""
    try:
        if not tries:
            raise error
        with trying(*tries[-1]):
            raise failed(error, *tries[:-1])
    except BaseException as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "tries", "who", "line"),
    [
        (ValueError("no such thing"), [], "", "ValueError: no such thing"),
        (MemoryError(), [], "", "MemoryError"),
        (ValueError("odd"), [], "rank 3", "rank 3 failed: ValueError: odd"),
        (
            ValueError("odd"),
            [("weighing", "weigh less")],
            "rank 3",
            "rank 3 failed while weighing: ValueError: odd: weigh less",
        ),
        (
            OSError(5, "I/O error"),
            [("weighing", "weigh less"), ("doing its part", "report it")],
            "",
            "failed while weighing: OSError: [Errno 5] I/O error: weigh less",
        ),
        (
            RuntimeError("CUDA error\n  at x.cpp\n\n  at y.cpp\nlast words"),
            [("weighing", "weigh less")],
            "rank 0",
            "rank 0 failed while weighing: RuntimeError: CUDA error last words: weigh less",
        ),
        (RankFailedError("rank 1 failed"), [("weighing", "weigh less")], "rank 0", "rank 1 failed"),
    ],
)
def test_one_line_says_who_failed_while_doing_what(error, tries, who, line):
    assert described(failed(error, *tries), who) == line


def test_a_message_for_people_stays_as_it_is():
    error = failed(KrakenError("no such file: make one"), ("weighing", "weigh less"))
    assert vars(error) == {}
    assert str(error) == "no such file: make one"


def test_a_strange_error_of_a_rank_becomes_one_line_with_the_traceback_behind_it(capfd):
    error = failure_of(failed(ZeroDivisionError("odd"), ("weighing", "weigh less")), 1)
    raised = error.as_exception()
    assert _report(raised) == 1
    assert capfd.readouterr().err == (
        "krakenlm: rank 1 failed while weighing: ZeroDivisionError: odd: weigh less "
        "(--debug shows where)\n"
    )
    shown = "".join(traceback.format_exception(raised))
    assert "in failed" in shown and "ZeroDivisionError: odd" in shown


def test_under_torchrun_the_process_says_which_rank_it_is(capfd, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert _report(failed(ValueError("odd"), ("training", "train less"))) == 1
    assert capfd.readouterr().err == (
        "krakenlm: rank 2 failed while training: ValueError: odd: train less "
        "(--debug shows where)\n"
    )


def test_the_cause_comes_before_what_follows_from_it():
    failures = [
        Failure("broken connection", "not ours", 2.0),
        Failure("killed", "vanished"),
        Failure("the first", "not ours", 1.0),
        Failure("no such file", "for people"),
    ]
    in_order = [failure.text for failure in sorted(failures, key=lambda each: each.order)]
    assert in_order == ["no such file", "killed", "the first", "broken connection"]


@pytest.mark.parametrize(
    ("code", "essential", "memory"),
    [
        (-signal.SIGKILL, "was killed by signal 9", True),
        (-signal.SIGBUS, f"was killed by signal {signal.SIGBUS:d} (Bus error)", False),
        (-signal.SIGSEGV, f"was killed by signal {signal.SIGSEGV:d} (Segmentation fault)", False),
        (3, "ended with exit code 3", False),
    ],
)
def test_memory_is_blamed_only_where_it_may_be_the_cause(code, essential, memory):
    said = vanished("krakenlm rank 1", code)
    assert said.startswith(f"krakenlm rank 1 {essential}")
    assert ("memory" in said) == memory


def test_what_several_ranks_note_is_told_once():
    told: list[str] = []
    note = once(told.append)
    for text in ("a", "b", "a"):
        note(text)
    assert told == ["a", "b"]


@pytest.mark.usefixtures("own_signals")
@pytest.mark.parametrize(
    ("module", "patched", "what"),
    [
        (rank_model, "read_shard", "reading the weights"),
        (engine, "refuse_not_finite", "running the prompts"),
    ],
)
def test_generate_on_one_device_says_what_it_was_trying(
    capfd, monkeypatch, tiny_model, module, patched, what
):
    def strange(*_):
        raise MemoryError("out of it")

    monkeypatch.setattr(module, patched, strange)
    arguments = ("generate", tiny_model, "--prompt", "Line", "--max-new-tokens", 2)
    outcome = tiny.call(capfd, *arguments)
    (line,) = outcome.err.splitlines()
    assert outcome.code == 1
    assert line.startswith(f"krakenlm: failed while {what}: MemoryError: out of it: ")
    assert line.endswith(" (--debug shows where)")
    debugged = tiny.call(capfd, *arguments, "--debug")
    assert "Traceback" in debugged.err and "in strange" in debugged.err
    assert debugged.err.splitlines()[-1] == line
