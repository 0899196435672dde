"""How much is asked of Slurm's controller, which serves everybody: by each command, and by a job while it trains."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import status
from tests.slurm_helpers import ON_CLUSTER, Cluster, need_slurm, running_cluster

need_slurm()
ASKED = ("squeue", "sacct", "scontrol", "sinfo", "sbatch", "scancel", "sacctmgr")
WHERE = [*ON_CLUSTER, "slurm.gpus_per_node=1", "slurm.signal_lead=10"]
HELD = "slurm.sbatch.hold=true"


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> Iterator[tuple[Cluster, Path]]:
    """A cluster of which every question is noted, by the user's commands and by jobs, and the folder of the notes."""
    bin, work = (tmp_path_factory.mktemp(name) for name in ("bin", "work"))
    for name in ASKED:
        script = bin / name
        # What only reads a text, or asks daemons of this node, is no question to the controller.
        script.write_text(
            "#!/bin/sh\n"
            f'case "$*" in "show hostnames "*) ;; *) echo "{name} $*" >> {bin}/"${{SLURM_JOB_ID:-user}}.calls";; esac\n'
            f'exec {shutil.which(name)} "$@"\n'
        )
        script.chmod(0o755)
    with running_cluster(tmp_path_factory.mktemp("cluster"), work, accounting=False) as cluster:
        cluster.environment["PATH"] = f"{bin}:{os.environ['PATH']}"
        yield cluster, bin


def questions(bin: Path, cluster: Cluster, *words: object, code: int | None = 0) -> dict[str, int]:
    """By Slurm's command, how often `launch WORDS` runs it."""
    file = bin / "user.calls"
    file.write_text("")
    cluster.launch(*words, code=code)
    return dict(Counter(line.split()[0] for line in file.read_text().splitlines()))


ONE, NONE = {"squeue": 1}, {}
COMMANDS = (
    (["submit", "run.name=first", HELD], {"sbatch": 1}),
    (["submit", "run.name=second", HELD], {"sbatch": 1}),
    (["submit", "run.name=third", HELD], {"sbatch": 1}),
    (["submit", "run.name=dry", "--dry-run"], {"sbatch": 1}),
    (["sweep", "seed=1,2,3", "--name=study", HELD], {"scontrol": 1, "sbatch": 1}),
    (["chain", "study", "--", "eval"], {**ONE, "sbatch": 1}),
    (["chain", "third", "--", "eval"], {**ONE, "sbatch": 1}),
    (["status"], ONE),
    (["status", "first"], ONE),
    (["status", "third"], ONE),
    (["status", "study"], ONE),
    (["status", "first", "second", "--json"], ONE),
    (["logs", "first"], ONE),
    (["clean", "--failed", "--yes"], ONE),
    (["sweep", "seed=1,2,3", "--name=study", HELD], ONE),
    (["cancel", "first", "second", "third", "study"], {**ONE, "scancel": 2}),
    (["retry", "first", "second", HELD], {**ONE, "sbatch": 2}),
    (["submit", "run.name=third", HELD], {**ONE, "sbatch": 1}),
    (["cancel", "first", "second", "--now"], {**ONE, "scancel": 1}),
    (["sweep", "seed=1,2,3", "--name=study", HELD], {**ONE, "scontrol": 1, "sbatch": 1}),
    (["cancel", "study", "third"], {**ONE, "scancel": 1}),
    (["sweep", "seed=4,5", "--name=fair", "--parallel=auto", HELD], {**ONE, "sinfo": 1, "scontrol": 1, "sbatch": 1}),
    (["cancel", "fair"], {**ONE, "scancel": 1}),
    (["status"], ONE),
)
"""What a user types, in this order, and what Slurm is asked by it."""


def test_each_command_asks_for_the_queue_once(counted, tiny):
    cluster, bin = counted
    found = []
    for words, _ in COMMANDS:
        given = [*tiny, *WHERE] if words[0] in ("submit", "sweep") else []
        found.append((words, questions(bin, cluster, words[0], *given, *words[1:])))
    assert found == [*COMMANDS]


def test_a_job_that_trains_asks_no_more_the_longer_it_takes(counted, tiny):
    cluster, bin = counted
    # Half a minute apart, which is many looks at everything that is looked at each second.
    cluster.launch("submit", *tiny, *WHERE, "run.name=long", "epochs=10000")
    cluster.wait_step("long", 1)
    calls = bin / f"{cluster.job('long')}.calls"
    before = calls.read_text().splitlines()
    time.sleep(30)
    assert calls.read_text().splitlines() == before
    assert [line.split()[:3] for line in before] == [["scontrol", "show", "job"]]
    assert questions(bin, cluster, "cancel", "long") == {**ONE, "scancel": 1}
    assert cluster.wait_end("long")["state"] == "stopped"


def test_a_sweep_that_is_nice_takes_what_is_idle(counted, tiny):
    cluster, bin = counted
    cluster.ask("sbatch", "--nodes=1", "--exclusive", "--job-name=blocker", "--wrap=sleep 600")
    cluster.wait("a node is taken", lambda: "RUNNING" in cluster.queue().values())
    words = [*tiny, *WHERE, "seed=range(0,5)", "--name", "idle", "--max-parallel", "auto", "--nice"]
    assert "2 at once for now, by what is idle" in cluster.launch("sweep", *words).stdout
    job = cluster.job("idle/" + sorted(path.parent.name for path in cluster.run_dir("idle").glob("*/status.json"))[0])
    array = job.partition("_")[0]
    told = cluster.ask("scontrol", "show", "job", array).stdout
    assert " Nice=100 " in told
    assert "ArrayTaskThrottle=2" in told
    cluster.ask("scancel", "--name=blocker")
    cluster.wait("the sweep ends", lambda: not cluster.queue())
    asked = [line for file in bin.glob("*.calls") if file.stem != "user" for line in file.read_text().splitlines()]
    limits = [line.rpartition("=")[2] for line in asked if f"update JobId={array} ArrayTaskThrottle" in line]
    assert len(limits) == 5
    assert "4" in limits
    assert {status(run)["state"] for run in cluster.run_dir("idle").glob("*/") if (run / "status.json").exists()} == {
        "finished"
    }
