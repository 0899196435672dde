"""Bring the program, and the Python environment or image that runs it, to the nodes' own disks, once a node.

A thousand ranks that import torch from a shared file system are millions of small requests to it; this makes them one
file, broadcast by Slurm (sbcast) where it can, else read once by each node. Only the standard library, and Python 3.9:
`prepare` at submission, the rest in the batch script.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet.process.environment import job_id
from slurm.control import said

IMAGES = (".sif", ".sqsh", ".squashfs", ".img")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".txz")
LOCAL = "/tmp"
"""On each node, where slurm.scratch names no other folder."""
REMOVE_SECONDS = 60
PATHS = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")
"""Variables in which the copies' places take those of what they are copies of."""
_FOLDER = """\
folder=$1 mark=$2; shift 2
mkdir -p "${folder%/*}"
test -e "$folder" || mkdir -m 700 "$folder"
if test ! -d "$folder" || test -L "$folder" || test ! -O "$folder"; then
  echo "$folder is not this user's own folder" >&2
  exit 1
fi
for old in "$mark"*; do
  case " $* " in "  " | *" ${old#"$mark"} "*) continue ;; esac
  test -L "$old" || test ! -O "$old" || rm -rf "$old"
done
exit 0
"""
"""On each node: nobody else can have written into the job's folder. Those of jobs that are over are removed.

After its words the jobs that are not over, none where that is not known.
"""
_PLACE = """\
set -e
source=$1 place=$2 needs=$3 broadcast=$4 new=$2.new-$$-$SLURM_NODEID
fill() {
  rm -rf "$new"
  if test -z "$needs"; then cp "$1" "$new"; return; fi
  mkdir "$new" || return
  if test -d "$1"; then tar -C "$1" -cf - . | tar -C "$new" -xf -; else tar -C "$new" -xf "$1"; fi
}
trap 'rm -rf "$new"; rm -f "$place.part"' EXIT
test ! -e "$place" || exit 0
{ test -n "$broadcast" && test -f "$place.part" && fill "$place.part"; } || fill "$source"
test -z "$needs" || test -e "$new/$needs" || { echo "there is no $needs in $source" >&2; exit 1; }
mv -T "$new" "$place" 2>/dev/null || test -e "$place"
"""
"""On each node: a whole copy takes its place at once. needs: what must be in it, empty for an image.

broadcast: not empty where the file was sent to all nodes, and whole.
"""
_REMOVE = """trap "" USR2; exec timeout "$0" rm -rf "$@" """
"""The signal asks the ranks to save, of which there are none any more."""


def kind_of(path: str) -> str:
    """image, archive or folder. Raises ValueError for another file."""
    if path.endswith(IMAGES):
        return "image"
    if path.endswith(ARCHIVES):
        return "archive"
    if Path(path).suffix in ("", ".d", ".venv") or Path(path).is_dir():
        return "folder"
    raise ValueError(f"must be a folder or end with one of {', '.join((*ARCHIVES, *IMAGES))}")


def prepare(path: str, needs: str, packed: Path) -> dict[str, str]:
    """What the batch script is told of an environment; a folder is packed into a file in `packed`, once.

    needs: the Python in it, relative to it; empty for an image. Raises ValueError where it is not there.
    """
    source = Path(path)
    kind = kind_of(path)
    if not (source.is_dir() if kind == "folder" else source.is_file()):
        raise ValueError(f"slurm.stage_environment={path}: no such {'file' if kind != 'folder' else kind}")
    if kind != "folder":
        told = source.stat()
        return {"path": path, "file": path, "needs": needs, "key": _key([path, told.st_size, told.st_mtime_ns])}
    if not (source / needs).exists():
        raise ValueError(f"slurm.stage_environment={path}: there is no {needs} in it")
    key = _key(_content(source))
    file = packed / f"environment-{key}.tar"
    if file.is_file():
        # One that is about to be used is not old, to `launch clean`.
        with contextlib.suppress(OSError):
            os.utime(file)
    else:
        packed.mkdir(parents=True, exist_ok=True)
        print(f"packing {path} (once, until it changes)", file=sys.stderr, flush=True)
        new = packed / f".{file.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            subprocess.run(["tar", "-C", path, "-cf", str(new), "."], check=True)
            new.rename(file)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f"slurm.stage_environment={path} could not be packed: {error}") from error
        finally:
            new.unlink(missing_ok=True)
    return {"path": path, "file": str(file), "needs": needs, "key": key}


def _content(folder: Path) -> list[Any]:
    """What changes when a file below a folder does."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            told = os.lstat(os.path.join(parent, name))
            found.append((os.path.relpath(os.path.join(parent, name), folder), told.st_size, told.st_mtime_ns))
    return found


def _key(values: Sequence[Any]) -> str:
    return hashlib.sha256(repr(values).encode(errors="surrogateescape")).hexdigest()[:12]


class Copies:
    """What of a job's program and environment lies on its nodes' own disks.

    srun: runs a job step on nodes, with so many options and command, and returns its exit code.
    """

    def __init__(self, jobs: Mapping[str, Any], srun: Callable[[Sequence[str], Sequence[str]], int]) -> None:
        self._environment: Mapping[str, str] | None = jobs.get("environment")
        # As the shell names it, which went there.
        self._snapshot, self._srun = Path(os.environ.get("PWD", os.getcwd())), srun
        # Two clusters that share a machine may have the same numbers.
        cluster = _key([os.environ.get(name) for name in ("SLURM_CLUSTER_NAME", "SLURM_CONF")])[:6]
        self._mark = f"{jobs.get('scratch') or LOCAL}/resnet-job-{cluster}-"
        self._folder = f"{self._mark}{job_id()}"
        """On each node: this user's own, and of nobody else to enter."""
        self._ships_code = jobs.get("ship_code", False)
        """Until it has failed on a node."""
        self._broadcast: set[str] = set()
        """Places whose file every node was sent, whole."""
        self.folders: list[str] = []
        """What is to be removed from each node in the end."""
        self._moved: dict[str, str] = {}
        """By a path on the shared file system its copy's on each node."""

    def bring(self, nodes: Sequence[str], every: Sequence[str]) -> int:
        """Bring all to these nodes; returns 0, or the exit code of the step that could not bring the environment.

        every: all nodes of the job, where none has anything yet: Slurm sends them the files at once.
        """
        told = self._environment
        ships_code = self._ships_code and (told or len(nodes) > 1 or str(self._snapshot) in self._moved)
        if not (told or ships_code):
            return 0
        self.folders = [self._folder]
        code = self._srun(every or nodes, ["sh", "-c", _FOLDER, "sh", self._folder, self._mark, *_jobs_in_queue()])
        if told:
            ending = "".join(Path(told["path"]).suffixes[-1:]) if not told["needs"] else ""
            place = f"{self._folder}/environment-{told['key']}{ending}"
            if not code and every:
                self._send(told["file"], place)
            if code := code or self._place(told["file"], place, told["needs"], nodes):
                return code
            self._moved[told["path"]] = place
        if ships_code:
            self._ship_code(code, nodes, bool(every))
        return 0

    def _ship_code(self, code: int, nodes: Sequence[str], is_first: bool) -> None:
        """code: of the step that made the folder."""
        place = f"{self._folder}/code-{self._snapshot.name}"
        if not code and is_first:
            self._send_code(place)
        if code or self._place(str(self._snapshot), place, "train.py", nodes):
            print("the ranks import the program from the shared file system", file=sys.stderr)
            self._ships_code = False
            self._moved.pop(str(self._snapshot), None)
        else:
            self._moved[str(self._snapshot)] = place

    def _place(self, source: str, place: str, needs: str, nodes: Sequence[str]) -> int:
        sent = "yes" if place in self._broadcast else ""
        return self._srun(nodes, ["sh", "-c", _PLACE, "sh", source, place, needs, sent])

    def _send(self, file: str, place: str) -> None:
        """Let Slurm send a file to all nodes; where that fails each reads the source for itself."""
        if subprocess.run(["sbcast", "--force", file, f"{place}.part"], stdin=subprocess.DEVNULL).returncode == 0:
            self._broadcast.add(place)

    def _send_code(self, place: str) -> None:
        try:
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                code, packed = f"{folder}/code", f"{folder}/code.tar"
                shutil.copytree(self._snapshot, code, symlinks=True)
                # Not in the shared copy, which is to hold what was sent and nothing else.
                subprocess.run([sys.executable, "-m", "compileall", "-q", code], capture_output=True)
                with tarfile.open(packed, "w") as file:
                    file.add(code, ".")
                self._send(packed, place)
        except OSError as error:
            print(f"the program could not be packed: {error}", file=sys.stderr)

    def words(self, words: Sequence[str]) -> list[str]:
        """A command line with the copies' paths in the place of what they are copies of."""
        return [self.word(word) for word in words]

    def options(self) -> list[str]:
        """What srun is told, so that Python finds the copy of the program where it looks first."""
        place = self._moved.get(str(self._snapshot))
        return [f"--chdir={place}"] if place else []

    def variables(self) -> dict[str, str]:
        return {name: self.word(os.environ[name]) for name in PATHS if name in os.environ}

    def word(self, text: str) -> str:
        for path, place in self._moved.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(path)}(?=$|[/:,\s'\"])", lambda _, place=place: place, text)
        return text


def removal(folders: Sequence[str]) -> list[str]:
    """The command that removes folders from a node."""
    return ["sh", "-c", _REMOVE, str(REMOVE_SECONDS), *folders]


def _jobs_in_queue() -> list[str]:
    """Numbers of this user's jobs that are not over; [] where Slurm does not say."""
    found = said("squeue", "-h", "-a", "-u", str(os.getuid()), "-o", "%A").split()
    return found if job_id() in found else []
