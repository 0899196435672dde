"""What the test cluster's daemons are told: Slurm's files, to be filled in with names and ports, and its accounts."""

from __future__ import annotations

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
MinJobAge=300
MaxArraySize=1001
MaxJobCount=20000

SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_continue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={run}/munge.sock
AccountingStoragePort={slurmdbd_port}
AccountingStorageEnforce=associations,limits
AccountingStorageTRES=gres/gpu

GresTypes=gpu
{nodes}
PartitionName=low Nodes={node_names} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 OverSubscribe=NO
PartitionName=high Nodes={node_names} PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
"""

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
