"""What it takes a rank to know its images: to list a folder, to start again by its index, to be told by another rank.

    python -m tests.bench.index --images 256000 [--classes 1000] [--rounds 3] [--folder DIR]

It makes a folder of so many empty files, and removes it afterwards. Each way is measured in a process of its own, by
turns: seconds, calls, the memory that the process has for itself at the end, and what it had at most with the index,
which is mapped, and so shared with the other ranks of a machine. Folders are in the kernel's cache here: on a network
file system each call takes its time, and their number is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recipes.schema.data import ImageFolderData
from resnet.data.sources.files import Lister, lists_itself
from resnet.data.sources.image_folder import open_image_folder
from resnet.data.sources.index import FOLDER, Index, Told


def make(folder: Path, images: int, classes: int) -> None:
    """Empty files, named as ImageNet's, in folders that look as if they had not changed for an hour."""
    for number in range(classes):
        name = f"n{1440764 + 13 * number:08d}"
        (folder / name).mkdir(parents=True)
        for image in range(number, images, classes):
            os.close(os.open(folder / name / f"{name}_{image}.JPEG", os.O_CREAT | os.O_WRONLY))
        os.utime(folder / name, (0, time.time() - 3600))
    os.utime(folder, (0, time.time() - 3600))


def memory() -> dict[str, float]:
    """Of this process in MB: what it has written and shares with none, what it has now, and the most it ever had."""
    lines = [line for name in ("smaps_rollup", "status") for line in Path("/proc/self", name).read_text().splitlines()]
    found = {line.partition(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith(" kB")}
    return {"own": found["Private_Dirty"], "now": found["VmRSS"], "most": found["VmHWM"]}


def measured(data: ImageFolderData, lister: Callable[[], Lister]) -> dict[str, float]:
    """Seconds, calls and MB to open the images, in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        counts: dict[str, int] = {"scandir": 0, "stat": 0}
        for name in counts:
            setattr(os, name, _counted(getattr(os, name), name, counts))
        before, start = memory(), time.perf_counter()
        train, _ = open_image_folder(data, lister())
        seconds, after = time.perf_counter() - start, memory()
        assert train.names[len(train) - 1]
        megabytes = {"own": after["own"] - before["own"], "most": after["most"] - before["now"]}
        os.write(writing, json.dumps({"seconds": seconds, **counts, **megabytes}).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        told = json.load(answer)
    os.waitpid(child, 0)
    return told


def _counted(function: Callable, name: str, counts: dict[str, int]) -> Callable:
    def counting(*words: Any, **options: Any) -> Any:
        counts[name] += 1
        return function(*words, **options)

    return counting


def ways(data: ImageFolderData, folder: Path) -> Iterator[tuple[str, Callable[[], Lister]]]:
    """By name; each finds what those before it have left in the folder of indexes."""
    yield "lists", lambda: lists_itself
    shutil.rmtree(folder, ignore_errors=True)
    yield "first start: lists, writes the index", lambda: Index(folder, tells=True)
    yield "later start: asks for changes", lambda: Index(folder, tells=True)
    index = Index(folder, tells=True)
    open_image_folder(data, index)
    yield "told, first rank of a node", lambda: Told(index.told, True, 1)
    yield "told, another rank", lambda: Told(index.told, False, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to make the files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-index-") as place:
        begin, folder = time.perf_counter(), Path(place, FOLDER)
        make(Path(place, "train"), arguments.images, arguments.classes)
        print(f"made {arguments.images:,} files in {time.perf_counter() - begin:.0f} s", flush=True)
        data = ImageFolderData(source="image_folder", train=f"{place}/train", val_fraction=0.1)
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for name, lister in ways(data, folder):
                found.setdefault(name, []).append(measured(data, lister))
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        print(f"\n{arguments.images:,} images, {arguments.classes:,} classes, index {size:.1f} MB\n")
        print("| a rank | seconds | folders listed | stats | MB of its own | at most |\n|---|---|---|---|---|---|")
        for name, rounds in found.items():
            middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            calls = f"{middle['scandir']:,.0f} | {middle['stat']:,.0f}"
            print(f"| {name} | {middle['seconds']:.3f} | {calls} | {middle['own']:.1f} | {middle['most']:.1f} |")


if __name__ == "__main__":
    main()
