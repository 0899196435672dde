"""Lines by which a failure is known, in what ranks, shells, drivers, containers and Slurm print."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

from launch.why import mends
from launch.why.facts import Facts, Text
from resnet.rundir.files import to_json


class Sign(NamedTuple):
    name: str
    """A cause's id."""
    pattern: re.Pattern[str]
    said: str
    """{0} is the line's part that the pattern's first group finds, else what it finds."""
    mend: Callable[[Facts], str]


class Found(NamedTuple):
    """A sign in a text."""

    sign: Sign
    place: str
    line: str
    what: str
    """What fills the sign's words."""


def _retry(*changes: str) -> Callable[[Facts], str]:
    return lambda facts: mends.retry(facts, *changes)


def _smaller_batch(facts: Facts) -> str:
    batch = facts.provenance.get("plan", {}).get("micro_batch") or 0
    return mends.anew(facts, f"max_batch_per_device={max(2, batch // 2)}" if batch else "max_batch_per_device=auto")


def _less_memory_of_workers(facts: Facts) -> str:
    """More of the node's memory; where it has all of that, fewer workers."""
    if facts.job and str(facts.job.profile.get("mem")) != "0":
        return mends.retry(facts, "slurm.mem=0")
    workers = facts.recipe.data.num_workers if facts.recipe else None
    return mends.changed(facts, f"data.num_workers={max(1, (workers or 8) // 2)}")


def _free_disk(facts: Facts) -> str:
    return f"launch clean && {mends.retry(facts)}"


def _without_setup(facts: Facts) -> str:
    """Without the line of slurm.setup that failed."""
    failed = next(
        (match[1] for text in facts.batch_texts for match in _matches(r"slurm\.setup failed: (.*)", text)), ""
    )
    lines = [line for line in (facts.job.profile.get("setup") if facts.job else None) or [] if line != failed]
    return mends.retry(facts, shlex.quote(f"slurm.setup={to_json(lines)}"))


def _matches(pattern: str, text: Text) -> list[re.Match[str]]:
    return [match for line in text.lines if (match := re.search(pattern, line))]


def _other_python(facts: Facts) -> str | None:
    """With the Python of this command, where the ranks had another; None where they had the same."""
    theirs = facts.job.profile.get("python") if facts.job else None
    return mends.retry(facts, f"slurm.python={shlex.quote(sys.executable)}") if theirs else None


def _with_package(facts: Facts) -> str:
    """With the package that the ranks did not find."""
    if found := _other_python(facts):
        return found
    lines = [line for text in facts.log_texts for line in text.lines]
    named = next((match[1] for line in lines if (match := re.search(r"No module named '?(\w+)", line))), None)
    return (
        f"{shlex.quote(sys.executable)} -m pip install {named} && {mends.retry(facts)}" if named else mends.retry(facts)
    )


def _with_library(facts: Facts) -> str:
    return _other_python(facts) or mends.elsewhere(facts)


def _signs(*rows: tuple[str, str, str, Callable[[Facts], str]]) -> tuple[Sign, ...]:
    return tuple(Sign(name, re.compile(pattern), said, mend) for name, pattern, said, mend in rows)


CAUSES = _signs(
    (
        "gpu_memory",
        r"(?i)out of GPU memory|CUDA out of memory|CUDA error: out of memory|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED",
        "the GPU's memory is too small for the micro-batch",
        _smaller_batch,
    ),
    (
        "host_memory",
        r"oom[-_ ]kill|: Out Of Memory|OUT_OF_MEMORY|want of memory|Cannot allocate memory|MemoryError|"
        r"killed by signal: Killed",
        "the node's memory was used up, and the kernel killed a process of the run",
        _less_memory_of_workers,
    ),
    (
        "shared_memory",
        r"(?i)out of shared memory|insufficient shared memory|unable to \w+ shared memory|bus error",
        "/dev/shm, by which data workers hand over their images, is too small",
        lambda facts: mends.changed(facts, "data.num_workers=0"),
    ),
    (
        "disk",
        r"No space left on device|Disk quota exceeded",
        "the disk is full, or the quota used up ({0})",
        _free_disk,
    ),
    (
        "file_system",
        r"Read-only file system|Stale file handle|Input/output error|Transport endpoint is not connected|"
        r"Remote I/O error",
        "the file system failed ({0})",
        mends.elsewhere,
    ),
    (
        "open_files",
        r"Too many open files",
        "a process has more files open than `ulimit -n` allows",
        lambda facts: mends.changed(facts, "data.num_workers=2"),
    ),
    (
        "driver",
        r"driver .*is too old|CUDA driver version is insufficient|[Dd]river/library version mismatch|"
        r"forward compatibility was attempted|Found no NVIDIA driver",
        "the node's NVIDIA driver does not fit this build of torch ({0})",
        mends.elsewhere,
    ),
    (
        "no_kernel",
        r"no kernel image is available|CUDA capability sm_\d+ is not compatible",
        "this build of torch does not know the node's GPU ({0})",
        mends.elsewhere,
    ),
    (
        "no_gpu",
        r"torch finds no GPU|No CUDA GPUs are available|no CUDA-capable device",
        "a rank sees no GPU ({0})",
        mends.elsewhere,
    ),
    (
        "labels",
        r"device-side assert triggered|Target \d+ is out of bounds|index \d+ is out of bounds",
        "a label is outside of the network's classes",
        lambda facts: f"resnet check-data recipe={facts.run_dir}",
    ),
    (
        "gpu_fault",
        r"NVRM: Xid.*|uncorrectable ECC error|fallen off the bus|unspecified launch failure|illegal memory access|"
        r"GPU is lost|misaligned address|hardware stack error",
        "a GPU is broken, or its driver ({0})",
        mends.elsewhere,
    ),
    ("setup", r"slurm\.setup failed: (.*)", "a line of slurm.setup failed: {0}", _without_setup),
    (
        "container",
        r"(?:apptainer|singularity|podman|docker|enroot)\S*: (?:command not found|not found|No such file or directory)|"
        r"FATAL: .*(?:image|container|\.sif|\.sqsh).*|pyxis: .*(?:failed|couldn't|error).*|enroot-\w+: .*|"
        r"unrecognized option '--container-\S+'",
        "the container could not be started ({0})",
        _retry("slurm.container=null"),
    ),
    (
        "no_python",
        r"(?:exec: )?(\S*python[\d.]*): (?:not found|command not found|No such file or directory|cannot execute)|"
        r"execve\(\): (\S*python[\d.]*): No such file",
        "the node has no such Python: {0}",
        _with_library,
    ),
    (
        "code_gone",
        r"cd: .*/\.code/\S+: No such file",
        "the copy of the program that it ran is gone",
        _retry("--new-code"),
    ),
    (
        "library",
        r"(\S+\.so[.\d]*): cannot open shared object file|(version `\S+' not found)|undefined symbol: (\S+)",
        "a library of the environment does not fit the node ({0})",
        _with_library,
    ),
    (
        "import",
        r"ModuleNotFoundError: No module named '?([\w.]+)'?",
        "the environment of the ranks has no package {0}",
        _with_package,
    ),
    ("import", r"ImportError: (.*)", "the program cannot be imported: {0}", _with_library),
    (
        "ranks",
        r"\d+ ranks were asked for and Slurm started \d+",
        "Slurm started another number of ranks ({0}): an option of srun or sbatch in the profile changes it",
        _retry("slurm.srun_args='[]'"),
    ),
    (
        "name",
        r"the name of the first node, (\S+), does not resolve",
        "the nodes do not know one another's names ({0})",
        mends.elsewhere,
    ),
    (
        "interface",
        r"no socket interface found|Unable to find (?:address for: |interface )\S*|unable to find network interface",
        "the network interface that is named is not there ({0})",
        _retry("slurm.interface=null"),
    ),
    ("port", r"EADDRINUSE|[Aa]ddress already in use", "the port of rank 0 was taken by another program", _retry()),
    (
        "network",
        r"NET/IB.*(?:error|failed).*|No route to host|Network is unreachable|ibv_\w+ failed.*|ncclRemoteError",
        "the network between the nodes failed ({0})",
        mends.elsewhere,
    ),
    (
        "labels",
        r"model\.num_classes=\d+, but .* has \d+ classes",
        "{0}",
        lambda facts: mends.anew(facts, "model.num_classes=null"),
    ),
    (
        "data_missing",
        r"not there:.*|there is no /\S+|FileNotFoundError: .*|[Nn]o such file or directory: \S+",
        "what the run reads is not there ({0})",
        lambda facts: f"resnet check-data recipe={facts.run_dir}",
    ),
    ("permission", r"PermissionError: .*|Permission denied", "a file may not be read or written ({0})", _retry()),
    (
        "checkpoint",
        r"no checkpoint of \S+ can be used|checkpoint \S+ is damaged.*",
        "no checkpoint of the run can be read",
        lambda facts: mends.anew(facts),
    ),
)
"""Of what itself brings a run to its end."""


def first_sign(texts: Iterable[Text]) -> Found | None:
    """The first line of the first text that shows one."""
    for text in texts:
        for line in text.lines:
            for sign in CAUSES:
                if match := sign.pattern.search(line):
                    what = next(filter(None, match.groups()), match[0]).strip()
                    return Found(sign, text.place, line.strip(), what)
    return None
