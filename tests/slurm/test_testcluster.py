"""The cluster on one machine that other tests submit to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm import testcluster, testcluster_files
from tests.slurm_helpers import need_slurm

need_slurm()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    # Longer than the path of a socket may be, and with a space.
    folder = tmp_path_factory.mktemp("cluster") / ("a long name " * 9).strip()
    testcluster.up(folder)
    try:
        yield folder
    finally:
        testcluster.down(folder)


def ask(folder: Path, *command: str, code: int = 0) -> str:
    variables = os.environ | testcluster.environment(folder)
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def run_main(action: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slurm.testcluster", action, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def traces(folder: Path) -> list[str]:
    """Processes with the folder, or its folder of sockets, in their command line or environment."""
    names = [str(folder).encode(), str(testcluster.run_folder(folder)).encode()]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(name in said for name in names):
            found.append(said.replace(b"\0", b" ").decode())
    return found


def test_both_nodes_are_idle(cluster):
    found = testcluster.status(cluster)
    assert found.running
    assert dict(found.nodes) == {"127.0.0.1": "idle", "127.0.0.2": "idle"}


def test_a_job_on_two_nodes_has_its_gpus_and_starts_at_once(cluster, tmp_path):
    script = 'srun bash -c "echo $SLURM_PROCID \\$SLURMD_NODENAME \\$CUDA_VISIBLE_DEVICES"; date +%s.%N'
    submitted = time.time()
    asked = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2", "--job-name=hello", f"--output={tmp_path}/log"]
    ask(cluster, "sbatch", "--wait", *asked, "--wrap", script)
    *tasks, ended = (tmp_path / "log").read_text().split("\n")[:-1]
    assert sorted(task.split()[1:] for task in tasks) == [["127.0.0.1", "0,1"], ["127.0.0.2", "0,1"]]
    assert float(ended) - submitted < 10
    ask(cluster, "sbatch", "--gpus-per-node=3", "--wrap", "true", code=1)
    deadline = time.time() + 20
    recorded = ""
    while "COMPLETED" not in recorded and time.time() < deadline:
        time.sleep(0.2)
        recorded = ask(cluster, "sacct", "-nX", "--name=hello", "--format=state,account,alloctres%60")
    assert "COMPLETED" in recorded
    assert "research" in recorded
    assert "gres/gpu=4" in recorded


def test_accounts_are_enforced(cluster):
    assert "Invalid account" in ask(cluster, "sbatch", "--account=nobody", "--wrap", "true", code=1)
    ask(cluster, "sbatch", "--account=tiny", "--hold", "--wrap", "true")
    assert "AssocMaxSubmitJobLimit" in ask(cluster, "sbatch", "--account=tiny", "--wrap", "true", code=1)
    ask(cluster, "scancel", "--account=tiny")


def test_preemption_is_configured(cluster):
    config = ask(cluster, "scontrol", "show", "config")
    assert "preempt_send_user_signal" in config
    low, high = (ask(cluster, "scontrol", "show", "partition", name) for name in ("low", "high"))
    assert "Default=YES" in low
    assert "PreemptMode=REQUEUE" in low
    assert "GraceTime=20" in low
    assert "PreemptMode=OFF" in high
    assert "PriorityTier=10" in high


def test_up_again_leaves_it_running(cluster):
    before = testcluster.status(cluster).daemons
    result = run_main("up", cluster)
    assert result.returncode == 0, result.stderr
    assert "already running" in result.stdout
    assert "export SLURM_CONF=" in result.stdout
    assert testcluster.status(cluster).daemons == before
    assert run_main("status", cluster).returncode == 0


def test_a_second_one_lives_beside_it_recovers_and_leaves_nothing(cluster, tmp_path):
    hosts = Path("/etc/hosts").read_bytes()
    folder = tmp_path / "second"
    assert run_main("up", folder).returncode == 0
    ask(folder, "sbatch", "--output=/dev/null", "--wrap", "sleep 4321.5")
    for pid in testcluster.status(folder).daemons["slurmctld"]:
        os.kill(pid, signal.SIGKILL)
    result = run_main("status", folder)
    assert result.returncode == 1
    assert "slurmctld  not running" in result.stdout
    assert run_main("up", folder).returncode == 0
    assert not ask(folder, "squeue", "--noheader")
    assert traces(folder)
    result = run_main("down", folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert not folder.exists()
    assert not testcluster.run_folder(folder).exists()
    assert not traces(folder)
    assert Path("/etc/hosts").read_bytes() == hosts
    assert testcluster.status(cluster).running
    assert run_main("down", folder).stdout.endswith("there was nothing\n")


def test_a_port_taken_after_it_was_chosen_is_chosen_again(tmp_path, monkeypatch):
    choices, choose = [], testcluster_files._free_ports
    with socket.socket() as other:

        def free_ports(number):
            choices.append(choose(number))
            if len(choices) == 1:
                other.bind(("", choices[0][-1]))
                other.listen()
            return choices[-1]

        monkeypatch.setattr(testcluster_files, "_free_ports", free_ports)
        testcluster.up(tmp_path / "cluster")
        try:
            assert testcluster.status(tmp_path / "cluster").running
            assert len(choices) == 2
        finally:
            testcluster.down(tmp_path / "cluster")


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for action in ("up", "down"):
        result = run_main(action, tmp_path)
        assert result.returncode == 2
        assert "is not a test cluster's folder" in result.stderr
    assert (tmp_path / "thesis.tex").exists()


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(testcluster, "PROGRAMS", ("sh", "no-such-daemon"))
    with pytest.raises(ValueError, match="no no-such-daemon here: apt-get install"):
        testcluster.up(tmp_path / "cluster")
    assert not (tmp_path / "cluster").exists()


def test_three_nodes_without_accounting(tmp_path):
    testcluster.up(tmp_path / "cluster", nodes=3, accounting=False)
    try:
        assert [*testcluster.status(tmp_path / "cluster").nodes.values()] == ["idle"] * 3
        assert ask(tmp_path / "cluster", "srun", "--nodes=3", "hostname").count("\n") == 3
        assert "disabled" in ask(tmp_path / "cluster", "sacct", code=1)
    finally:
        testcluster.down(tmp_path / "cluster")
