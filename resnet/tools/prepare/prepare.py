"""`resnet prepare`: all images of a recipe's data into shards, once, by all cores."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout

from recipes.schema.data import Data
from recipes.text import listed, plural
from resnet.checkpoint.commit import sha256_of
from resnet.data.arrays import BrokenImage
from resnet.data.sources import shards
from resnet.data.sources.banded import Banded, read_both
from resnet.data.sources.files import expanded
from resnet.data.sources.registry import evenly, open_sources
from resnet.data.sources.shards import FORMAT, INDEX, SPLITS, UNFINISHED, File, Index, Split
from resnet.data.sources.source import Source, targets_of
from resnet.process.environment import usable
from resnet.process.signals import die_with_parent
from resnet.rundir.files import open_atomic, read_json, sync_folder, to_json, write_atomic
from resnet.tools.output import counted
from resnet.tools.prepare.forms import Form, store
from resnet.tools.prepare.shard import Task, as_text, is_finished, read_part, told_from, write_shard

SHARD_BYTES = 256_000_000
MOST_SHARDS = 500
"""Of a split, which becomes larger shards rather than more: a reader keeps all of them open."""
_SAMPLED = 100
"""Images of a split whose sizes tell how many make a shard."""


class _Job(NamedTuple):
    """What a worker needs to know."""

    sources: dict[str, Source]
    form: Form
    roots: tuple[str, ...]
    """Folders that the names of images are told from."""
    out: Path
    channels: int = 3


def prepare(data: Data, out: Path, form: Form, workers: int | None = None, channels: int = 3) -> Index:
    """Write the training and validation images of a recipe's data into shards in the folder `out`; return its index.

    workers: processes; None: one a core. channels: what the images are to have (`model.in_channels`). What an earlier
    call with the same data and form has finished is kept, and the files come out the same. Raises ValueError where
    something else is in `out`, where the disk has no room, and where more than `data.max_broken` of the images cannot
    be read; OSError.
    """
    out = expanded(str(out))
    _check_folder(out)
    _check_apart(data, out)
    if form.kind in ("max_side", "short_side") and channels not in (1, 3):
        option = f"--{form.kind.replace('_', '-')}"
        raise ValueError(f"{option} writes JPEGs, of RGB or grey, and model.in_channels is {channels}: give --raw N")
    if data.test_fraction is not None:
        raise ValueError(
            "data.test_fraction puts images aside that the shards would not hold: prepare the test images as another "
            "folder's validation images, which data.test then names"
        )
    train, val = open_sources(data, channels=channels)
    if targets_of(train) is not None:
        raise ValueError("the images have several labels each, and shards hold one: train from the source itself")
    _check_classes(train.classes)
    job = _Job({"train": train, "validation": val}, form, _roots(data), out, channels)
    if (out / INDEX).is_file():  # which may lie where nothing can be written
        return _finished(job, _made(data, job))
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            return _prepare(job, data, workers or usable())
    except Timeout:
        raise ValueError(f"another `resnet prepare` is writing into {out}") from None


def verify(folder: Path) -> Index:
    """Compare the files of prepared data with the digests in its index. Raises ValueError naming those that differ."""
    folder = expanded(str(folder))
    index = shards.read_index(folder, "--verify")
    splits = [index.split(split) for split in SPLITS]
    files = [file for split in splits for file in (split.records, *split.files)]
    with ThreadPoolExecutor() as pool:
        same = list(counted(pool.map(lambda file: _is_as_written(folder, file), files), len(files), what="files"))
    if changed := [file.name for file, is_same in zip(files, same, strict=True) if not is_same]:
        raise ValueError(f"changed or missing in {folder}: {listed(changed)}")
    return index


def _is_as_written(folder: Path, file: File) -> bool:
    with contextlib.suppress(OSError), (folder / file.name).open("rb") as stream:
        return sha256_of(stream) == file.sha256
    return False


def _check_folder(out: Path) -> None:
    """Raise ValueError where a folder holds what is not ours."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder to write the shards into")
    ours = any((out / name).is_file() for name in (INDEX, UNFINISHED))
    if out.is_dir() and not ours and (other := [name.name for name in out.iterdir() if not _is_left(name.name)]):
        raise ValueError(f"{out} holds other things ({listed(sorted(other), 3)}): give a new or an empty folder")


def _is_left(name: str) -> bool:
    """Whether a file may be what was left of an interruption before anything was whole."""
    return name == ".lock" or (name.startswith(f".{UNFINISHED}.") and name.endswith(".tmp"))


def _check_apart(data: Data, out: Path) -> None:
    """Raise ValueError where the shards would become images of their own source."""
    if data.source not in ("image_folder", "huggingface"):  # others read what they know by name
        return
    there = out.resolve()
    for place in _places(data):
        folder = expanded(place).resolve()
        if folder.is_dir() and (there.is_relative_to(folder) or folder.is_relative_to(there)):
            raise ValueError(f"{out} and the images' folder {place} lie in one another: give a folder beside it")


def _check_classes(classes: list[str]) -> None:
    """Raise ValueError for a name that JSON cannot hold."""
    for name in classes:
        if (text := as_text(name)) != name:
            raise ValueError(f"the name of the class {text} is not UTF-8: rename its folder")


def _finished(job: _Job, made: dict[str, Any]) -> Index:
    """The index of a folder that has one. Raises ValueError where it is of something else, or damaged."""
    index = shards.read_index(job.out, "OUT")
    _check_same(index.made, made, job.out)
    for split in SPLITS:
        shards.Shards(job.out, split, index)
    with contextlib.suppress(OSError):
        _clean(job.out)
    return index


def _prepare(job: _Job, data: Data, workers: int) -> Index:
    made, out = _made(data, job), job.out
    if (out / INDEX).is_file():
        return _finished(job, made)
    for temporary in out.rglob(".*.tmp"):
        temporary.unlink()
    with _pool(workers, job) as pool:
        _check_same(read_json(out / UNFINISHED).get("made", made), made, out)
        tasks = _tasks(job, _mean_bytes(pool, job, made))
        for folder in ("data", "parts"):
            (out / folder).mkdir(exist_ok=True)
        _write_all(pool, tasks)
    index = _join(job, made, tasks, data.max_broken)
    write_atomic(out / INDEX, index.model_dump_json(indent=1))
    _clean(out)
    return index


def _clean(out: Path) -> None:
    """Remove what only the preparation needs."""
    (out / UNFINISHED).unlink(missing_ok=True)
    shutil.rmtree(out / "parts", ignore_errors=True)


def _places(data: Data) -> list[str]:
    """The files and folders of a recipe's data, as the user typed them."""
    return [path for path in (data.train, data.val, *data.paths().values()) if path]


def _roots(data: Data) -> tuple[str, ...]:
    """What names of images begin with that depends on where they lie, or on how that was typed; the longest first."""
    roots = set()
    for place in _places(data):
        path = expanded(place)
        # Rows are told by the path as it was typed and the name of their split.
        roots |= {f"{place} ", f"{path} ", f"{path if path.is_dir() else path.parent}/"}
    return tuple(sorted(roots, key=lambda root: (-len(root), root)))


def _made(data: Data, job: _Job) -> dict[str, Any]:
    """What the shards are made of: equal where the same files would come out."""
    digest = hashlib.sha256("\n".join(job.sources["train"].classes).encode())
    for source in job.sources.values():
        digest.update(source.labels.tobytes())
        for index in range(len(source)):
            digest.update(told_from(job.roots, source.describe(index)).encode() + b"\n")
    counts = {split: len(source) for split, source in job.sources.items()}
    made = {"form": job.form._asdict(), "source": data.source, "images": counts, "names_sha256": digest.hexdigest()}
    is_rgb = not isinstance(job.sources["train"], Banded)
    return made if is_rgb else {**made, "channels": job.channels, "pixel_max": data.pixel_max}


def _check_same(before: Any, now: dict[str, Any], out: Path) -> None:
    """Raise ValueError where a folder's shards are of something else."""
    if before == now:
        return
    old = before if isinstance(before, dict) else {}
    differ = [f"{key} {to_json(old.get(key))}, not {to_json(now[key])}" for key in now if old.get(key) != now[key]]
    raise ValueError(f"{out} holds shards of something else ({'; '.join(differ)}): give another folder, or remove it")


@contextlib.contextmanager
def _pool(workers: int, job: _Job) -> Iterator[ProcessPoolExecutor]:
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (job, os.getpid()))
    try:
        yield pool
    except KeyboardInterrupt:
        told = "stopping once the shards being written are whole (Ctrl-C again: now); repeat the command to go on"
        print(told, file=sys.stderr, flush=True)
        raise
    except BrokenProcessPool:
        raise OSError("a worker was ended from outside, perhaps for want of memory: try fewer --workers") from None
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:  # a second one does not wait for the shards being written
            for process in multiprocessing.active_children():
                if process not in others:
                    process.kill()
            raise


_job: _Job
"""In a worker: what it works on."""


def _start_worker(job: _Job, parent: int) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL, parent)
    torch.set_num_threads(1)


def _stored_bytes(split: str, index: int) -> int:
    source = _job.sources[split]
    try:
        return len(store(_job.form, *read_both(source, index)).data)
    except (BrokenImage, OSError):
        return 0


def _write(task: Task) -> None:
    write_shard(_job.sources[task.split], _job.form, task, _job.roots, _job.out)


def _is_finished(task: Task) -> bool:
    return is_finished(_job.out, task)


def _mean_bytes(pool: ProcessPoolExecutor, job: _Job, made: dict[str, Any]) -> dict[str, int]:
    """Bytes that an image of each split takes on average, by a sample of them, once for all calls."""
    noted = read_json(job.out / UNFINISHED)
    if not noted:
        means = {}
        for split, source in job.sources.items():
            some = evenly(len(source), min(_SAMPLED, len(source))).tolist()
            sizes = list(pool.map(_stored_bytes, [split] * len(some), some, chunksize=8))
            means[split] = max(1, round(sum(sizes) / max(1, len(sizes))))
        noted = {"made": made, "mean_bytes": means}
        write_atomic(job.out / UNFINISHED, to_json(noted, indent=1))
    try:
        return {split: max(1, int(noted["mean_bytes"][split])) for split in SPLITS}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{job.out / UNFINISHED} is damaged: remove {job.out} and begin anew") from None


def _tasks(job: _Job, mean_bytes: dict[str, int]) -> list[Task]:
    tasks = []
    for split, source in job.sources.items():
        total = len(source) * mean_bytes[split]
        count = max(1, min(round(total / SHARD_BYTES), MOST_SHARDS, len(source)))
        bounds = [number * len(source) // count for number in range(count + 1)]
        tasks += [Task(split, number, count, *bounds[number : number + 2]) for number in range(count)]
    _check_room(job, tasks, mean_bytes)
    return tasks


def _check_room(job: _Job, tasks: list[Task], mean_bytes: dict[str, int]) -> None:
    missing = [task for task in tasks if not (job.out / task.name).is_file()]
    needed = sum(task.images * mean_bytes[task.split] for task in missing)
    free = shutil.disk_usage(job.out).free
    if needed * 1.05 > free:
        raise ValueError(
            f"{job.out} has {amount(free)} free, and the shards will need about {amount(needed)}: make room, or give "
            "another folder"
        )


def amount(size: float) -> str:
    """Bytes as text."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _write_all(pool: ProcessPoolExecutor, tasks: list[Task]) -> None:
    finished = list(pool.map(_is_finished, tasks))
    left = [task for task, is_done in zip(tasks, finished, strict=True) if not is_done]
    futures: dict[Future[None], Task] = {pool.submit(_write, task): task for task in left}
    total, missing = (sum(task.images for task in some) for some in (tasks, left))
    ended = as_completed(futures)
    for future in counted(ended, total, weight=lambda future: futures[future].images, done=total - missing):
        future.result()


def _join(job: _Job, made: dict[str, Any], tasks: list[Task], max_broken: float) -> Index:
    """The index of all shards; their records are written."""
    splits = {}
    for name, source in job.sources.items():
        parts = [read_part(job.out, task) for task in tasks if task.split == name]
        broken = [image for part, _ in parts for image in part.broken]
        if len(broken) > max_broken * len(source):
            few = "; ".join(f"{image.image}: {image.reason}" for image in broken[:3])
            raise ValueError(
                f"{plural(len(broken), 'image')} of {len(source):,} ({name}) cannot be read, more than data.max_broken="
                f"{max_broken:g} of them ({few}): mend the source, or raise data.max_broken"
            )
        records = np.concatenate([records for _, records in parts])
        path = job.out / shards.records_name(name)
        with open_atomic(path) as file:
            np.save(file, records, allow_pickle=False)
        with path.open("rb") as file:
            described = File(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(file))
        splits[name] = Split(
            images=len(records),
            per_class=np.bincount(records["label"], minlength=len(source.classes)).tolist(),
            records=described,
            files=[part.file for part, _ in parts],
            broken=broken,
        )
    sync_folder(job.out)
    return Index(format=FORMAT, made=made, classes=job.sources["train"].classes, **splits)
