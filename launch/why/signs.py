"""Lines by which a failure is known, in what ranks, shells, drivers, containers and Slurm print."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from launch.why import mends
from launch.why.facts import Facts, Text
from launch.why.harmless import is_harmless
from resnet.rundir.files import to_json


class Sign(NamedTuple):
    name: str
    """A cause's id."""
    pattern: re.Pattern[str]
    said: str
    """{0} is the line's part that the pattern's first group finds, else what it finds."""
    mend: Callable[[Facts, str], str]
    """The command, by the run and the line."""


class Found(NamedTuple):
    """A sign in a text."""

    sign: Sign
    place: str
    line: str
    what: str
    """What fills the sign's words."""


def _retry(*changes: str) -> Callable[[Facts, str], str]:
    return lambda facts, _: mends.retry(facts, *changes)


def _elsewhere(facts: Facts, _: str) -> str:
    return mends.elsewhere(facts)


def _workers(count: int) -> Callable[[Facts, str], str]:
    return lambda facts, _: mends.changed(facts, f"data.num_workers={count}")


def _check_data(facts: Facts, _: str) -> str:
    return mends.check_data(facts)


def _smaller_batch(facts: Facts, _: str) -> str:
    batch = facts.provenance.get("plan", {}).get("micro_batch") or 0
    return mends.anew(facts, f"max_batch_per_device={max(2, batch // 2)}" if batch else "max_batch_per_device=auto")


def _less_memory_of_workers(facts: Facts, _: str) -> str:
    """More of the node's memory; where it has all of that, fewer workers."""
    if facts.job and not facts.job.held and str(facts.job.profile.get("mem")) != "0":
        return mends.retry(facts, "slurm.mem=0")
    workers = facts.recipe.data.num_workers if facts.recipe else None
    return mends.changed(facts, f"data.num_workers={max(1, (workers or 8) // 2)}")


NODES_OWN = ("/tmp", "/var", "/run", "/local", "/scratch", "/mnt")
"""Where a node's own disks are, as a rule."""


def _path(line: str) -> Path | None:
    """The file that an error names last."""
    named = re.findall(r"""['"`<](/[^'"`>]+)['"`>]""", line) or re.findall(r"(?<![\w.])/[^\s:,]+", line)
    return Path(named[-1].rstrip(".")) if named else None


def _free_disk(facts: Facts, line: str) -> str:
    """By whose disk it is: the run's, a node's own or another."""
    path = _path(line)
    if path is None or path.is_relative_to(facts.run_dir.parent.absolute()):
        return "launch clean --dry-run"
    scratch = facts.job.profile.get("scratch") if facts.job else None
    if facts.job and any(path.is_relative_to(own) for own in (*NODES_OWN, *([scratch] if scratch else []))):
        return mends.elsewhere(facts)
    return shlex.join(["df", "-h", str(path.parent)])


def _look_at_file(facts: Facts, line: str) -> str:
    """Whose it is; where the line names none, on which nodes it may be otherwise."""
    path = _path(line)
    return shlex.join(["ls", "-ld", str(path.parent), str(path)]) if path else mends.elsewhere(facts)


def _look_for_data(facts: Facts, line: str) -> str:
    """Where the ranks looked for it: on a node it may not be mounted."""
    path = _path(line)
    if facts.job is None:
        return mends.check_data(facts)
    return mends.on_node(facts, "ls", "-d", str(path)) if path else mends.elsewhere(facts)


def _doctor(facts: Facts, _: str) -> str:
    return mends.doctor(facts)


def _without_setup(facts: Facts, _: str) -> str:
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


def _with_module(facts: Facts, line: str) -> str:
    """Once the ranks' Python has the module; not by installing what bears its name, which may be anybody's."""
    if found := _other_python(facts):
        return found
    named = re.search(r"No module named '?(\w+)", line)
    check = shlex.join([sys.executable, "-c", f"import {named[1]}"]) + " && " if named else ""
    return check + mends.retry(facts)


def _with_library(facts: Facts, _: str) -> str:
    return _other_python(facts) or mends.elsewhere(facts)


def _signs(*rows: tuple[str, str, str, Callable[[Facts, str], str]]) -> tuple[Sign, ...]:
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
        r"(?i)out of shared memory|insufficient shared memory|unable to \w+ shared memory|bus error|"
        r"unable to \w+(?: to)? file </torch_|No space left on device: '/dev/shm",
        "/dev/shm, by which data workers hand over their images, is too small",
        _workers(0),
    ),
    (
        "disk",
        r"((?:No space left on device|Disk quota exceeded)(?:.* ?'/[^']*')?)",
        "the disk is full, or the quota used up ({0})",
        _free_disk,
    ),
    (
        "file_system",
        r"Read-only file system|Stale file handle|Input/output error|Transport endpoint is not connected|"
        r"Remote I/O error",
        "the file system failed ({0})",
        _elsewhere,
    ),
    (
        "open_files",
        r"Too many open files",
        "a process has more files open than `ulimit -n` allows",
        _workers(2),
    ),
    (
        "driver",
        r"driver .*is too old|CUDA driver version is insufficient|[Dd]river/library version mismatch|"
        r"forward compatibility was attempted|Found no NVIDIA driver",
        "the node's NVIDIA driver does not fit this build of torch ({0})",
        _elsewhere,
    ),
    (
        "no_kernel",
        r"no kernel image is available|CUDA capability sm_\d+ is not compatible",
        "this build of torch does not know the node's GPU ({0})",
        _elsewhere,
    ),
    (
        "no_gpu",
        r"torch finds no GPU|No CUDA GPUs are available|no CUDA-capable device",
        "a rank sees no GPU ({0})",
        _elsewhere,
    ),
    (
        "labels",
        r"device-side assert triggered|Target \d+ is out of bounds|"
        r"RuntimeError: index \d+ is out of bounds for dimension 1",
        "a label is outside of the network's classes",
        _check_data,
    ),
    (
        "gpu_fault",
        r"NVRM: Xid.*|uncorrectable ECC error|fallen off the bus|unspecified launch failure|illegal memory access|"
        r"GPU is lost|misaligned address|hardware stack error",
        "a GPU is broken, or its driver ({0})",
        _elsewhere,
    ),
    ("setup", r"slurm\.setup failed: (.*)", "a line of slurm.setup failed: {0}", _without_setup),
    (
        "container",
        r"(?:apptainer|singularity|podman|docker|enroot)\S*: (?:command not found|not found|No such file or directory)|"
        r"FATAL: .*(?:image|container|\.sif|\.sqsh).*|pyxis: .*(?:failed|couldn't|error).*|enroot-\w+: .*|"
        r"unrecognized option '--container-\S+'",
        "the container could not be started ({0})",
        _doctor,
    ),
    (
        "no_python",
        r"(?:exec: )?((?<!\S)\S*python[\d.]*): (?:not found|command not found|No such file|cannot execute)|"
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
        r"((?<![^\s'\"(])[^\s'\"(]+\.so[.\d]*): cannot open shared object file|(version `\S+' not found)|"
        r"undefined symbol: (\S+)",
        "a library of the environment does not fit the node ({0})",
        _with_library,
    ),
    (
        "import",
        r"ModuleNotFoundError: No module named '?([\w.]+)'?",
        "the Python of the ranks has no module {0}: it is an extra of this program, or a plug-in needs it",
        _with_module,
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
        _elsewhere,
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
        _elsewhere,
    ),
    (
        "labels",
        r"model\.num_classes=\d+, but .* has \d+ classes",
        "{0}",
        lambda facts, _: mends.anew(facts, "model.num_classes=null"),
    ),
    (
        "data_missing",
        r"not there:.*|there is no /\S+|FileNotFoundError: .*|[Nn]o such file or directory: \S+",
        "what the run reads is not there ({0})",
        _look_for_data,
    ),
    (
        "permission",
        r"PermissionError: .*|Permission denied",
        "a file may not be read or written ({0})",
        _look_at_file,
    ),
    (
        "checkpoint",
        r"no checkpoint of \S+ can be used|checkpoint \S+ is damaged.*",
        "no checkpoint of the run can be read",
        lambda facts, _: mends.anew(facts),
    ),
)
"""Of what itself brings a run to its end."""


MOST_SEARCHED = 2000
"""Characters of a line: a progress bar or a dump of a tensor may be of megabytes."""


def first_sign(texts: Iterable[Text]) -> Found | None:
    """The first line of the first text that shows one."""
    for text in texts:
        for line in (line.strip()[:MOST_SEARCHED] for line in text.lines):
            if not is_harmless(line) and (found := _sign_of(line, text.place)):
                return found
    return None


def _sign_of(line: str, place: str) -> Found | None:
    for sign in CAUSES:
        if match := sign.pattern.search(line):
            return Found(sign, place, line, next(filter(None, match.groups()), match[0]).strip())
    return None
