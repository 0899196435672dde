"""What the ranks of a run ask of the file system from the start of their processes to the end of the first step."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from slurm.environment_copy import LOCAL

MARKS = Path(__file__).parent / "start_marks"
"""On PYTHONPATH, its sitecustomize.py shows each stage's end as a stat of /start-stage/NAME."""
LOOKS = ("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat")
READS = ("read", "pread64", "readv")
WRITES = ("mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "symlink", "symlinkat", "fsync")
STRACE = ("strace", "-ff", "--seccomp-bpf", "-qq", "-ttt", "-y", "-s", "0", "-e", "signal=none", "-e")
CALLS = ",".join(["open", "openat", "getdents64", "mmap", *LOOKS, *READS, *WRITES])
_LINE = re.compile(r"(?P<time>[\d.]+) (?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\w+|\?)(?P<rest>.*)")
_DESCRIPTOR = re.compile(r"(?:\d+|AT_FDCWD)<([^>]*)>")
_END = '"/start-stage/step"'

Counts = dict[str, Counter[str]]
"""By part of the file system: opens, in vain, stats, lists, writes, bytes read, bytes of mapped files."""


def traced(trace: Path) -> list[str]:
    """The command that a rank's own stands behind; `trace` and a number name the files, one a thread."""
    return [*STRACE, f"trace={CALLS}", "-o", str(trace)]


def parts(program: Path, run_dir: Path, data: Path) -> list[tuple[str, tuple[str, ...]]]:
    """By name, the folders whose files count as one part; the first that fits a path counts."""
    environment = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), "/usr", "/lib", "/lib64"}
    return [
        ("our code", (str(program), str(run_dir.parent / ".code"))),
        ("run directory", (str(run_dir), str(run_dir.parent))),
        ("data", (str(data),)),
        ("copies on the node", (f"{LOCAL}/resnet-job-",)),
        ("environment", tuple(sorted(environment))),
        ("/proc, /sys, /dev", ("/proc", "/sys", "/dev")),
        ("/tmp, /etc, other", ("/",)),
    ]


def counted(files: Iterable[Path], among: list[tuple[str, tuple[str, ...]]]) -> Counts:
    """What the threads and children of one rank did until its first step was done.

    Raises ValueError where no thread came to the end of a step.
    """
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    ends = [float(line.split()[0]) for line in lines if _END in line]
    if not ends:
        raise ValueError("the trace has no first step: did the rank fail?")
    counts: Counts = {name: Counter() for name, _ in among}
    mapped = set()
    for call, path, result, arguments in _calls(lines, ends[0]):
        if path.startswith(("/start-stage", str(MARKS))):
            continue
        of = counts[next(name for name, folders in among if _is_below(path, folders))]
        failed = result.startswith("-")
        if call in ("open", "openat"):
            writes = "O_CREAT" in arguments or "O_WRONLY" in arguments
            of["writes" if writes else "lists" if "O_DIRECTORY" in arguments else "opens"] += 1
        elif call in LOOKS:
            of["stats"] += 1
        elif call in WRITES:
            of["writes"] += 1
        elif call in READS and not failed:
            of["bytes read"] += int(result)
        elif call == "mmap" and path not in mapped:
            mapped.add(path)
            of["bytes of mapped files"] += os.path.getsize(path) if os.path.isfile(path) else 0
        of["in vain"] += failed
    return counts


def _calls(lines: Iterable[str], end: float) -> Iterator[tuple[str, str, str, str]]:
    """Name, path, result and arguments of each call that names a file, or has one open."""
    for line in lines:
        found = _LINE.match(line)
        if not found or float(found["time"]) > end:
            continue
        call, arguments = found["call"], found["arguments"]
        named, opened = re.search(r'"([^"]*)"', arguments), _DESCRIPTOR.search(arguments)
        if call in (*READS, "getdents64", "mmap", "fsync"):
            named = None
        elif named is None or not named[1]:
            # A stat of what is open costs a file system nothing.
            continue
        if named or opened:
            path = os.path.join(opened[1] if opened and named else "", named[1]) if named else opened[1]  # pyright: ignore[reportOptionalSubscript]
            if path.startswith("/"):
                yield call, os.path.normpath(path), found["result"], arguments


def _is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether a path is one of the folders, or in it; one that ends with a hyphen is the beginning of names."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/" * (folder[-1] != "-")) for folder in folders)


def table(counts: Counts) -> str:
    columns = ("opens", "stats", "in vain", "lists", "writes", "bytes read", "bytes of mapped files")
    heads = ("opens", "stats", "in vain", "lists", "writes", "MB read", "MB mapped")
    lines = [f"  {'':20}" + "".join(f"{head:>11}" for head in heads)]
    for name, of in counts.items():
        cells = [f"{of[key] / 1e6:.2f}" if key.startswith("bytes") else str(of[key]) for key in columns]
        lines.append(f"  {name:20}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)
