"""Runs that failed: some for real, here or on a real Slurm; what others leave is written by the program itself."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

from launch.runs.job_record import Job, write_job
from recipes.load import dump, load
from resnet.process.environment import ATTEMPT
from resnet.rundir.attempts import read_attempts
from resnet.rundir.lease import Lease, holder_elsewhere
from resnet.rundir.provenance import record_attempt
from resnet.rundir.status import read_status, write_status
from resnet.tracking.rank_log import RankLog
from slurm.budget import why_not
from slurm.ends import end_of_staging, end_of_training
from slurm.profile import load_profile
from slurm.record import record, tell
from tests.fabricated import provenance_of
from tests.launch.planted import Place, fault

NODES = ["n1", "n2"]
EXITED = "Exited with exit code 1"
DISTRACTORS = (
    "slurmstepd: error: couldn't chdir to `/home/me/x': No such file or directory: going to /tmp instead",
    "bash: /etc/profile.d/lmod.sh: Permission denied",
    "/etc/profile.d/limits.sh: line 3: /sys/fs/cgroup/memory.max: Permission denied",
    "n1:8:8 [0] NCCL INFO NET/Plugin : Plugin load (libnccl-net.so) returned 2 : libnccl-net.so: cannot open shared "
    "object file: No such file or directory",
    "n1:812:812 [0] NCCL INFO NET/IB : ibv_query_gid failed with error 22",
    "n1:812:812 [0] misc/ibvwrap.cc:63 NCCL WARN Failed to open libibverbs.so[.1]",
    "[W socket.cpp:46] [c10d] The server socket has failed to bind to [::]:29500 (errno: 98 - Address already in use).",
    "torchvision/io/image.py:13: UserWarning: Failed to load image Python extension: 'libjpeg.so.8: cannot open shared "
    "object file: No such file or directory'",
    "torch/cuda/__init__.py:118: UserWarning: CUDA initialization: Found no NVIDIA driver on your system.",
    "wandb: WARNING OSError: [Errno 122] Disk quota exceeded: '/home/me/.cache/wandb'",
    "wandb: WARNING ModuleNotFoundError: No module named 'IPython'",
    "ERROR: ld.so: object 'libtcmalloc.so' from LD_PRELOAD cannot be preloaded (cannot open shared object file): "
    "ignored.",
)
"""What well-behaved runs print as well: before each attempt here, in the batch script's log and in each rank's."""


class Ended:
    """A run of four ranks on two nodes of a cluster that is far away, whose end is written as its batch script does."""

    def __init__(self, place: Place, name: str, *words: str) -> None:
        self.run_dir, self.words = place.run_dir(name), words
        (self.run_dir / "slurm").mkdir(parents=True)
        where = [f"run.root={self.run_dir.parent}", f"run.name={name}"]
        (self.run_dir / "recipe.yaml").write_text(dump(load(["recipe=quickstart", *where]).recipe))
        profile = load_profile("local-test", ["slurm.nodes=2", *words])
        write_job(self.run_dir, Job.to_send(name, "local-test", profile, self.run_dir, self.run_dir), "17")
        write_status(self.run_dir, name=name, recipe="quickstart", state="running", step=40, total_steps=300)
        record_attempt(self.run_dir, {**provenance_of("NVIDIA H100 80GB HBM3"), "world_size": 4})
        self.number = 0

    def attempt(self) -> Path:
        """Begin an attempt; returns the folder of its logs."""
        self.number += 1
        begun = {"job_id": "17", "restart": self.number - 1, "start": 1.7e9, "nodes": NODES, "step": 40}
        record(self.run_dir, self.number, **begun, log=self.batch_log())
        write_status(self.run_dir, state="running", attempts=self.number, job_id="17")
        logs = self.run_dir / "logs" / f"attempt-{self.number}"
        logs.mkdir(parents=True)
        self.batch_log(*DISTRACTORS)
        for rank in range(4):
            say(logs, rank, *DISTRACTORS)
        return logs

    def rank_fails(self, rank: int, reason: str, kind: str, own_fault: bool = True) -> None:
        """As the program on that rank does."""
        said = {ATTEMPT: str(self.number), "SLURMD_NODENAME": NODES[rank // 2]}
        with mock.patch.dict(os.environ, said), mock.patch("time.sleep"):
            log = RankLog(self.run_dir, rank, 4)
            log.fail(4, 40, reason, kind, own_fault)
            log.close()

    def ends(self, *said: str, code: int = 1) -> Path:
        """The ranks' step ends, of which srun (and slurmstepd) say this."""
        logs = self.run_dir / "logs" / f"attempt-{self.number}"
        self.batch_log(*said)
        end = end_of_training(code, said, read_status(self.run_dir), None, logs, None)
        return self.told(end.outcome, end.reason, end.failure, end.node)

    def told(self, outcome: str, reason: str, failure: str | None, node: str | None = None, **fields: Any) -> Path:
        """The batch script writes down how the attempt ended."""
        told = {"outcome": outcome, "reason": reason, "node": node, "step": 40, "fruitless": False}
        record(self.run_dir, self.number, end=1.7e9, log_end=self.batch_log(), **{**told, **fields})
        tell(self.run_dir, state="failed", reason=reason, failure=failure, eta_s=None)
        return self.run_dir

    def batch_log(self, *lines: str) -> int:
        """Write these; returns its bytes."""
        with open(self.run_dir / "slurm" / "17_0_log.out", "a") as log:
            log.writelines(f"{line}\n" for line in lines)
            return log.tell()


def say(logs: Path, rank: int, *lines: str) -> None:
    with open(logs / f"rank-{rank}.log", "a") as log:
        log.writelines(f"{line}\n" for line in ("submitit INFO starting", *lines))


TRACEBACK = ("Traceback (most recent call last):", '  File "/shared/code/resnet/run.py", line 88, in train')


@fault("failed", "nan")
def learning_rate_far_too_high(place: Place) -> Path:
    """A learning rate so high that the loss is no number soon."""
    return place.train("nan", "optimizer.lr=1e30", "epochs=1")


def _callback(place: Place, name: str, line: str) -> str:
    """A callback of a user's own that does this at the third step."""
    text = f"import os, torch\nclass Own:\n    def on_step(self, step, model):\n        if step == 3: {line}\n"
    (place.folder / f"{name}.py").write_text(text)
    return f"plugins.callbacks=[{place.folder / name}.py:Own]"


@fault("failed", "plugin")
def callback_with_a_mistake(place: Place) -> Path:
    """A callback of the user's own raises."""
    return place.train("plugin", _callback(place, "own", "{}['missing']"), "epochs=1")


@fault("failed", "gpu_memory")
def micro_batch_too_large(place: Place) -> Path:
    """The GPU's memory is too small for the micro-batch."""
    told = "CUDA out of memory. Tried to allocate 1.53 GiB. GPU 0 has a total capacity of 79.1 GiB."
    return place.train("oom", _callback(place, "large", f"raise torch.cuda.OutOfMemoryError({told!r})"), "epochs=1")


@fault("failed", "shared_memory")
def container_with_little_shared_memory(place: Place) -> Path:
    """/dev/shm is too small for the data workers."""
    told = "DataLoader worker (pid 4711) is killed by signal: Bus error. It is perhaps out of shared memory."
    return place.train("shm", _callback(place, "shm", f"raise RuntimeError({told!r})"), "epochs=1")


@fault("failed", "disk")
def disk_that_is_full(place: Place) -> Path:
    """The disk fills up while checkpoints are saved."""
    return place.train("disk", _callback(place, "full", "raise OSError(28, 'No space left on device')"), "epochs=1")


@fault("failed", "broken_images")
def images_that_were_cut_off(place: Place) -> Path:
    """Half of the images are cut off."""
    data = place.folder / "cut"
    shutil.copytree(place.shapes, data)
    for file in itertools.islice(sorted(data.glob("train/*/*")), 0, None, 2):
        file.write_bytes(file.read_bytes()[:60])
    return place.train("cut", f"data.train={data}", "epochs=1")


@fault("failed", "killed")
def process_that_was_killed(place: Place) -> Path:
    """Somebody, or the kernel, kills the process."""
    return place.train("killed", _callback(place, "kills", "os.kill(os.getpid(), 9)"), "epochs=1", environment={})


def _sent(place: Place, name: str, *words: str) -> Path:
    """A run that was sent to a real Slurm with free nodes, and has ended there."""
    if place.cluster.queue():
        place.cluster.ask("scancel", *place.cluster.queue())
        place.cluster.wait("the queue is empty", lambda: not place.cluster.queue())
    run = place.send(name, "epochs=1", *words)
    place.cluster.wait_end(name)
    return run


@fault("failed", "setup")
def module_that_is_not_there(place: Place) -> Path:
    """A line of slurm.setup fails, long before the ranks."""
    return _sent(place, "setup", "slurm.setup=['module load cuda/99.9']")


@fault("failed", "staging")
def data_that_cannot_be_staged(place: Place) -> Path:
    """The archive that slurm.stage unpacks is gone."""
    return _sent(place, "stage", "slurm.stage=['tar xf /shared/imagenet.tar -C /tmp']")


@fault("failed", "container")
def container_without_its_program(place: Place) -> Path:
    """The nodes have no apptainer."""
    return _sent(place, "container", "slurm.container='apptainer exec --nv resnet.sif'")


@fault("failed", "import")
def python_without_packages(place: Place) -> Path:
    """The Python of the ranks has no packages."""
    return _sent(place, "import", "slurm.python=/usr/bin/python3")


@fault("failed", "code_gone")
def copy_of_the_code_that_was_removed(place: Place) -> Path:
    """The copy of the program was removed while the job waited."""
    run = place.send("code", "slurm.sbatch.hold=true")
    moved = run.parent / ".code"
    moved.rename(run.parent / ".moved")
    place.cluster.ask("scontrol", "release", place.cluster.job("code"))
    place.cluster.wait_end("code")
    (run.parent / ".moved").rename(moved)
    return run


@fault("failed", "host_memory")
def memory_of_the_node(place: Place) -> Path:
    """The kernel kills a rank for want of memory, and the others lose it."""
    run = Ended(place, "host-memory")
    run.attempt()
    for rank in (0, 1, 2):
        run.rank_fails(rank, "lost the other ranks (Connection closed by peer [10.0.0.2]:41234)", "peer", False)
    oom = "slurmstepd: error: Detected 1 oom_kill event in StepId=17.0. Some of the step tasks have been OOM Killed."
    return run.ends(
        oom, "srun: error: n2: task 3: Out Of Memory", "srun: error: n1: tasks 0-2: Exited with exit code 1"
    )


@fault("failed", "gpu_fault")
def gpu_with_bad_memory(place: Place) -> Path:
    """A GPU reports an error of its memory; the other ranks see NCCL fail first."""
    run = Ended(place, "ecc")
    run.attempt()
    run.rank_fails(0, "DistBackendError: NCCL error: remote process exited or there was a network error", "nccl", False)
    run.rank_fails(2, "AcceleratorError: CUDA error: uncorrectable ECC error encountered", "device")
    run.rank_fails(1, "lost the other ranks (Connection reset by peer)", "peer", False)
    return run.ends("srun: error: n2: task 2: Exited with exit code 1", "srun: error: n1: tasks 0-1: Terminated")


@fault("failed", "disk")
def disk_of_one_node(place: Place) -> Path:
    """A node's own disk is full, which only the log of the rank that vanished tells."""
    run = Ended(place, "tmp-full")
    logs = run.attempt()
    for rank in (0, 1, 2):
        run.rank_fails(rank, "lost the other ranks (Connection closed by peer [10.0.0.2]:41234)", "peer", False)
    say(logs, 3, *TRACEBACK, "OSError: [Errno 28] No space left on device: '/tmp/torchinductor_me'")
    return run.ends(
        "srun: error: n2: task 3: Exited with exit code 1", "srun: error: n1: tasks 0-2: Exited with exit code 1"
    )


@fault("failed", "driver")
def driver_that_is_too_old(place: Place) -> Path:
    """A node's driver is older than this build of torch takes."""
    run = Ended(place, "driver")
    logs = run.attempt()
    told = "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."
    say(logs, 1, *TRACEBACK, f"{told} Please update your GPU driver by downloading and installing a new version")
    return run.ends("srun: error: n1: task 1: Exited with exit code 1")


@fault("failed", "library")
def library_of_another_system(place: Place) -> Path:
    """The environment was made on a newer system than the nodes have."""
    run = Ended(place, "glibc")
    logs = run.attempt()
    told = (
        "ImportError: /lib64/libc.so.6: version `GLIBC_2.32' not found (required by /shared/venv/torch/lib/libtorch.so)"
    )
    say(logs, 0, *TRACEBACK, told)
    return run.ends("srun: error: n1: tasks 0-1: Exited with exit code 1")


@fault("failed", "interface")
def interface_that_is_not_there(place: Place) -> Path:
    """slurm.interface names one that the nodes do not have, and NCCL ends with advice of its own."""
    run = Ended(place, "interface", "slurm.interface=ib9")
    logs = run.attempt()
    say(logs, 0, "n1:812:812 [0] NCCL WARN Bootstrap : no socket interface found")
    run.rank_fails(0, "DistBackendError: ncclInternalError: Internal check failed.", "nccl")
    return run.ends("srun: error: n1: task 0: Exited with exit code 1")


@fault("failed", "data_missing")
def folder_that_is_not_on_the_nodes(place: Place) -> Path:
    """The data's folder is not mounted on the nodes: a mistake of the recipe, by the ranks."""
    run = Ended(place, "not-mounted")
    logs = run.attempt()
    say(logs, 0, "train.py: data.train=/data/imagenet/train: there is no /data/imagenet/train.")
    return run.ends("srun: error: n1: tasks 0-1: Exited with exit code 2")


@fault("failed", "labels")
def other_number_of_classes(place: Place) -> Path:
    """model.num_classes is not the number of the folders."""
    run = Ended(place, "classes")
    logs = run.attempt()
    say(logs, 0, "train.py: model.num_classes=100, but /data/train has 1000 classes (n01440764, n01443537 ...)")
    return run.ends("srun: error: n1: tasks 0-3: Exited with exit code 2")


@fault("failed", "hang")
def file_system_that_hangs(place: Place) -> Path:
    """The file system of a node hangs, and with it all ranks."""
    run = Ended(place, "hang")
    logs = run.attempt()
    stack = '  File "/shared/code/resnet/data/decode.py", line 41 in read_file'
    say(logs, 2, "Thread 0x7f (most recent call first):", stack)
    for rank in (2, 0, 1, 3):
        run.rank_fails(rank, "no step for 10 minutes (a hang); the stacks are in logs/rank-2.log", "hang")
    return run.ends("srun: error: n2: task 2: Exited with exit code 1")


@fault("failed", "sdc")
def gpu_that_computes_wrong(place: Place) -> Path:
    """A GPU computes wrong without an error."""
    run = Ended(place, "sdc")
    run.attempt()
    told = "silent data corruption: the weights of rank 3 (n2) differ from those of 3 other ranks; not saved"
    run.rank_fails(3, told, "sdc")
    run.rank_fails(0, told, "sdc", False)
    return run.ends("srun: error: n2: task 3: Exited with exit code 1")


@fault("failed", "lease")
def trained_by_somebody_else(place: Place) -> Path:
    """Another process trains the same run, and the job that comes to it ends."""
    run = Ended(place, "lease")
    run.attempt()
    lease = Lease(run.run_dir)
    lease.acquire()
    place.afterwards(lease.release)
    with mock.patch("fcntl.lockf", side_effect=BlockingIOError(11, "locked")):
        holder = holder_elsewhere(run.run_dir)
    assert holder
    return run.told("failed", holder, "lease")


@fault("failed", "walltime")
def limit_too_short_for_a_start(place: Place) -> Path:
    """Every attempt ends at its time limit before it has saved anything new."""
    run = Ended(place, "walltime", "slurm.time=10")
    for _ in range(3):
        run.attempt()
        run.told("stopped", "signal SIGUSR2", None, cause="walltime", fruitless=True)
    return _not_again(run, 100)


@fault("failed", "max_requeues")
def preempted_again_and_again(place: Place) -> Path:
    """It was preempted as often as its profile allows."""
    run = Ended(place, "preempted", "slurm.max_requeues=3")
    for _ in range(4):
        run.attempt()
        run.told("stopped", "signal SIGTERM", None, cause="preempted")
    return _not_again(run, 3)


@fault("failed", "library|import")
def restarts_that_all_end_in_the_same_way(place: Place) -> Path:
    """A node without a library kills each start, and the run ends by its budget."""
    run = Ended(place, "same")
    told = "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory"
    for _ in range(3):
        logs = run.attempt()
        say(logs, 0, *TRACEBACK, told)
        run.told("killed", "rank 0 on n1 was ended by a segmentation fault", None, "n1", cause="killed", fruitless=True)
    return _not_again(run, 100)


def _not_again(run: Ended, max_requeues: int) -> Path:
    """The next start of the job finds that there were enough."""
    with mock.patch("slurm.budget.was_preempted", return_value=False):
        reason = why_not(read_attempts(run.run_dir), "17", 40, max_requeues)
    assert reason
    tell(run.run_dir, state="failed", reason=reason, failure="budget", eta_s=None)
    return run.run_dir


@fault("failed", "staging|disk")
def staging_to_a_full_disk(place: Place) -> Path:
    """The disk of a node has no room for the data that slurm.stage brings."""
    run = Ended(place, "stage-full")
    logs = run.attempt()
    (logs / "stage-1.log").write_text("tar: imagenet/n0144/1.JPEG: Cannot write: No space left on device\n")
    end = end_of_staging(1, ["srun: error: n2: task 1: Exited with exit code 2"], NODES, logs)
    return run.told(end.outcome, end.reason, end.failure, end.node)
