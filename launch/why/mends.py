"""Commands that mend a run, as a user types them."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Iterable

from launch.runs.held import NAME
from launch.runs.job_record import Job
from launch.why.facts import Facts
from resnet.rundir.files import to_json
from resnet.rundir.find import ROOT, is_sweep
from slurm.allocation import APPLY
from slurm.profile import AUTO, Profile, load_profile, seconds


def retry(facts: Facts, *changes: str) -> str:
    """Continue the run from its newest checkpoint. changes: `slurm.KEY=VALUE`, and options, for a run that was sent.

    Of one that was trained in an allocation of its user's, in whichever is held now, with those that count there.
    """
    if facts.job and facts.job.held:
        changes = (*facts.job.retry_words, *dict.fromkeys(filter(None, map(_in_allocation, changes))))
    return " ".join(["launch retry", facts.typed, *(changes if facts.job else ())])


def _in_allocation(change: str) -> str | None:
    """What does there what a change would do where a job is sent; None where nothing does."""
    if change == "--exclude-bad-nodes" or change.startswith("slurm.exclude="):
        # It leaves out those that are found bad.
        return "slurm.check=true"
    key = shlex.split(change)[0].removeprefix("slurm.").partition("=")[0]
    return change if key in APPLY or change.startswith("--") else None


def elsewhere(facts: Facts) -> str:
    """Continue it on other nodes, where it is known which it failed on."""
    if any(attempt.get("node") for attempt in facts.attempts):
        return retry(facts, "--exclude-bad-nodes")
    first = facts.first_record or {}
    nodes = [node for attempt in facts.attempts[-1:] for node in attempt.get("nodes") or []]
    # Of a single node another may do as badly, but it is the one that is known.
    host = first.get("host") if first.get("host") in nodes else nodes[0] if len(nodes) == 1 else None
    return retry(facts, excluding(facts, host)) if host else retry(facts)


def excluding(facts: Facts, host: str) -> str:
    """The change that leaves a node out, beside those that are left out already."""
    before = [*filter(None, str((facts.job.profile.get("exclude") if facts.job else None) or "").split(","))]
    return f"slurm.exclude={','.join([*before, *([] if host in before else [host])])}"


def on_node(facts: Facts, *words: str) -> str:
    """Run a command on the node of the rank that failed first, of the job, or of its partition."""
    assert facts.job
    if facts.state == "running":
        return shlex.join(["srun", f"--jobid={facts.row['job_id']}", "--overlap", "--nodes=1", "--ntasks=1", *words])
    host, partition = (facts.first_record or {}).get("host"), facts.job.profile.get("partition")
    where = [f"--nodelist={host}"] if host else [f"--partition={partition}"] if partition else []
    return shlex.join(["srun", *where, *words])


def with_changes(facts: Facts, *changes: str, ranks: int | None = None) -> str:
    """Continue the run with changes to its recipe or, as `slurm.KEY=VALUE`, to where it trains.

    One that trains or waits is ended first, with a checkpoint; of one that is finished the recipe is trained anew.
    ranks: of this machine, for a run that was not sent to Slurm; None: as many as before.
    """
    if facts.state == "finished":
        return anew(facts, *changes, ranks=ranks)
    first = ""
    if facts.state in ("running", "queued"):
        first = f"launch cancel {facts.typed} && launch status {facts.typed} --watch && "
    if facts.job and all(change.startswith("slurm.") for change in changes):
        return first + retry(facts, *map(shlex.quote, changes))
    return first + changed(facts, *changes, ranks=ranks)


def changed(facts: Facts, *changes: str, ranks: int | None = None) -> str:
    """Continue the run with changes to its recipe that a run may take."""
    if is_sweep(facts.run_dir.parent):
        return retry(facts)
    return _command(facts, [*changes, *_place(facts, facts.run_dir.name)], ranks)


def anew(facts: Facts, *changes: str, ranks: int | None = None) -> str:
    """Begin another run with changes to the recipe that a run cannot take while it goes on."""
    return _command(facts, [*changes, *_place(facts, f"{facts.run_dir.name}-2")], ranks)


def longer(facts: Facts) -> str:
    """Of `slurm.time`: twice what it was; of slices, which grow by themselves, those without a limit of the user's."""
    limit = str((facts.job.profile.get("time") if facts.job else None) or Profile().time)
    if limit.startswith(AUTO):
        return f"slurm.time={AUTO if limit != AUTO else Profile().time}"
    minutes = max(2, 2 * math.ceil(seconds(limit) / 60))
    return f"slurm.time={minutes // 60}:{minutes % 60:02}:00"


def _place(facts: Facts, name: str) -> list[str]:
    root = str(facts.run_dir.parent)
    return [*([] if root == ROOT else [f"run.root={root}"]), f"run.name={name}"]


def _command(facts: Facts, changes: Iterable[str], ranks: int | None = None) -> str:
    changes = list(changes)
    keys = {word.partition("=")[0] for word in changes} | {"run.root", "run.name", "resume"}
    if facts.job is None:
        return shlex.join(["launch", "local", *_ranks(facts, ranks), f"recipe={facts.run_dir}", *changes])
    kept = [word for word in _words_sent(facts) if word.partition("=")[0] not in keys]
    return shlex.join(["launch", "submit", *facts.job.retry_words, *kept, *changes])


def _words_sent(facts: Facts) -> list[str]:
    """The words that the run was sent with, where its record has them."""
    assert facts.job
    words = shlex.split(facts.job.command)
    if words[:2] == ["launch", "submit"] and any(word.startswith("recipe=") for word in words):
        return [word for word in words[2:] if "=" in word and not word.startswith("-")]
    if facts.job.held:
        cluster = [] if facts.job.cluster == NAME else [f"cluster={facts.job.cluster}"]
        return [f"recipe={facts.run_dir}", *cluster, *(word for word in words if word.startswith("slurm."))]
    return [f"recipe={facts.run_dir}", f"cluster={facts.job.cluster}", *_changes_of_profile(facts.job)]


def _changes_of_profile(job: Job) -> list[str]:
    """Where it trains otherwise than its cluster's profile says, as of a run that was sent again with changes."""
    with contextlib.suppress(ValueError, OSError):
        usual = load_profile(job.cluster, []).model_dump(mode="json")
        told = {key: value for key, value in job.known_profile.items() if value != usual.get(key)}
        return [f"slurm.{key}={value if isinstance(value, str) else to_json(value)}" for key, value in told.items()]
    return []


def doctor(facts: Facts) -> str:
    """Look at the cluster and its profile, where the run was trained by one."""
    if facts.job is None or (facts.job.held and facts.job.cluster == NAME):
        return retry(facts)
    return f"launch doctor cluster={shlex.quote(facts.job.cluster)}"


def check_data(facts: Facts) -> str:
    """Look at the run's images."""
    return shlex.join(["resnet", "check-data", f"recipe={facts.run_dir}"])


def on_cpu(facts: Facts) -> bool:
    """Whether the run trains on CPUs, as far as is known."""
    return all("cpu" in str(device).lower() for device in facts.provenance.get("devices") or ["cpu"])


def _ranks(facts: Facts, ranks: int | None) -> list[str]:
    """The option for so many, or as many as before."""
    ranks = ranks or facts.provenance.get("world_size") or 1
    return [] if ranks == 1 else ["--cpu-ranks" if on_cpu(facts) else "--gpus", str(ranks)]
