"""Runs that wait in the queue of a real Slurm, each for another reason."""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

from recipes.load import dump, load
from resnet.rundir.status import write_status
from tests.launch.planted import Place, fault

BOTH = ("slurm.nodes=2", "slurm.exclusive=true")
"""Of a run that needs both nodes for itself."""
HELD = ("slurm.partition=high", "slurm.sbatch.hold=true")
"""Of one that is sent before what keeps it from starting."""


def _busy(place: Place) -> str:
    """Let a job of somebody's use both nodes; returns its id."""
    running = [job for job, state in place.cluster.queue().items() if state == "RUNNING"]
    if running:
        return running[0]
    words = ["-N2", "--exclusive", "--time=30", "--output=/dev/null", "--wrap", "exec sleep 900"]
    job = place.cluster.ask("sbatch", "--parsable", *words).stdout.strip()
    place.cluster.wait("the nodes are busy", lambda: place.cluster.queue().get(job) == "RUNNING")
    return job


def _waits(place: Place, name: str, reason: str, *change: str, words: tuple[str, ...] = BOTH) -> Path:
    """A run that waits for this reason. change: what scontrol is told then, {job} for its job's id."""
    _busy(place)
    run, job = place.send(name, *words), place.cluster.job(name)
    if change:
        place.cluster.ask("scontrol", *(word.format(job=job) for word in change))
    shown = ["squeue", "--noheader", "--format=%r", f"--jobs={job}"]
    place.cluster.wait(reason, lambda: reason in place.cluster.ask(*shown).stdout)
    return run


def _tell(place: Place, *words: str, undo: tuple[str, ...] = ()) -> None:
    """Tell Slurm to change, and afterwards to change back."""
    place.cluster.ask(*words)
    if undo:
        place.afterwards(lambda: place.cluster.ask(*undo))


@fault("waiting", "resources")
def nodes_in_use(place: Place) -> Path:
    """Other jobs use the nodes, and it is next."""
    return _waits(place, "next", "Resources")


@fault("waiting", "priority")
def others_ahead(place: Place) -> Path:
    """A job of higher priority is ahead in the queue."""
    _busy(place)
    place.send("ahead", *BOTH)
    return _waits(place, "behind", "Priority")


@fault("waiting", "held_user")
def held_by_its_user(place: Place) -> Path:
    """Its user holds it, and has forgotten that."""
    return _waits(place, "held", "JobHeldUser", "uhold", "{job}")


@fault("waiting", "held_admin")
def held_by_an_administrator(place: Place) -> Path:
    """An administrator holds it."""
    return _waits(place, "held-too", "JobHeldAdmin", "hold", "{job}")


@fault("waiting", "begin_time")
def not_before_tomorrow(place: Place) -> Path:
    """It may not begin before a set time."""
    return _waits(place, "later", "BeginTime", "update", "JobId={job}", "StartTime=now+3600")


@fault("waiting", "dependency")
def follows_another_job(place: Place) -> Path:
    """It waits for another job to end well."""
    other = _busy(place)
    return _waits(place, "after", "Dependency", "update", "JobId={job}", f"Dependency=afterok:{other}")


@fault("waiting", "never")
def follows_a_job_that_failed(place: Place) -> Path:
    """The job that it follows was cancelled, so that it never starts."""
    other = place.cluster.ask("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap", "true").stdout.strip()
    place.cluster.ask("scancel", other)
    change = ("update", "JobId={job}", f"Dependency=afterok:{other}")
    return _waits(place, "never", "DependencyNeverSatisfied", *change)


@fault("waiting", "partition_down")
def partition_that_is_closed(place: Place) -> Path:
    """Its partition was closed for maintenance."""
    name = "PartitionName=high"
    _tell(place, "scontrol", "update", name, "State=DOWN", undo=("scontrol", "update", name, "State=UP"))
    return _waits(place, "closed", "PartitionDown", "release", "{job}", words=HELD)


@fault("waiting", "partition_time")
def longer_than_its_partition_allows(place: Place) -> Path:
    """The partition's limit on time was lowered below the run's after it was sent."""
    run, name = place.send("too-long", *HELD), "PartitionName=high"
    undo = ("scontrol", "update", name, "MaxTime=UNLIMITED")
    _tell(place, "scontrol", "update", name, "MaxTime=2", undo=undo)
    job = place.cluster.job("too-long")
    place.cluster.ask("scontrol", "release", job)
    shown = ["squeue", "--noheader", "--format=%r", f"--jobs={job}"]
    place.cluster.wait("PartitionTimeLimit", lambda: "PartitionTimeLimit" in place.cluster.ask(*shown).stdout)
    return run


@fault("waiting", "reservation")
def reservation_that_has_not_begun(place: Place) -> Path:
    """It asks for a reservation that begins in two hours."""
    words = ("ReservationName=soon", "StartTime=now+7200", "Duration=60", "Accounts=research", "Nodes=ALL")
    _tell(place, "scontrol", "create", "reservation", *words)
    return _waits(place, "reserved", "Reservation", words=("slurm.reservation=soon",))


@fault("waiting", "account_limit")
def account_that_may_run_no_more(place: Place) -> Path:
    """Its account has as many running jobs as it may have."""
    change = ("sacctmgr", "--immediate", "modify", "account", "research", "set")
    _tell(place, *change, "maxjobs=1", undo=(*change, "maxjobs=-1"))
    return _waits(place, "limited", "AssocMaxJobsLimit")


@fault("waiting", "no_answer")
def controller_that_does_not_answer(place: Place) -> Path:
    """Slurm's controller does not answer."""
    run = place.send("unknown", *HELD)
    conf = (place.cluster.folder / "slurm.conf").read_text().split("\n")
    lines = ["SlurmctldPort=9" if line.startswith("SlurmctldPort=") else line for line in conf]
    (place.folder / "silent.conf").write_text("\n".join([*lines, "MessageTimeout=2"]))
    place.variables["SLURM_CONF"] = str(place.folder / "silent.conf")
    place.afterwards(place.variables.clear)
    return run


@fault("waiting", "never_sent")
def launch_that_was_killed(place: Place) -> Path:
    """`launch submit` was killed before Slurm had the job."""
    run, before = place.run_dir("unsent"), time.time() - 3600
    run.mkdir(parents=True)
    with mock.patch("time.time", return_value=before):
        (run / "recipe.yaml").write_text(dump(load(["recipe=quickstart", f"run.root={run.parent}"]).recipe))
        write_status(run, name="unsent", state="queued", reason=None, failure=None)
    return run
