"""`launch doctor`: whether this machine can send runs to a cluster, a line for each thing it takes."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from launch.arguments import split_words
from slurm.control import said
from slurm.profile import Profile, load_profile, profile_names, user_folder
from slurm.sbatch import SlurmError, Submission, expected_start


class Finding(NamedTuple):
    good: bool | None
    """None: only to know."""
    what: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "launch doctor [cluster=NAME] [slurm.KEY=VALUE ...] [--debug]"
    parser.epilog = "What limits the speed of a recipe on a machine is told by `resnet doctor`, best in a job there."
    parser.add_argument("words", nargs="*", metavar="cluster=NAME", help="the profile to look at, and changes to it")


def run(arguments: argparse.Namespace) -> int:
    words = split_words(arguments.words)
    if words.recipe:
        raise ValueError(f"{words.recipe[0]}: launch doctor takes cluster=NAME and slurm.KEY=VALUE")
    profile = load_profile(words.cluster, words.slurm) if words.cluster else None
    findings = []
    for finding in _findings(profile):
        findings.append(finding)
        mark = {True: "ok  ", False: "BAD ", None: "    "}[finding.good]
        print(f"{mark} {finding.what}" + (f"\n       {finding.fix}" if finding.fix else ""), flush=True)
    return 1 if any(finding.good is False for finding in findings) else 0


def _findings(profile: Profile | None) -> Iterator[Finding]:
    yield Finding(None, f"profiles: {', '.join(profile_names())} (your own belong in {user_folder()})")
    yield from _python()
    yield _gpu()
    root = Path(profile.run_root if profile and profile.run_root else "runs").expanduser()
    yield _writable(root)
    if shutil.which("sbatch") is None:
        fix = "go to a login node of the cluster, or try a small Slurm here: python -m slurm.testcluster up"
        yield Finding(None if profile is None else False, "no sbatch: this machine cannot send jobs", fix)
        return
    yield Finding(True, f"sbatch: {said('sbatch', '--version') or shutil.which('sbatch')}")
    client = profile.client if profile else None
    told = said("sinfo", "-h", "-o", "%R %a %D nodes, limit %l, GPUs %G", client=client)
    partitions = "\n".join(line for line in told.splitlines() if not line.startswith("CLUSTER:"))
    if not partitions:
        yield Finding(
            False,
            "sinfo: the controller does not answer",
            "is SLURM_CONF, or slurm.client, as your site wants it?",
        )
        return
    yield Finding(True, "partitions: " + "; ".join(dict.fromkeys(partitions.splitlines())))
    if profile is not None:
        yield from _profile(profile, partitions)


def _python() -> Iterator[Finding]:
    yield Finding(sys.version_info >= (3, 10), f"python {sys.version.split()[0]} at {sys.executable}")
    needed = ("torch", "torchvision", "torchcodec", "accelerate", "submitit")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    fix = f"pip install {' '.join(missing)}" if missing else ""
    yield Finding(not missing, f"packages: {'missing ' + ', '.join(missing) if missing else 'all there'}", fix)


def _gpu() -> Finding:
    """Of this machine only: a login node needs none."""
    found = said("nvidia-smi", "-L")
    return Finding(None, f"GPUs here: {len(found.splitlines()) if found else 'none'}")


def _writable(root: Path) -> Finding:
    place = root.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
        return Finding(True, f"runs go to {root.absolute()}: {free / 1e9:.0f} GB free (all nodes must see this folder)")
    except OSError as error:
        return Finding(
            False,
            f"runs go to {root.absolute()}: {error.strerror}",
            "choose another with run.root=, or run_root in the profile",
        )


def _profile(profile: Profile, partitions: str) -> Iterator[Finding]:
    names = {line.split()[0] for line in partitions.splitlines()}
    wanted = set(profile.partition.split(",")) if profile.partition else set()
    if missing := wanted - names:
        fix = f"set partition in the profile to one of: {', '.join(sorted(names))}"
        yield Finding(False, f"slurm.partition={','.join(sorted(missing))} is none of them", fix)
    elif wanted:
        yield Finding(True, f"partition {profile.partition}")
    shown = ("show", "associations", f"user={_user()}", "format=account")
    accounts = said("sacctmgr", "-n", "-P", *shown, client=profile.client)
    if profile.account and accounts:
        known = sorted(set(accounts.split()))
        fix = "" if profile.account in known else f"yours are: {', '.join(known)}"
        yield Finding(not fix, f"account {profile.account}", fix)
    if profile.python and "/" in profile.python and not Path(profile.python).exists():
        yield Finding(
            False, f"slurm.python={profile.python} is not there", "set python in the profile, or leave it out"
        )
    if profile.container:
        version = (said("python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')") or "0.0").split(".")
        good = tuple(map(int, version)) >= (3, 9)
        fix = "" if good else "with a container the batch script needs a python3 of 3.9 or newer beside it"
        yield Finding(good, f"the host's python3 is {'.'.join(version)}", fix)
    for qos in profile.each_qos:
        yield _start(profile.model_copy(update={"qos": qos}))


def _start(profile: Profile) -> Finding:
    """When a job as the profile asks for would start."""
    here, where = Path.cwd(), f" (slurm.qos={profile.qos})" if profile.qos else ""
    submission = Submission(profile, "doctor", here / "doctor", here, here, [here], [here])
    try:
        return Finding(True, f"a job as the profile asks for would start at {expected_start(submission)}{where}")
    except SlurmError as error:
        first, _, fix = str(error).partition("\n")
        return Finding(False, f"{first}{where}", fix.strip())


def _user() -> str:
    return os.environ.get("USER") or str(os.getuid())
