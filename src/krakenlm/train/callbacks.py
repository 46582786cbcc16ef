"""What happens beside training: the progress bar, the history file, SIGTERM."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.progress import Progress, TaskID

from krakenlm.console import print_note, progress_bar
from krakenlm.integrations.hf_trainer import Callback, save_and_stop
from krakenlm.train.degrees import Degrees
from krakenlm.train.meter import Meter
from krakenlm.train.ranks import Ranks

# A history of 300,000 steps takes a moment to write.
_SECONDS_BETWEEN_HISTORIES = 20.0


class Display(Callback):
    """The progress bar: loss, tokens per second, MFU, time left.

    Where N is drawn, the loss is a mean over what was drawn, and each validation says the loss with
    each N on a line of its own.

    Args:
        label: what stands before the bar.
        meter: knows the speed.
        degrees: the N of the run's steps.
    """

    def __init__(self, label: str, meter: Meter, degrees: Degrees) -> None:
        self._label = label
        self._meter = meter
        self._degrees = degrees
        self._validation: dict[str, float] = {}
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self._progress = progress_bar("loss {task.fields[loss]}", "{task.fields[speed]}")
        self._task = self._progress.add_task(
            f"training {self._label}",
            total=state.max_steps,
            completed=state.global_step,
            loss="-",
            speed="-",
        )
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on."""
        assert self._progress is not None
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Show the losses and what the meter says."""
        loss = logs.get("loss")
        if loss is not None and self._progress is not None:
            self._progress.update(self._task, loss=f"{loss:.3f}", speed=str(self._meter))
        self._validation |= logs
        if "eval_loss" in logs and self._degrees.others:  # the last of them
            names = {n: f"{self._degrees.evaluation(n)}_loss" for n in self._degrees.drawn_from}
            shown = ", ".join(f"{self._validation[name]:.3f} (N={n})" for n, name in names.items())
            print_note(f"step {state.global_step}: validation loss {shown}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar down."""
        self.stop()

    def stop(self) -> None:
        """Take the bar down, if it is there."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class LiveHistory(Callback):
    """Writes the history file now and then, so that a run can be looked at while it lasts.

    Args:
        write: writes what Trainer's log and the meter say.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._written = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write, unless that was done a moment ago."""
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_HISTORIES:
            self._write()
            self._written = time.monotonic()


class Termination(Callback):
    """On SIGTERM: finish the step, save a checkpoint, stop. A second SIGTERM ends at once.

    Args:
        ranks: all of them stop where any was asked to.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._asked = False
        self.stopped = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take over SIGTERM; where signals belong to another thread, leave them alone."""
        try:
            before = signal.signal(signal.SIGTERM, self._ask)
        except ValueError:  # not the main thread
            yield
            return
        self._before = before
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have Trainer save and stop, if any process was asked to."""
        if self._ranks.any(self._asked):
            save_and_stop(control)
            self.stopped = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(number, self._before)
