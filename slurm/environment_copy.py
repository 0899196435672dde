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

IMAGES = (".sif", ".sqsh", ".squashfs", ".img")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".txz")
LOCAL = "/tmp"
"""On each node, where slurm.scratch names no other folder."""
REMOVE_SECONDS = 60
PATHS = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")
"""Variables in which the copies' places take those of what they are copies of."""
_PLACE = """\
set -e
source=$1 place=$2 needs=$3 new=$2.new-$$-$SLURM_NODEID
test ! -e "$place" || exit 0
file=$place.part
test -f "$file" || file=$source
trap 'rm -rf "$new"' EXIT
case $needs in
  "") cp "$file" "$new" ;;
  *) mkdir -p "$new"
    if test -d "$file"; then tar -C "$file" -cf - . | tar -C "$new" -xf -; else tar -C "$new" -xf "$file"; fi
    test -e "$new/$needs" || { echo "there is no $needs in $source" >&2; exit 1; } ;;
esac
mv -T "$new" "$place" 2>/dev/null || test -e "$place"
rm -f "$place.part"
"""
"""On each node: a whole copy takes its place at once. needs: what must be in it, empty for an image."""


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
        self._base = f"{jobs.get('scratch') or LOCAL}/resnet-job-{job_id()}-{_key([str(self._snapshot)])[:6]}"
        self._ships_code = jobs.get("ship_code", False)
        """Until it has failed on a node."""
        self._began = False
        self._moved: dict[str, str] = {}
        """By a path on the shared file system its copy's on each node."""

    def bring(self, nodes: Sequence[str], first: bool) -> int:
        """Bring all to these nodes; returns 0, or the exit code of the step that could not bring the environment.

        first: whether they are all of the job's, and none has anything yet.
        """
        told = self._environment
        if told:
            ending = "".join(Path(told["path"]).suffixes[-1:]) if not told["needs"] else ""
            place = f"{self._base}-{told['key']}{ending}"
            if code := self._bring(told["file"], place, told["needs"], nodes, first):
                return code
            self._moved[told["path"]] = place
        if self._ships_code and (told or len(nodes) > 1 or str(self._snapshot) in self._moved):
            place = f"{self._base}-code-{self._snapshot.name}"
            if self._bring_code(place, nodes, first):
                print("the ranks import the program from the shared file system", file=sys.stderr)
                self._ships_code = False
                self._moved.pop(str(self._snapshot), None)
            else:
                self._moved[str(self._snapshot)] = place
        return 0

    def _bring(self, source: str, place: str, needs: str, nodes: Sequence[str], first: bool) -> int:
        self._began = True
        if first:
            # Where that fails each node reads the file for itself.
            subprocess.run(["sbcast", "--force", source, f"{place}.part"], stdin=subprocess.DEVNULL)
        return self._srun(nodes, ["sh", "-c", _PLACE, "sh", source, place, needs])

    def _bring_code(self, place: str, nodes: Sequence[str], first: bool) -> int:
        self._began = True
        if first:
            try:
                with tempfile.TemporaryDirectory(dir=Path(place).parent) as folder:
                    code, packed = f"{folder}/code", f"{folder}/code.tar"
                    shutil.copytree(self._snapshot, code, symlinks=True)
                    # Not in the shared copy, which is to hold what was sent and nothing else.
                    subprocess.run([sys.executable, "-m", "compileall", "-q", code], capture_output=True)
                    with tarfile.open(packed, "w") as file:
                        file.add(code, ".")
                    subprocess.run(["sbcast", "--force", packed, f"{place}.part"], stdin=subprocess.DEVNULL)
            except OSError as error:
                print(f"the program could not be packed: {error}", file=sys.stderr)
        return self._srun(nodes, ["sh", "-c", _PLACE, "sh", str(self._snapshot), place, "train.py"])

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

    def remove(self, nodes: Sequence[str]) -> None:
        """Remove the copies from nodes, at the job's end."""
        if self._began:
            self._srun(nodes, ["timeout", str(REMOVE_SECONDS), "sh", "-c", f"rm -rf '{self._base}'-*"])
