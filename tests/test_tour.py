"""docs/after-training.md typed into a terminal, line by line, as a new user would."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import PROGRAM

PAGE = PROGRAM / "docs" / "after-training.md"
SMALLER = (
    "device=cpu data.per_class=16 data.size=40 model.name=null model.block=basic model.layers=[1,1,1] "
    "augment.train_size=32 augment.val_resize=36 augment.val_size=32 data.num_workers=0"
)
"""What makes a training of the page one of seconds, with 9 steps in place of 123."""
pytestmark = pytest.mark.timeout(1200)
"""A dozen commands, each of which imports torch, on a core that others use too."""
PROMPT = re.compile(r"<(\d+)>\$ $")


class Terminal:
    """bash in a terminal of 100 columns, with nothing in its environment that a login would not put there."""

    def __init__(self, folder: Path) -> None:
        self.child, self.file = pty.fork()
        if self.child == 0:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            os.chdir(folder)
            path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
            kept = {"PATH": path, "HOME": str(folder), "TERM": "xterm", "COLUMNS": "100", "WANDB_MODE": "offline"}
            os.execve("/bin/bash", ["bash", "--noprofile", "--norc", "--noediting", "-i"], kept | {"PS1": "<$?>$ "})
        self.read()

    def read(self, seconds: float = 300) -> tuple[str, int]:
        """What was printed up to the next prompt, and the exit code that it tells."""
        text, deadline = "", time.monotonic() + seconds
        while not (prompt := PROMPT.search(text)):
            ready, _, _ = select.select([self.file], [], [], deadline - time.monotonic())
            assert ready, f"no prompt after {seconds} s:\n{text}"
            text += os.read(self.file, 65536).decode(errors="replace").replace("\r\n", "\n")
        return text[: prompt.start()], int(prompt[1])

    def type(self, line: str) -> tuple[str, int]:
        os.write(self.file, f"{line}\n".encode())
        return self.read()

    def close(self) -> None:
        os.close(self.file)
        os.waitpid(self.child, 0)


def lines_of(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """What each line of the page printed."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "train.py").symlink_to(PROGRAM / "train.py")
    terminal, said = Terminal(folder), {"folder": str(folder)}
    try:
        for line in lines_of(PAGE.read_text()):
            typed = line.replace("recipe=quickstart", f"recipe=quickstart {SMALLER}")
            typed = typed.replace("--step 50", "--step 5").replace("step-82", "step-6")
            said[line], code = terminal.type(typed)
            assert code == 0, f"{typed}\n{said[line]}"
            assert "Traceback" not in said[line], said[line]
    finally:
        terminal.close()
    return said


def test_the_figures_of_the_end_are_those_of_an_evaluation(said):
    end = next(text for line, text in said.items() if "run.name=first" in line)
    top1 = re.search(r"best top1 ([\d.]+)%", end)
    assert top1
    shown = re.search(r"^first +([\d.]+)%", said["resnet eval first"], re.MULTILINE)
    assert shown
    assert float(shown[1]) == pytest.approx(float(top1[1]), abs=0.005)
    by_class = said["resnet eval first first@last eval.flip=true --per-class"]
    assert len(re.findall(r"^\w+ +4( +[\d.]+%){2}$", by_class, re.MULTILINE)) == 10


def test_one_image_gives_a_table_and_a_folder_files(said):
    one = said["resnet predict first data/shapes/val/ring/0000.jpg"]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", one)]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    folder = Path(said["folder"])
    assert len((folder / "predictions.csv").read_text().splitlines()) == 41
    for name in ("predictions.png", "step-50.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 500
    assert "40 images" in said["resnet features first val features.parquet --knn"]


def test_the_steps_come_out_the_same(said):
    assert "equal to the last bit" in said["resnet replay first --from step-82"]


def test_what_differs_is_told(said):
    assert "optimizer.lr 0.05 | 0.1" in said["resnet diff first second"]


def test_pages_need_nothing_beside_them(said):
    for name in ("first/report.html", "second/report.html", "comparison.html", "board.html"):
        page = (Path(said["folder"]) / "runs" / name).read_text()
        assert page.startswith("<!doctype html>"), name
        assert not re.search(r"(src|href)=.(https?:)?//", page), name
