"""A real Slurm on this machine, to try `launch submit` and to test it: `python -m slurm.testcluster up|down|status`.

munged, mariadbd, slurmdbd, slurmctld and two or more slurmd run in one folder, beside any Slurm the machine has. A node
claims 8 CPUs and two GPUs that are none (/dev/null under their names). The nodes are called 127.0.0.1, 127.0.0.2 ...: a
job reads from its node list where rank 0 is, and these names resolve on any Linux without a line in /etc/hosts.

From Python: `up(folder)`, then processes started with `environment(folder)` talk to it, and `down(folder)`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from resnet.process.exit_codes import FAILED, FINISHED, MISTAKE
from slurm.testcluster_files import (
    ACCOUNTING,
    DAEMONS,
    KILL_WAIT_SECONDS,
    NODES,
    SLURM_CONF,
    expected_daemons,
    node_names,
    write_files,
)

DEFAULT_FOLDER = Path("~/.cache/resnet-launch/testcluster")
START_SECONDS = 60
STARTS = 3
"""Starts in all, where another process takes a port after it was found free."""
TAKEN = "Address already in use"
MARK = "RESNET_TESTCLUSTER"
"""The environment variable by which a daemon is known as one of a folder's."""
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch")
PACKAGES = "slurm-wlm slurmdbd munge mariadb-server"

INSTALL_DATABASE = ("mariadb-install-db", "--skip-test-db", "--auth-root-authentication-method=normal")


@dataclasses.dataclass(frozen=True)
class Status:
    """What runs: process ids by daemon, and Slurm's state by node (empty if slurmctld does not answer)."""

    daemons: Mapping[str, Sequence[int]]
    nodes: Mapping[str, str]
    expected: Mapping[str, int]
    """How many processes of each daemon make the cluster."""

    @property
    def running(self) -> bool:
        """Whether all is up and every node takes jobs."""
        missing = [name for name, number in self.expected.items() if len(self.daemons[name]) < number]
        usable = [state for state in self.nodes.values() if state in ("idle", "mixed", "allocated", "completing")]
        return not missing and len(usable) == self.expected["slurmd"]


def environment(folder: Path) -> dict[str, str]:
    """What a client (`sbatch`, `sacct`, submitit) needs in its environment to talk to the folder's cluster."""
    return {"SLURM_CONF": str(_resolved(folder) / "slurm.conf")}


def up(folder: Path, nodes: int = NODES, accounting: bool = True) -> dict[str, str]:
    """Start a cluster whose files live in `folder`, and wait until its nodes are idle; returns `environment(folder)`.

    One that already runs is left as it is; what is left of one that half died is cleared away first, with its jobs.
    accounting: whether slurmdbd keeps what became of jobs.

    Raises:
        ValueError: packages are missing, or the folder holds something else.
        RuntimeError: a daemon ended or took longer than a minute; with the end of its log.
    """
    folder = _resolved(folder)
    check_packages()
    if status(folder).running:
        return environment(folder)
    down(folder)
    for starts_left in reversed(range(STARTS)):
        try:
            _start(folder, write_files(folder, run_folder(folder), _user(), nodes, accounting))
            break
        except BaseException as error:
            # The folder stays: its logs tell why.
            _kill(folder)
            shutil.rmtree(run_folder(folder), ignore_errors=True)
            if not (starts_left and isinstance(error, RuntimeError) and _port_was_taken(folder)):
                raise
            shutil.rmtree(folder)
    return environment(folder)


def down(folder: Path) -> bool:
    """Cancel the jobs, stop the daemons, remove the folder; returns whether there was anything to do.

    Raises:
        ValueError: the folder holds something else.
    """
    folder = _resolved(folder)
    if folder.exists() and any(folder.iterdir()) and not _is_ours(folder):
        raise ValueError(f"{folder} is not a test cluster's folder: name one that does not exist")
    processes = _processes(folder)
    if "slurmctld" in processes.values():
        _cancel_jobs(folder)
    _kill(folder)
    shutil.rmtree(run_folder(folder), ignore_errors=True)
    existed = folder.exists()
    if existed:
        shutil.rmtree(folder)
    if folder == _resolved(DEFAULT_FOLDER):
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
    return existed or bool(processes)


def check_packages() -> None:
    """Raise a ValueError with the command that installs what is missing, if anything is."""
    missing = [program for program in PROGRAMS if not shutil.which(program, path=_search_path())]
    if missing:
        raise ValueError(f"no {', '.join(missing)} here: apt-get install -y {PACKAGES}")


def run_folder(folder: Path) -> Path:
    """Sockets and spool; apart from the folder because the path of a socket has at most 107 characters."""
    folder = _resolved(folder)
    digest = hashlib.sha256(f"{os.getuid()} {folder}".encode()).hexdigest()[:12]
    return Path("/tmp") / f"resnet-testcluster-{digest}"


def status(folder: Path) -> Status:
    """What of the folder's cluster runs; nothing is started or changed."""
    processes = _processes(folder := _resolved(folder))
    daemons = {name: sorted(pid for pid, command in processes.items() if command == name) for name in DAEMONS}
    nodes, expected = {}, expected_daemons(folder)
    if daemons["slurmctld"] and daemons["munged"]:
        answer = _client(folder, ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T"], seconds=15)
        nodes = dict(line.split() for line in answer.stdout.splitlines() if answer.returncode == 0)
    return Status(daemons, nodes, expected)


def start_daemon(folder: Path, name: str, node: str | None = None) -> None:
    """Start slurmctld, or the slurmd of a node, again."""
    _spawn(_resolved(folder), name, ["-D", "-N", node] if node else ["-D"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run `up`, `down` or `status` and leave with its exit code: 0 done or running, 1 not, 2 a mistake of the user."""
    parser = argparse.ArgumentParser("python -m slurm.testcluster", description="A real Slurm on this machine.")
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where it lives (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=NODES, help="how many `up` starts (default: %(default)s)")
    parser.add_argument("--no-accounting", action="store_true", help="without slurmdbd")
    arguments = parser.parse_args(argv)
    folder = _resolved(arguments.folder)
    try:
        if arguments.action == "up":
            before = status(folder)
            variables = up(folder, arguments.nodes, not arguments.no_accounting)
            print(f"# {'already running' if before.running else 'started'} in {folder}")
            print(*(f"export {name}={shlex.quote(value)}" for name, value in variables.items()), sep="\n")
        elif arguments.action == "down":
            print(f"{folder}: {'removed' if down(folder) else 'there was nothing'}")
        else:
            found = status(folder)
            for name in found.expected:
                pids = " ".join(map(str, found.daemons[name]))
                print(f"{name:10} {f'pid {pids}' if pids else 'not running'}")
            for name, state in found.nodes.items():
                print(f"{name:10} {state}")
            sys.exit(FINISHED if found.running else FAILED)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"testcluster {arguments.action}: {error}", file=sys.stderr)
        sys.exit(MISTAKE if isinstance(error, ValueError) else FAILED)


def _user() -> str:
    # Not $USER, which may be somebody else's after a sudo.
    return pwd.getpwuid(os.getuid()).pw_name


def _resolved(folder: Path) -> Path:
    return Path(folder).expanduser().resolve()


def _is_ours(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return (folder / "slurm.conf").read_text().startswith(SLURM_CONF.partition("\n")[0])
    return False


def _port_was_taken(folder: Path) -> bool:
    return any(TAKEN in log.read_text(errors="replace") for log in (folder / "logs").glob("slurm*.log"))


def _start(folder: Path, slurmdbd_port: int) -> None:
    run = run_folder(folder)
    munge = ["--force", f"--key-file={folder}/munge.key", f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid"]
    _spawn(folder, "munged", [*munge, "--foreground", f"--seed-file={run}/munged.seed"])
    _wait(folder, "munged", (run / "munge.sock").exists)
    if "mariadbd" in expected_daemons(folder):
        _start_accounting(folder, run, slurmdbd_port)
    _spawn(folder, "slurmctld", ["-D"])
    nodes = node_names((folder / "slurm.conf").read_text())
    for node in nodes:
        _spawn(folder, "slurmd", ["-D", "-N", node])
    _wait(folder, "slurmd", lambda: list(status(folder).nodes.values()) == ["idle"] * len(nodes))


def _start_accounting(folder: Path, run: Path, slurmdbd_port: int) -> None:
    database = ["--no-defaults", f"--datadir={run}/mysql", f"--user={_user()}", "--skip-networking"]
    # A tmpdir of its own: a server that starts removes all temporary tables it finds there, another server's too.
    database += [f"--tmpdir={run}/tmp", "--innodb-log-file-size=4M", "--debug-no-sync"]
    _checked(folder, [*INSTALL_DATABASE, *database])
    _spawn(folder, "mariadbd", [*database, f"--socket={run}/mysql.sock", f"--pid-file={run}/mysql.pid"])
    _wait(folder, "mariadbd", (run / "mysql.sock").exists)
    _spawn(folder, "slurmdbd", ["-D"])
    _wait(folder, "slurmdbd", lambda: _answers(slurmdbd_port))
    for line in ACCOUNTING.format(user=_user()).splitlines():
        _checked(folder, ["sacctmgr", "--immediate", "--quiet", *line.split()])


def _spawn(folder: Path, name: str, arguments: Sequence[str]) -> None:
    # setsid --fork makes it init's child: nobody has to reap it, and a Ctrl-C in the terminal does not reach it.
    command = ["setsid", "--fork", name, *arguments]
    variables = _variables(folder) | {"MYSQL_UNIX_PORT": f"{run_folder(folder)}/mysql.sock", MARK: str(folder)}
    with (folder / "logs" / f"{name}.log").open("ab") as log:
        subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)


def _search_path() -> str:
    # Daemons are in sbin, which a user's PATH often lacks.
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _variables(folder: Path) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "MYSQL_"))}
    return others | environment(folder) | {"PATH": _search_path()}


def _client(folder: Path, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm's; one that takes longer is ended, and fails with 124."""
    limited = ["timeout", "--kill-after=1", str(seconds), *command]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.run(
        limited, env=_variables(folder), stdin=none, stdout=pipe, stderr=subprocess.STDOUT, text=True, check=False
    )


def _checked(folder: Path, command: Sequence[str]) -> None:
    result = _client(folder, command, START_SECONDS)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {result.returncode}:\n{result.stdout.strip()[-2000:]}")


def _wait(folder: Path, name: str, ready: Callable[[], bool]) -> None:
    """Wait until `name`, the newest of the daemons, is ready; raises RuntimeError with the end of a log."""
    expected = expected_daemons(folder)
    order = list(expected)
    started = time.monotonic()
    while not ready():
        waited = time.monotonic() - started
        running = status(folder).daemons
        ended = [other for other in order[: order.index(name) + 1] if len(running[other]) < expected[other]]
        # Between fork and exec a daemon is not known by its name yet.
        if waited > START_SECONDS or (ended and waited > 1):
            what = f"{ended[0]} ended" if ended else f"{name} was not ready after {START_SECONDS} s"
            log = folder / "logs" / f"{ended[0] if ended else name}.log"
            raise RuntimeError("\n".join([f"{what}; the end of {log}:", *log.read_text().splitlines()[-20:]]))
        time.sleep(0.05)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _processes(folder: Path) -> dict[int, str]:
    """Command name by process id: the folder's daemons, and its jobs' step daemons and tasks."""
    mark, conf = (f"{k}={v}".encode() for k, v in ((MARK, folder), ("SLURM_CONF", folder / "slurm.conf")))
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            in_a_job = conf in variables and any(each.startswith(b"SLURMD_NODENAME=") for each in variables)
            if mark in variables or in_a_job:
                found[int(process.name)] = (process / "comm").read_text().strip()
    found.pop(os.getpid(), None)
    return found


def _cancel_jobs(folder: Path) -> None:
    """Ask all jobs to end, and wait for as long as Slurm gives them."""
    _client(folder, ["scancel", "--quiet", f"--user={_user()}"], seconds=2)
    deadline = time.monotonic() + KILL_WAIT_SECONDS + 1
    while "slurmstepd" in _processes(folder).values() and time.monotonic() < deadline:
        time.sleep(0.1)


def _kill(folder: Path) -> None:
    # Nothing is kept that an orderly end would save.
    deadline = time.monotonic() + 5
    while left := _processes(folder):
        if time.monotonic() > deadline:
            raise RuntimeError(f"could not end {left}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
