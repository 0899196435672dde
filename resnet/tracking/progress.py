"""How a run shows that it goes on: one live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from typing import Literal, TextIO

from recipes.text import format_duration

REDRAW_SECONDS = 0.1
FIRST_LINE_SECONDS, LAST_LINE_SECONDS = 5.0, 30.0
"""Seconds between plain lines: in the first minutes, and later on."""
BAR_WIDTH = 24


class Progress:
    """Progress of a run on stderr; messages go to stdout, so that they can be kept without the bar.

    mode: auto picks bar on a terminal and lines elsewhere; off shows nothing, messages included (ranks but the first).
    start_step: steps already done by earlier attempts. log: takes the plain lines where there is a bar.
    """

    def __init__(
        self,
        mode: Literal["auto", "bar", "lines", "off"],
        total_steps: int,
        steps_per_epoch: int,
        start_step: int = 0,
        log: TextIO | None = None,
    ) -> None:
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "lines"
        self._mode, self._log = mode, log
        self._total_steps, self._steps_per_epoch = max(1, total_steps), max(1, steps_per_epoch)
        self._step = start_step
        self._values: dict[str, float] = {}
        self._start = self._last_shown = self._last_line = self._last_time = time.monotonic()
        self._shown_step, self._timed = -1, False
        self._mean_steps = self._mean_seconds = 0.0
        self._bar_length = 0

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the recent rate, evaluations included; None before a rate is known."""
        if self._mean_steps <= 0:
            return None
        return (self._total_steps - self._step) * self._mean_seconds / self._mean_steps

    def update(
        self,
        step: int,
        loss: float | None = None,
        images_per_second: float | None = None,
        lr: float | None = None,
        data_wait: float | None = None,
    ) -> None:
        """Tell that `step` steps are done; what is None is shown as it was told last.

        data_wait: share of the time spent waiting for data, 0 to 1.
        """
        now = time.monotonic()
        self._measure(step, now)
        told = {"loss": loss, "images_per_second": images_per_second, "lr": lr, "data_wait": data_wait}
        self._values.update((key, value) for key, value in told.items() if value is not None)
        last = step >= self._total_steps
        if self._mode == "bar" and (last or now - self._last_shown >= REDRAW_SECONDS):
            self._draw_bar()
        if self._mode != "off" and step != self._shown_step:
            gap = min(LAST_LINE_SECONDS, max(FIRST_LINE_SECONDS, (now - self._start) / 60))
            if last or now - self._last_line >= gap:
                self._write_line("  ".join(self._fields()) + "\n")
                self._shown_step, self._last_line = step, now

    def message(self, text: str) -> None:
        """Print a line (or more) on stdout and go on with the bar below it."""
        if self._mode == "off":
            return
        self._clear_bar()
        print(text, flush=True)
        if self._mode == "bar" and self._timed:
            self._draw_bar()

    def close(self) -> None:
        """Leave the last state of the bar above what follows."""
        if self._bar_length:
            self._draw_bar()
            self._write("\n")
        self._bar_length, self._mode = 0, "off"

    def _measure(self, step: int, now: float) -> None:
        """Mean of steps and of seconds over about an epoch, so that an evaluation in each one counts with its share.

        The first interval is left out: it holds the compilation, the first batch and the start of the workers.
        """
        done = step - self._step
        if self._timed and done > 0:
            keep = 0.5 ** (done / min(1000, max(20, self._steps_per_epoch)))
            self._mean_steps = keep * self._mean_steps + done
            self._mean_seconds = keep * self._mean_seconds + now - self._last_time
        if done != 0 or not self._timed:
            self._timed, self._step, self._last_time = True, step, now

    def _fields(self) -> list[str]:
        """The most wanted first: what does not fit on a narrow terminal is left out from the end."""
        values, eta = self._values, self.eta_seconds
        fields = [f"{int(100 * self._step / self._total_steps):3d}%"]
        if "loss" in values:
            fields.append(f"loss {values['loss']:.4g}")
        if eta is not None:
            fields.append(f"ETA {format_duration(eta)}")
        if "images_per_second" in values:
            fields.append(f"{values['images_per_second']:.0f} img/s")
        fields += [f"epoch {self._epoch(self._step)}", f"step {self._step}/{self._total_steps}"]
        if "lr" in values:
            fields.append(f"lr {values['lr']:.3g}")
        if "data_wait" in values:
            fields.append(f"data wait {100 * values['data_wait']:.0f}%")
        return fields

    def _epoch(self, step: int) -> str:
        last = -(-self._total_steps // self._steps_per_epoch)
        return f"{min(step // self._steps_per_epoch + 1, last)}/{last}"

    def _draw_bar(self) -> None:
        columns = _columns(sys.stderr)
        room = columns - 1  # a character in the last column moves some terminals to the next line
        percent, *others = self._fields()
        line = percent
        for field in others:
            if len(line) + 2 + len(field) > room:
                break
            line += f"  {field}"
        width = min(BAR_WIDTH, room - len(line) - 3)
        if width >= 5:
            filled = round(width * min(1.0, self._step / self._total_steps))
            line = f"{percent} [{'#' * filled}{'.' * (width - filled)}]{line[len(percent) :]}"
        padding = " " * (min(self._bar_length, room) - len(line))
        self._write(f"\r{line[:room]}{padding}")
        self._bar_length, self._last_shown = len(line[:room]), time.monotonic()

    def _clear_bar(self) -> None:
        if self._bar_length:
            self._write("\r" + " " * min(self._bar_length, _columns(sys.stderr) - 1) + "\r")
            self._bar_length = 0

    def _write_line(self, line: str) -> None:
        if self._mode == "lines":
            self._write(line)
        elif self._log is not None:
            with contextlib.suppress(OSError):
                self._log.write(line)

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns
