"""What a job brings to its nodes before it trains on them, and what it leaves there. Standard library, Python 3.9."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resnet.process.rank_logs import node_folder
from resnet.rundir.status import status_or_nothing
from slurm.ends import End, end_of_staging
from slurm.environment_copy import REMOVE_SECONDS, Copies, removal
from slurm.node_check import check_nodes
from slurm.rank_output import bring, kept

if TYPE_CHECKING:
    from slurm.batch import Job


def stage_command(jobs: Mapping[str, Any], nodes: int) -> list[str]:
    """What srun is to do so that the data is brought to every node: its options and the command."""
    return [*node_task(jobs, nodes), "bash", "-c", "\n".join(["set -e", *jobs["stage"]])]


def node_task(jobs: Mapping[str, Any], nodes: int) -> list[str]:
    """What srun is told to start one task on each of so many nodes."""
    return ["--ntasks-per-node=1", f"--ntasks={nodes}", f"--cpus-per-task={jobs['node_cores']}"]


class OnNodes:
    """What of a job lies on its nodes."""

    def __init__(self, job: Job) -> None:
        self._job, self._jobs = job, job.jobs
        self._prepared: set[str] = set()
        self.copies = Copies(job.jobs, self._step_on)

    def prepare(self) -> End | None:
        """Make the nodes ready that are new to the job; None where all is well.

        A preparation takes them and returns an End where it failed: of a bad node the class `node` leaves it out.
        """
        new = [node for node in self._job.nodes.in_use if node not in self._prepared]
        for preparation in (self._bring_environment, self._check, self._stage):
            if new and (end := preparation(new)):
                return end
        self._prepared.update(new)
        return None

    def leave(self) -> None:
        """Remove what the job has brought to its nodes, unless it goes on and has just done so."""
        if status_or_nothing(self._job.run_dir).get("state") != "queued":
            self._remove()

    def leave_for_others(self) -> None:
        """Do so before the job goes back to the queue, where there is time: it may get other nodes."""
        left = self._job.clock.left()
        if not self._job.told and (left is None or left > 2 * REMOVE_SECONDS):
            self._remove()

    def _remove(self) -> None:
        job, folders = self._job, self.copies.folders
        if job.told and kept(self._jobs) != "all":
            # No time was left to look after them before.
            folders = [*folders, str(node_folder(job.run_dir, job.number))]
        if not folders:
            return
        nodes = job.nodes.kept
        where = [*job.nodes.only(nodes), *node_task(self._jobs, len(nodes))]
        # Not as a step that is attended to: one that is told to end would be told again and again.
        command = ["srun", "--overlap", "--kill-on-bad-exit=0", *where, *removal(folders)]
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, timeout=2 * REMOVE_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"copies stay on the nodes: {error}", file=sys.stderr)

    def bring_logs(self, nodes: Sequence[str]) -> threading.Thread:
        """After an attempt that failed: bring the logs of the ranks that were lost from these nodes.

        Returns the thread that does so, for which a restart does not wait.
        """
        job = self._job
        where = [*job.nodes.only(nodes), *node_task(self._jobs, len(nodes))]
        told = (self._jobs, job.run_dir, job.number, job.logs, where, job.srun.lines)
        thread = threading.Thread(target=bring, args=told)
        thread.start()
        return thread

    def _check(self, nodes: Sequence[str]) -> End | None:
        """Look at these nodes before they are used; the bad ones are left out, and the first of them is told."""
        job = self._job
        if not self._jobs.get("check"):
            return None

        def step(words: Sequence[str], environment: Mapping[str, str]) -> int:
            words = self.copies.words([*self.copies.options(), *words])
            return job.run_step(words, {**environment, **self.copies.variables()})

        found = check_nodes(self._jobs, job.nodes, nodes, job.run_dir, job.logs, step)
        job.record(check=found._asdict())
        if why := job.must_end():
            return End("stopped", why)
        # The first is left out for the end that tells of it.
        for node in list(found.bad)[1:]:
            job.leave_out(node, found.bad[node])
        return found.end

    def _stage(self, nodes: Sequence[str]) -> End | None:
        """Bring the data to these nodes; None where all is well."""
        job = self._job
        if not self._jobs["stage"]:
            return None
        command = stage_command(self._jobs, len(nodes))
        code = job.run_step([*job.nodes.only(nodes), f"--output={job.logs}/stage-%t.log", *command], {})
        return self._end_of_staging(code, nodes)

    def _bring_environment(self, nodes: Sequence[str]) -> End | None:
        """Bring the program and its environment to these nodes' own disks; None where all is well."""
        every = [] if self._job.cause else self._job.nodes.names
        return self._end_of_staging(self.copies.bring(nodes, every), nodes)

    def _end_of_staging(self, code: int, nodes: Sequence[str]) -> End | None:
        if why := self._job.must_end():
            return End("stopped", why)
        return end_of_staging(code, self._job.srun.lines, nodes, self._job.logs) if code else None

    def _step_on(self, nodes: Sequence[str], command: Sequence[str]) -> int:
        """Run a command once on each of these nodes."""
        job = self._job
        options = [f"--output={job.logs}/stage-%t.log", "--open-mode=append", *node_task(self._jobs, len(nodes))]
        return job.run_step([*job.nodes.only(nodes), *options, *command], {})
