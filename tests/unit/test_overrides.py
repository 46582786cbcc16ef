"""A library that renamed something is refused by name, and nothing of it is passed over."""

from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from krakenlm.errors import KrakenError
from krakenlm.integrations import hf_trainer
from krakenlm.overrides import (
    names_with_default,
    replaces,
    require_arguments,
    require_attributes,
)


class Library:
    def step(self, model: object, inputs: object, items: object = None, **rest: Any) -> None: ...


def test_a_method_that_the_library_has_is_replaced() -> None:
    class Ours(Library):
        @replaces(Library)
        def step(self, model: object, inputs: object, items: object = None, own: int = 0) -> str:
            return "ours"

    assert Ours().step(1, 2) == "ours"


def test_a_method_that_the_library_renamed_is_refused() -> None:
    with pytest.raises(KrakenError, match=r"\.Library has no method take_step, which"):

        class Ours(Library):
            @replaces(Library)
            def take_step(self, model: object) -> None: ...


@pytest.mark.parametrize("names", [("model", "batch"), ("net", "inputs")])
def test_an_argument_that_the_library_renamed_is_refused(names) -> None:
    scope: dict[str, Any] = {}
    exec(f"def step(self, {', '.join(names)}): ...", scope)
    changed = next(name for name in names if name not in ("model", "inputs"))
    theirs = {"batch": "inputs", "net": "model"}[changed]
    with pytest.raises(KrakenError, match=rf"Library\.step calls '{theirs}' what was '{changed}'"):
        replaces(Library)(scope["step"])


def test_arguments_and_attributes_that_are_not_there_are_refused() -> None:
    require_arguments(Library.step, ["model", "items"])
    with pytest.raises(KrakenError, match=r"Library\.step has no argument 'count'"):
        require_arguments(Library.step, ["model", "count"])
    with pytest.raises(KrakenError, match=r"SimpleNamespace has no should_stop"):
        require_attributes(SimpleNamespace(should_save=1), "should_save", "should_stop")


def test_what_a_function_can_do_without() -> None:
    assert names_with_default(Library.step) == {"items"}


# What training relies on


def test_a_callback_of_an_event_that_trainer_does_not_report_is_refused() -> None:
    with pytest.raises(KrakenError, match="TrainerCallback has no method on_step_finished"):

        class Late(hf_trainer.Callback):
            def on_step_finished(
                self, args: Any, state: Any, control: Any, **rest: Any
            ) -> None: ...


def test_a_callback_that_is_not_given_the_logs_fails_by_name() -> None:
    from krakenlm.train.callbacks import Display
    from krakenlm.train.degrees import Degrees
    from krakenlm.train.meter import Meter

    degrees = Degrees(drawn_from=(2,), own=2, seed=0)
    display = Display("kraken", Meter(1, 1.0, 1, None), degrees)
    with pytest.raises(TypeError, match="'logs'"):
        display.on_log(None, None, None, log={"loss": 1.0})
    display.on_log(None, None, None, logs={"loss": 1.0}, model=None)


def test_stopping_sets_what_trainer_reads() -> None:
    control = transformers.TrainerControl()
    hf_trainer.save_and_stop(control)
    assert control.should_save and control.should_training_stop
    with pytest.raises(KrakenError, match="has no should_training_stop"):
        hf_trainer.save_and_stop(SimpleNamespace(should_save=False, should_stop=False))


@pytest.mark.parametrize(
    "changes", [{"fsdp_version": 1}, {"state_dict_type": "StateDictType.SHARDED_STATE_DICT"}]
)
def test_fsdp_that_is_not_what_was_asked_for_is_refused(changes) -> None:
    plugin = SimpleNamespace(
        fsdp_version=2, state_dict_type="StateDictType.FULL_STATE_DICT", mixed_precision_policy=None
    )
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    assert hf_trainer.fsdp_precision(accelerator).param_dtype is None
    vars(plugin).update(changes)
    with pytest.raises(KrakenError, match="does not read fsdp_config as it did"):
        hf_trainer.fsdp_precision(accelerator)


# What evaluation relies on


def test_a_harness_that_asks_past_the_counter_is_refused(monkeypatch) -> None:
    evaluator = pytest.importorskip("lm_eval.evaluator", reason="needs the extra `eval`")
    from krakenlm.eval import harness

    monkeypatch.setattr(evaluator, "evaluate", lambda **_: {"results": {"boolq": {}}})
    asked = SimpleNamespace(task=SimpleNamespace(harness="boolq"), loaded=None)
    lm = SimpleNamespace(asked=3, truncated=0)
    with pytest.raises(KrakenError, match="asks models in a way of its own"):
        harness._score(lm, asked, None)
