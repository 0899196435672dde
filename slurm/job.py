"""What each rank of a Slurm job does. submitit pickles a reference to a function and calls it in every task.

In an allocation that a user holds it is a program: python -m slurm.job FOLDER RANKS WORDS ...
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path

from resnet.process.environment import RANK_VARIABLES, RANKS, SCRIPT, job_id, node_name
from resnet.process.exit_codes import FAILED, FINISHED, STOPPED
from resnet.process.processes import is_alive, started
from resnet.process.signals import SIGNALS, Signals
from resnet.process.streams import leave
from resnet.rundir.attempts import told_to_end
from resnet.rundir.chain import TRAIN, read_chain, words_of_step
from resnet.rundir.status import write_status
from slurm.control import said
from slurm.patience import order

RESOLVE_SECONDS = 30.0


def train(words: list[str], folder: str, ranks: int, in_own_job: bool = True) -> None:
    """Train as `python train.py WORDS` in `folder` would, as one of `ranks` ranks.

    in_own_job: whether the job is the run's, and may be requeued, and not a user's, who only lets it train there.
    Leaves with 0 also where the run was stopped and saved: another code would end the ranks that still save.
    """
    # Before the imports that take seconds, and in the place of submitit's handler, which requeues from one rank.
    signals = Signals()
    signals.install()
    _join(ranks)
    script = os.environ.get(SCRIPT, "")
    # A container with processes of its own does not show it.
    is_seen = _lives(script)
    try:
        os.chdir(folder)
    except OSError as error:
        _fail(f"the folder of the submission cannot be entered here ({error}): a node needs the same file systems")
    from resnet.main import main

    # What provenance.json and W&B name as the command, in the place of submitit's.
    sys.argv = ["train.py", *words]
    code = main(words, signals)
    # On its way out Python puts back the default, which is to die, and --kill-on-bad-exit would end the others with it.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if code == STOPPED and in_own_job and is_seen and not _lives(script) and os.environ.get("RANK", "0") == "0":
        _requeue(Path(script.split(" ", 2)[2]))
    if code not in (FINISHED, STOPPED):
        sys.exit(code)


def _lives(script: str) -> bool:
    """Whether the batch script is there; script: what it told of itself, empty of an older one."""
    pid, _, rest = script.partition(" ")
    return bool(pid) and started(int(pid)) == rest.partition(" ")[0] and is_alive(int(pid))


def _requeue(run_dir: Path) -> None:
    """Send the job again, of which the batch script was killed, which else sees to that: its ranks were then ended."""
    job = str(job_id())
    # Slurm's own word, where the job was ended by a user, or the script by itself.
    was_killed = re.search(r"\bExitCode=\d+:[1-9]", said("scontrol", "show", "job", "-o", job))
    if told_to_end(run_dir) or not was_killed:
        return
    problem = order(["scontrol", "requeue", job])
    if problem is None:
        write_status(run_dir, state="queued", reason="the batch script was killed", failure=None, eta_s=None)
    else:
        print(f"train.py: the batch script was killed, and the job not requeued: {problem}", file=sys.stderr)


def do_step(folder: str, number: int, ranks: int) -> None:
    """Do a step of a chain: train on so many ranks, or, on one, run a command of `resnet`."""
    chain = Path(folder)
    content = read_chain(chain)
    words = words_of_step(chain, content, number)
    if content["steps"][number - 1]["command"] == TRAIN:
        train(words, content["folder"], ranks)
        return
    # What announces the end to a run that can save is nothing to a command that cannot; submitit would requeue.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    os.chdir(content["folder"])
    from resnet.tools.cli import main

    sys.argv = ["resnet", *words]
    main(words)
    # Not by way of submitit, whose last words would stand behind the command's.
    leave(FINISHED)


def _join(ranks: int) -> None:
    """Tell torch of the other ranks in its own variables, from Slurm's."""
    ranks, found = int(os.environ.get(RANKS, ranks)), int(os.environ.get("SLURM_NTASKS", "1"))
    if found != ranks:
        _fail(f"{ranks} ranks were asked for and Slurm started {found}")
    if ranks == 1:
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
        return
    # Of the step, which need not have all of the job's nodes.
    os.environ.update(RANK=os.environ["SLURM_PROCID"], WORLD_SIZE=str(ranks), LOCAL_RANK=os.environ["SLURM_LOCALID"])
    os.environ["LOCAL_WORLD_SIZE"] = str(ranks // int(os.environ.get("SLURM_STEP_NUM_NODES", "1")))
    first_node = os.environ["MASTER_ADDR"]
    if not _resolves(first_node):
        _fail(
            f"the name of the first node, {first_node}, does not resolve on {node_name()} "
            f"(tried for {RESOLVE_SECONDS:g} s): the nodes must know one another's names"
        )


def _resolves(host: str) -> bool:
    found = threading.Event()

    def look() -> None:
        pause = threading.Event()
        while not found.is_set():
            with contextlib.suppress(OSError):
                socket.getaddrinfo(host, None)
                found.set()
            pause.wait(1)

    # A thread: a name server that does not answer would block for longer.
    threading.Thread(target=look, daemon=True).start()
    return found.wait(RESOLVE_SECONDS)


def _fail(message: str) -> None:
    print(f"train.py: {message}", file=sys.stderr, flush=True)
    # Not by an exception: submitit would print its way to it.
    os._exit(FAILED)


def words_of(recipe: Path, run_dir: Path) -> list[str]:
    """The command line of a run whose recipe is resolved."""
    values = {"recipe": recipe, "run.root": run_dir.parent, "run.name": run_dir.name}
    # In quotes a name that looks like another YAML value stays text.
    return [f"{key}={value if key == 'recipe' else json.dumps(str(value))}" for key, value in values.items()]


if __name__ == "__main__":
    # In an allocation that a user holds, to which submitit sends nothing: FOLDER RANKS WORDS.
    train(sys.argv[3:], sys.argv[1], int(sys.argv[2]), in_own_job=False)
