import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest

from recipes.text import format_duration
from resnet.tracking import progress
from resnet.tracking.progress import Progress

PROGRAM = """
import time
from resnet.tracking.progress import Progress
bar = Progress("auto", total_steps=40, steps_per_epoch=10)
for step in range(1, 41):
    time.sleep(0.02)
    bar.update(step)
    if step % 5 == 0:
        bar.update(step, loss=2.5 / step, images_per_second=12345.6, lr=0.1, data_wait=0.031)
    if step % 10 == 0:
        bar.message(f"epoch {step // 10} done")
bar.close()
print("the end")
"""


def on_terminal(columns: int) -> str:
    """What the program writes to a terminal of that width."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    written = b""
    while True:
        try:
            written += os.read(controller, 65536)
        except OSError:
            break
    os.close(controller)
    assert process.wait() == 0
    return written.decode()


def screen(written: str, columns: int) -> list[str]:
    """The lines that a terminal shows after these characters, of which none may run over its edge."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            assert len(part) < columns, part
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.mark.parametrize("columns", [20, 40, 100])
def test_bar_fits_and_messages_stand_alone(columns):
    lines = screen(on_terminal(columns), columns)
    assert [line for line in lines if line.startswith("epoch")] == [f"epoch {n} done" for n in (1, 2, 3, 4)]
    assert lines[-2:] == ["the end", ""]
    assert lines[4].startswith("100%")
    assert len(lines) == 7
    if columns >= 40:
        assert "loss 0.0625" in lines[4]
    if columns == 100:
        assert re.fullmatch(r"100% \[#+\]  loss 0.0625  ETA 0s  12346 img/s  epoch 4/4  step 40/40.*", lines[4])


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_plain_lines(clock, capsys):
    lines = Progress("auto", total_steps=100, steps_per_epoch=50)
    for step in range(1, 101):
        clock.seconds += 1.0
        lines.update(step, loss=1.0 if step == 3 else None)
        if step == 50:
            lines.message("half")
    lines.close()
    out, err = capsys.readouterr()
    assert out == "half\n"
    assert "\r" not in err
    shown = err.splitlines()
    assert shown[0] == "  5%  loss 1  ETA 1m35s  epoch 1/2  step 5/100"
    assert shown[-1].startswith("100%")
    assert len(shown) == 20


def test_off_is_silent(capsys):
    silent = Progress("off", total_steps=2, steps_per_epoch=1)
    silent.update(2, loss=1.0)
    silent.message("hidden")
    silent.close()
    assert capsys.readouterr() == ("", "")


def test_eta_counts_evaluations_and_not_the_start(clock):
    bar = Progress("off", total_steps=1000, steps_per_epoch=50, start_step=100)
    clock.seconds += 300
    bar.update(101)
    assert bar.eta_seconds is None
    for step in range(102, 601):
        clock.seconds += 1 + (50 if step % 50 == 0 else 0)
        bar.update(step)
    assert bar.eta_seconds == pytest.approx(400 * 2, rel=0.4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m00s"), (245, "4m05s"), (3599.7, "1h00m"), (3720, "1h02m"), (273600, "3d04h"), (-3, "0s")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text
