"""Two Slurms side by side, which call themselves the same and number their jobs alike, and runs that wait on both."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from resnet.rundir.files import read_lines
from slurm import testcluster
from slurm.claim import newest_claim
from tests.helpers import PROGRAM, status
from tests.slurm_helpers import Cluster, running_cluster
from tests.stand_in import MADE, STEPS

NAMES = ("one", "two")
SUBMIT = ("submit", "recipe=quickstart", "device=cpu", "wandb.mode=disabled")


class Two:
    """Two clusters, of a node each, and a folder that runs are sent from."""

    def __init__(self, clusters: Sequence[Cluster], work: Path) -> None:
        self.work = work
        self.clusters: dict[str, Cluster] = dict(zip(NAMES, clusters, strict=True))
        python = work / "python"
        batch, ranks = f'exec {sys.executable} "$@"', f"exec {sys.executable} -m tests.stand_in"
        paths = f'export PYTHONPATH="$PYTHONPATH:{PROGRAM}"'
        python.write_text(f'#!/bin/sh\n{paths}\ncase "$*" in *slurm.batch*) {batch};; *) {ranks};; esac\n')
        python.chmod(0o755)
        for name, cluster in self.clusters.items():
            (work / f"{name}.yaml").write_text(
                f"partition: low\ngpus_per_node: 0\ncpus_per_rank: 1\ntime: 10\nsignal_lead: 30\n"
                f"python: {python}\nrun_root: {work}/runs\nclient: {{SLURM_CONF: {cluster.folder}/slurm.conf}}\n"
            )

    def launch(self, *words: object, **keys) -> subprocess.CompletedProcess[str]:
        # A shell that knows neither cluster: what reaches them are the profiles.
        cluster = Cluster(Path("/nowhere"), self.work)
        return cluster.launch(*words, **keys)

    def submit(self, name: str, *words: object) -> Path:
        self.launch(*SUBMIT, "cluster=./one.yaml,./two.yaml", f"run.name={name}", *words)
        return self.work / "runs" / name

    def ask(self, name: str, *command: object, code: int | None = 0) -> str:
        return self.clusters[name].ask(*command, code=code).stdout.strip()

    def block(self, *names: str) -> None:
        """Fill clusters with a job of somebody else's."""
        for name in names or NAMES:
            self.ask(name, "sbatch", "--job-name=block", "--exclusive", "--output=/dev/null", "--wrap=sleep 900")
            self.clusters[name].wait("the block", lambda name=name: "R" in self.states(name, "block"), 60)

    def free(self, *names: str) -> None:
        for name in names or NAMES:
            self.ask(name, "scancel", "--name=block")

    def states(self, name: str, job: str) -> list[str]:
        """Of jobs of a name that the cluster knows, in Slurm's short words."""
        return self.ask(name, "squeue", "-h", "-t", "all", "-n", job, "-o", "%t", code=None).split()

    def is_quiet(self, job: str) -> bool:
        """Whether no cluster has a job of the name in its queue any more."""
        return all(state not in ("PD", "R", "CG", "CF") for name in NAMES for state in self.states(name, job))

    def wait(self, what: str, ready, seconds: float = 90) -> None:
        self.clusters[NAMES[0]].wait(what, ready, seconds)

    def wait_end(self, run: Path, seconds: float = 120) -> dict:
        self.wait(f"{run.name} ends", lambda: self.is_quiet(run.name), seconds)
        return status(run)

    @contextlib.contextmanager
    def stopped(self, *names: str) -> Iterator[None]:
        """Let the controllers of clusters not answer."""
        pids = [pid for name in names for pid in testcluster.status(self.clusters[name].folder).daemons["slurmctld"]]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


def batch_scripts(run: Path) -> dict[int, str]:
    """Process ids of the batch scripts of a run, with their requests."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            files = [word for word in words if word.endswith(".jobs.json") and word.startswith(f"{run}/")]
            if files and "slurm.batch" in words:
                found[int(place.name)] = Path(files[0]).parent.name
    return found


def holder(run: Path) -> str | None:
    """The request that has the run."""
    claim = newest_claim(run)
    return claim.content["request"] if claim and claim.holder else None


def verdict(run: Path) -> dict:
    """What came of a run: whether all its steps were made, how many twice, and whether two jobs ever took turns."""
    made = read_lines(run / MADE)
    steps, jobs = [row["step"] for row in made], [(row["cluster"], row["job_id"], row["attempt"]) for row in made]
    changes = [job for before, job in zip([None, *jobs], jobs, strict=False) if job != before]
    return {
        "state": status(run).get("state"),
        "all": set(steps) == set(range(1, STEPS + 1)),
        "twice": len(steps) - len(set(steps)),
        "turns": len(changes) - len(set(changes)),
        "by": [f"{cluster} {job_id}" for cluster, job_id, _ in dict.fromkeys(jobs)],
    }


@contextlib.contextmanager
def two_clusters(folder: Path) -> Iterator[Two]:
    work = folder / "work"
    work.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        clusters = [
            stack.enter_context(running_cluster(folder / name, work, nodes=1, accounting=False)) for name in NAMES
        ]
        yield Two(clusters, work)
