"""What reading a checkpoint costs a restart: from the disk, from the kernel's cache, and from /dev/shm, in turns.

    python -m tests.bench.restore [--rounds N]

ResNet-50 with SGD's momentum and an average of the weights (307 MB), as `tests.bench.checkpoint` saves it. "checked" is
the comparison with the manifest's digests, which comes first; "loaded" what each rank then does. At last what a copy in
/dev/shm would cost each save, and what the imports of a restart take.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import safetensors.torch
import torch

from resnet.checkpoint.commit import commit, newest_valid
from resnet.checkpoint.snapshot import EMA, MODEL, Snapshot, read_rest
from tests.bench.checkpoint import build, timed

MEMORY = Path("/dev/shm")
CPU = torch.device("cpu")
seconds = partial(timed, device=CPU)


def forget(checkpoint: Path) -> None:
    """Let the kernel have none of it in its cache."""
    for path in checkpoint.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass


def load(checkpoint: Path) -> None:
    read_rest(checkpoint)
    for name in (MODEL, EMA):
        safetensors.torch.load_file(checkpoint / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    _, state = build(CPU)
    snapshot = Snapshot()
    snapshot.take(state, {"log_length": 0})
    files = snapshot.files({})
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir=MEMORY) as memory:
        on_disk, copy = commit(Path(disk), 1, files, {}), seconds(lambda: commit(Path(memory), 1, files, {}))
        in_memory, found = Path(memory) / on_disk.name, {}
        for _ in range(arguments.rounds):
            forget(on_disk)
            found.setdefault("read from the disk", []).append(seconds(lambda: read(on_disk)))
            for place, checkpoint in (("the cache", on_disk), ("/dev/shm", in_memory)):
                found.setdefault(f"read from {place}", []).append(seconds(lambda at=checkpoint: read(at)))
                found.setdefault(f"loaded from {place}", []).append(seconds(lambda at=checkpoint: load(at)))
                folder = checkpoint.parent
                checked = seconds(lambda at=folder: newest_valid(at, print))
                found.setdefault(f"checked in {place}", []).append(checked)
    imports = [sys.executable, "-c", "import resnet.run"]
    found["imports of a restart"] = [seconds(lambda: subprocess.run(imports, check=True)) for _ in range(2)]
    for what, times in {**found, "a copy in /dev/shm, each save": [copy]}.items():
        print(f"{what:32} {statistics.median(times):8.3f} s  ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
