"""From a profile and runs to jobs of Slurm, through submitit."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from resnet.rundir.files import write_atomic
from slurm.control import PATIENT_SECONDS, ask, without_other_jobs
from slurm.environment_copy import kind_of, prepare
from slurm.job import do_step, train, words_of
from slurm.profile import Profile, seconds
from slurm.requests import KEEP_ENVIRONMENT
from slurm.room import Room, room
from slurm.share import trial_of
from slurm.slices import BACKSTOP_SECONDS, Slice, Took, slice_of
from slurm.srun import DEFAULT
from slurm.would_start import ask_start


class SlurmError(ValueError):
    """What Slurm refused, in its own words and with what to do."""


@dataclass(frozen=True)
class Submission:
    """Runs that are sent together: one is a job, several are an array of jobs."""

    profile: Profile
    name: str
    """Name of the job in the queue."""
    folder: Path
    """Where submitit's files and the batch script's output go."""
    snapshot: Path
    """The copy of the program that the job runs."""
    cwd: Path
    """What relative paths of the recipes start from."""
    runs: Sequence[Path]
    recipes: Sequence[Path]
    """The resolved recipe of each run."""
    parallel: int = 1
    """Most jobs of an array that run at once."""
    shares: bool = False
    """Whether each job of an array, when it ends, changes that to what is idle by then."""
    supervisor: str = "slurm.batch"
    """Module that the batch script runs."""
    log: Path | None = None
    """The batch script's output, where it is not to be a file of the job's own in `folder`."""
    sweep: Path | None = None
    """Directory of the sweep that the runs are trials of."""
    after: str | None = None
    """What has to come before, as sbatch's --dependency takes it: afterany:12."""
    step: int | None = None
    """The runs' one is made or used by this step of the chain in `folder`; None: it is trained by its recipe."""
    claim: Mapping[str, Any] | None = None
    """Of one of several jobs that wait for the one run: what `slurm.race` needs to know; `profile.client` is whole."""

    slice: Slice | None = None
    """Of slurm.time=auto, where something is known of the runs; None: what the partition allows."""
    sizes: Sequence[int] = ()
    """Numbers of nodes that the runs' one can be trained on, where the profile's are several."""
    micro_batch: int | None = None
    """What it makes its batches of on all of them."""

    @property
    def jobs_file(self) -> Path:
        return self.folder / f"{self.name}.jobs.json"


def submit(submission: Submission) -> list[str]:
    """Send the runs; returns the id of each one's job.

    Raises SlurmError, with nothing left behind, where Slurm refuses.
    """
    from submitit.core.utils import FailedJobError

    submission = with_slice(submission)
    submission.folder.mkdir(parents=True, exist_ok=True)
    before = set(submission.folder.iterdir())
    try:
        executor = _executor(submission)
        write_atomic(submission.jobs_file, json.dumps(_jobs(submission), indent=1))
        ranks, cwd = submission.profile.ranks, str(submission.cwd)
        # submitit prints sbatch's words beside raising them.
        client = submission.profile.client
        with without_other_jobs(client), contextlib.redirect_stderr(io.StringIO()), executor.batch():
            if submission.step:
                jobs = [executor.submit(do_step, str(submission.folder), submission.step, ranks)]
            else:
                jobs = [
                    executor.submit(train, words_of(recipe, run_dir), cwd, ranks)
                    for recipe, run_dir in zip(submission.recipes, submission.runs, strict=True)
                ]
        return [job.job_id for job in jobs]
    except BaseException as error:
        for file in set(submission.folder.iterdir()) - before:
            with contextlib.suppress(OSError):
                file.unlink()
        if isinstance(error, FailedJobError):
            raise SlurmError(refusal(str(error), submission.profile)) from error
        raise


def write_held(submission: Submission, held: Mapping[str, Any], is_here: bool, debug: bool = False) -> Path:
    """Write what trains the one run of a submission in an allocation that a user holds; returns the shell script.

    held: its nodes and names, for `slurm.held`. is_here: whether that runs on this machine, and not on a node.
    debug: whether mistakes of the ranks are to be shown with their traceback.
    """
    [run_dir], [recipe], profile = submission.runs, submission.recipes, submission.profile
    content = _jobs(submission)
    # What its holder asked for may be fewer cores than ranks.
    content["srun"] += ["--overcommit", *([f"--gres=gpu:{profile.gpus_per_node}"] if profile.gpus_per_node else [])]
    content["node_cores"] = held["node_cores"]
    write_atomic(submission.jobs_file, json.dumps({**content, "held": held}, indent=1))
    rank = shlex.join(
        [
            "slurm.job",
            str(submission.cwd),
            str(profile.ranks),
            *words_of(recipe, run_dir),
            *(["--debug"] if debug else []),
        ]
    )
    lines = ["#!/bin/bash", *_setup(submission, is_here), f"{_supervised(submission)} -u -m {rank}"]
    file = submission.folder / f"{submission.name}.held.sh"
    write_atomic(file, "\n".join(lines) + "\n")
    return file


def script(submission: Submission) -> str:
    """The batch script that `submit` would send."""
    executor = _executor(with_slice(submission))
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def expected_start(submission: Submission) -> str:
    """What `sbatch --test-only` says of when the job would start. Raises SlurmError where Slurm would refuse it."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script(submission))
        file.flush()
        try:
            # A controller whom many ask takes its time for this.
            answer = ask_start(file.name, (), submission.profile.client, PATIENT_SECONDS)
        except ValueError as error:
            raise SlurmError(f"when it would start is not known. {error}") from error
    if answer.refused:
        raise SlurmError(refusal(answer.said, submission.profile))
    return f"{datetime.fromtimestamp(answer.start):%Y-%m-%d %H:%M:%S}" if answer.start else answer.said


def check_slurm() -> None:
    """Raises SlurmError where this machine cannot send jobs."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise SlurmError(
            "no sbatch on this machine: send from a login node of the cluster, train here with `launch local`, or try "
            "it out on a small Slurm of your own: python -m slurm.testcluster up"
        )


_HINTS = {
    "invalid partition": "slurm.partition={partition}: `sinfo -s` lists the partitions",
    "account": "slurm.account={account}: `sacctmgr show associations user=$USER` lists yours",
    "invalid qos": "slurm.qos={qos}: `sacctmgr show qos` lists them",
    "limit": "`sacctmgr show associations user=$USER` and `sinfo -o '%P %l'` tell the limits; slurm.time={time}",
    "node configuration": "no node offers slurm.gpus_per_node={gpus_per_node}, slurm.cpus_per_rank={cpus_per_rank}, "
    "slurm.gpu_type={gpu_type}, slurm.mem={mem}, slurm.constraint={constraint}: `sinfo -o '%P %D %c %m %G %f'`",
    "more processors": "no partition has slurm.nodes={nodes} of that size: `sinfo -s`",
    "generic resource": "slurm.gpu_type={gpu_type}, slurm.gpu_request={gpu_request}: `sinfo -o %G` names the GPUs",
    "unable to contact": "the controller does not answer: `sinfo`, and whether SLURM_CONF is set where it must be",
}
"""By what Slurm says: what to look at."""


def refusal(said: str, profile: Profile) -> str:
    """Slurm's words, with what to look at."""
    said = " ".join(said.replace("sbatch: error:", "").replace("sbatch:", "").split())
    hints = [hint for sign, hint in _HINTS.items() if sign in said.lower()]
    if profile.is_sliced and "limit" in said.lower():
        # Nobody but the site knows how long those of a QOS or an account may be.
        hints.insert(0, "slurm.time={time} asks for what the partition allows: for less, as slurm.time=auto:12:00:00")
    values = profile.model_dump()
    said = re.sub(r"^(?:error|allocation failure): ", "", said)
    return f"Slurm refused the job: {said}" + "".join(f"\n  {hint.format(**values)}" for hint in hints[:1])


def _python(profile: Profile) -> str:
    """What starts the ranks' Python, as the shell takes it."""
    if profile.container:
        return f"{profile.container} {profile.python or 'python3'}"
    if environment := profile.stage_environment:
        ours = sys.executable if sys.executable.startswith(f"{environment.rstrip('/')}/") else None
        return profile.python or shlex.quote(ours or f"{environment.rstrip('/')}/bin/python")
    return profile.python or shlex.quote(sys.executable)


def batch_python_is_plain(profile: Profile) -> bool:
    """Whether the batch script has but the host's Python, since that of the ranks is first to be unpacked."""
    archived = profile.stage_environment and kind_of(profile.stage_environment) == "archive"
    return bool(profile.container or archived)


def _environment(submission: Submission) -> dict[str, str] | None:
    """What the batch script needs to know of the environment that it brings to the nodes."""
    profile = submission.profile
    if not (path := profile.stage_environment):
        return None
    [python] = shlex.split(_python(profile)) if kind_of(path) != "image" else [""]
    return prepare(path.rstrip("/"), python.removeprefix(path.rstrip("/")).lstrip("/"), submission.snapshot.parent)


def _jobs(submission: Submission) -> dict[str, Any]:
    """What the batch script needs to know."""
    profile = submission.profile
    srun = [*DEFAULT, "--unbuffered", "--open-mode=append", f"--cpus-per-task={profile.cpus_per_rank}"]
    return {
        "runs": [str(run) for run in submission.runs],
        "srun": [*srun, *profile.srun_args],
        "stage": profile.stage,
        "check": profile.check,
        "cores": profile.cpus_per_rank,
        "folder": str(submission.folder),
        "nodes": profile.most_nodes,
        "least_nodes": profile.least_nodes,
        "sizes": list(submission.sizes),
        "micro_batch": submission.micro_batch,
        "exclude": profile.exclude,
        "local_ranks": profile.local_ranks,
        "node_cores": profile.cpus_per_rank * profile.local_ranks,
        "master": profile.environment.get("MASTER_ADDR"),
        "max_requeues": profile.max_requeues,
        "slice": {"limit": submission.slice.limit, "least_lead": profile.least_lead} if submission.slice else None,
        "grow": profile.grow,
        "signal_lead": profile.signal_lead,
        "submitted": time.time(),
        "share": trial_of(profile) if submission.shares else None,
        "sweep": str(submission.sweep) if submission.sweep else None,
        "chain": str(submission.folder) if submission.step else None,
        "step": submission.step,
        "python": _python(profile),
        "rank_logs": profile.rank_logs,
        "scratch": profile.scratch,
        "environment": _environment(submission),
        "claim": submission.claim,
        # What of a node's disk a container sees is its own affair.
        "ship_code": not (profile.container or any("--container" in words for words in profile.srun_args)),
    }


def _supervised(submission: Submission) -> str:
    """The command of the script, up to what the ranks' Python runs."""
    python = _python(submission.profile)
    host_python = "python3" if batch_python_is_plain(submission.profile) else python
    # The ranks are started by the supervisor, not by submitit, and the script's own process is that.
    return f"exec {host_python} -m {submission.supervisor} {shlex.quote(str(submission.jobs_file))} {python}"


def _executor(submission: Submission) -> Any:
    from submitit import SlurmExecutor

    profile = submission.profile
    executor = SlurmExecutor(submission.folder, python=_supervised(submission))
    executor.update_parameters(
        job_name=submission.name,
        time=submission.slice.most if submission.slice else math.ceil(seconds(profile.time) / 60),
        **_shape(profile),
        signal_delay_s=BACKSTOP_SECONDS if submission.slice else profile.signal_lead,
        array_parallelism=submission.parallel,
        setup=_setup(submission),
        additional_parameters=_options(submission),
        stderr_to_stdout=True,
        use_srun=False,
        wckey=None,
    )
    return executor


def _shape(profile: Profile) -> dict[str, int]:
    """The nodes and ranks of a job, in submitit's words."""
    if profile.is_range:
        return {"nodes": profile.most_nodes}
    ranks = {"ntasks_per_node": profile.local_ranks, "cpus_per_task": profile.cpus_per_rank}
    return {"nodes": profile.most_nodes + profile.spare_nodes, **ranks}


def _options(submission: Submission) -> dict[str, Any]:
    """The options of sbatch, by their long names, that submitit has no word of its own for."""
    profile = submission.profile
    options: dict[str, Any] = {
        name: getattr(profile, name)
        for name in ("partition", "account", "qos", "constraint", "reservation", "exclude", "mem")
    }
    if profile.gpus_per_node:
        wanted = f"{profile.gpu_type}:{profile.gpus_per_node}" if profile.gpu_type else str(profile.gpus_per_node)
        options[profile.gpu_request] = f"gpu:{wanted}" if profile.gpu_request == "gres" else wanted
    options |= {"exclusive": profile.exclusive or None, "requeue": True}
    options |= {name: value for name, value in profile.sbatch.items() if value is not False}
    if submission.slice:
        options["time-min"] = submission.slice.least
    if profile.is_range:
        # In the place of submitit's, which is a number. Of ranks nothing is said: with --ntasks-per-node Slurm (22.05)
        # gives no more nodes than the least of them have ranks, and waits for as many as before after a requeue.
        options |= {"nodes": profile.nodes, "mincpus": profile.cpus_per_rank * profile.local_ranks}
    if submission.after:
        # A job that waits for one that has failed would wait for ever.
        options |= {"dependency": submission.after, "kill-on-invalid-dep": "yes"}
    if submission.log:
        options["output"] = str(submission.log)
    return {name: value for name, value in options.items() if value is not None}


_OWN_CLUSTER = ("unset SLURM_CLUSTERS", '[ -e "$SLURM_CONF" ] || unset SLURM_CONF')
"""Shell lines of a job whose cluster was chosen by its client's environment, which sbatch has passed on: a node reaches
its own cluster without, and need not have the file that a login node has."""


def partition_of(profile: Profile) -> Room:
    """What the profile's partition, and slurm.time=auto:LIMIT, allow, and what it has.

    Raises SlurmError where Slurm does not answer.
    """
    try:
        found = room(profile.partition, profile.client)
        return found._replace(limit=min(filter(None, (found.limit, profile.longest_slice)), default=None))
    except ValueError as error:
        raise SlurmError(f"slurm.time=auto asks for the partition's limit. {error}; give slurm.time") from error


def with_slice(submission: Submission) -> Submission:
    """With the slice that jobs ask for of which nothing is known."""
    profile = submission.profile
    if not profile.is_sliced or submission.slice:
        return submission
    found = slice_of(partition_of(profile).limit, None, Took(), profile.signal_lead)
    return replace(submission, slice=found)


def _setup(submission: Submission, is_here: bool = False) -> list[str]:
    """Shell lines before the command: the site's own, then where the code is.

    is_here: whether they run on this machine, which reaches the cluster by the client's environment.
    """
    profile, snapshot = submission.profile, shlex.quote(str(submission.snapshot))
    environment = dict(profile.environment)
    if profile.interface:
        environment = {"NCCL_SOCKET_IFNAME": profile.interface, "GLOO_SOCKET_IFNAME": profile.interface} | environment
    if profile.scratch:
        environment["SCRATCH"] = profile.scratch
    return [
        *(KEEP_ENVIRONMENT if submission.claim else ()),
        *(_OWN_CLUSTER if profile.client and not is_here else ()),
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
        *(line for command in profile.setup for line in (command, _unless(f"slurm.setup failed: {command}"))),
        f"cd {snapshot} || exit 1",
        f'export PYTHONPATH={snapshot}"${{PYTHONPATH:+:$PYTHONPATH}}"',
    ]


def _unless(message: str) -> str:
    """A shell line that ends the script where the line before it failed."""
    return f"[ $? = 0 ] || {{ echo {shlex.quote(message)} >&2; exit 1; }}"


def max_array_size(client: Mapping[str, str]) -> int:
    """How many jobs an array of a cluster may have. Raises ValueError where Slurm does not answer."""
    told = ask(["scontrol", "show", "config"], client=client)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", told, re.MULTILINE)
    return int(found[1]) if found else 1000
