"""What is told of the collective in which a rank hangs: of two real ranks, of which one does not come."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RANK = """
import sys, time
import torch
import torch.distributed as dist
from pathlib import Path
from resnet.tracking.flight_recorder import last_collective

folder, rank, joins = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "joins"
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
dist.all_reduce(torch.ones(3))
if rank == 0 or joins:
    work = dist.all_reduce(torch.ones(2, 5), async_op=True)
if joins:
    work.wait()
if rank == 0:
    time.sleep(1)
    print(last_collective(folder / "recorder.json"))
    (folder / "told").touch()
while not (folder / "told").exists():
    time.sleep(0.05)
"""


@pytest.mark.parametrize(("second", "told"), [("stays-away", " in gloo:all_reduce 2 of 2x5"), ("joins", "")])
def test_the_collective_that_has_not_ended_is_named(tmp_path: Path, second: str, told: str) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, tmp_path, str(rank), second], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = ranks[0].communicate(timeout=100)[0]
    ranks[1].communicate(timeout=100)
    assert said.rstrip("\n") == told
    recorded = json.loads((tmp_path / "recorder.json").read_text())["entries"]
    assert [entry["profiling_name"] for entry in recorded] == ["gloo:all_reduce"] * 2
