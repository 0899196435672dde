"""What the test cluster's daemons are told: Slurm's files, filled in with names and ports, and its accounts."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
from pathlib import Path

NODES = 2
"""Where no other number is asked for."""
KILL_WAIT_SECONDS = 15
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
"""In the order of their start."""
OF_ACCOUNTING = ("mariadbd", "slurmdbd")

SLURM_CONF = """\
# Written by slurm.testcluster, whose `down` removes this folder.
ClusterName=testcluster
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={run}/munge.sock
StateSaveLocation={run}/state
SlurmdSpoolDir={run}/%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.%n.pid

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
InactiveLimit=0
KillWait={kill_wait}
SlurmdTimeout=30
MinJobAge=300
MaxArraySize=1001
MaxJobCount=20000

SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_continue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1

{accounting}
GresTypes=gpu
{nodes}
PartitionName=low Nodes={node_names} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 OverSubscribe=NO
PartitionName=high Nodes={node_names} PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
"""

WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={run}/munge.sock
AccountingStoragePort={slurmdbd_port}
AccountingStorageEnforce=associations,limits
AccountingStorageTRES=gres/gpu
"""
"""Part of slurm.conf; without it nothing is kept of jobs that have ended, as on many small clusters."""

NODE_CONF = "NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs=8 RealMemory=256000 Gres=gpu:2"

GRES_CONF = """\
AutoDetect=off
Name=gpu Flags=nvidia_gpu_env File={run}/gpu[0-1]
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={run}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser={user}
PidFile={run}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""

CONFS = {"slurm.conf": SLURM_CONF, "gres.conf": GRES_CONF, "slurmdbd.conf": SLURMDBD_CONF}


ACCOUNTING = """\
add cluster testcluster
add account research,tiny
add user {user} account=research,tiny defaultaccount=research
modify user {user} set defaultaccount=research
modify account tiny set maxsubmitjobs=1
"""
"""What `sacctmgr` is told: the user's account, and one whose user may have one job at a time."""


def expected_daemons(folder: Path) -> dict[str, int]:
    """How many processes of each daemon the folder's cluster has."""
    conf = ""
    with contextlib.suppress(OSError):
        conf = (folder / "slurm.conf").read_text()
    counts = dict.fromkeys(DAEMONS, 1) | {"slurmd": len(node_names(conf)) or NODES}
    return {name: counts[name] for name in DAEMONS if name not in OF_ACCOUNTING or "slurmdbd" in conf or not conf}


def node_names(conf: str) -> list[str]:
    return re.findall(r"^NodeName=(\S+)", conf, re.MULTILINE)


def write_files(folder: Path, run: Path, user: str, count: int, accounting: bool) -> int:
    """Write what the daemons read, `run` for their sockets and spool; returns slurmdbd's port."""
    names = [f"127.0.0.{number + 1}" for number in range(count)]
    run.mkdir(mode=0o700)
    for path in (folder, folder / "logs", folder / "mysql", *(run / name for name in ("state", "tmp", *names))):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    slurmctld_port, slurmdbd_port, *node_ports = _free_ports(2 + count)
    host = socket.gethostname().split(".")[0]
    nodes = [NODE_CONF.format(name=name, host=host, port=port) for name, port in zip(names, node_ports, strict=True)]
    values = {
        "run": run,
        "host": host,
        "user": user,
        "slurmctld_port": slurmctld_port,
        "slurmdbd_port": slurmdbd_port,
        "kill_wait": KILL_WAIT_SECONDS,
        "nodes": "\n".join(nodes),
        "node_names": ",".join(names),
    }
    values["accounting"] = WITH_ACCOUNTING.format(**values) if accounting else ""
    files = {name: text.format(**values).encode() for name, text in CONFS.items()} | {"munge.key": os.urandom(128)}
    for name, content in files.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(content)
    for gpu in range(2):
        (run / f"gpu{gpu}").symlink_to("/dev/null")
    # mariadb-install-db splits paths at spaces, which `folder` may have.
    (run / "mysql").symlink_to(folder / "mysql")
    return slurmdbd_port


def _free_ports(number: int) -> list[int]:
    """Ports nobody listens on, below those that the kernel gives to outgoing connections."""
    ports = []
    for port in random.sample(range(20000, 32000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
        if len(ports) == number:
            return ports
    raise RuntimeError("no free ports between 20000 and 32000")
