"""Jobs whose ranks run from their nodes' own disks, and leave their logs there, on a real Slurm."""

from __future__ import annotations

import json
import os
import signal
import venv
from pathlib import Path

import pytest
import torch

from resnet.process.rank_logs import LOCAL, node_folder, on_node
from tests.helpers import status
from tests.slurm_helpers import ON_CLUSTER, Cluster

pytestmark = pytest.mark.timeout(600)
ONE_A_NODE = [*ON_CLUSTER, "slurm.nodes=2", "slurm.gpus_per_node=1"]
WHERE = """\
import sys, resnet
from pathlib import Path

class Where:
    def __init__(self, folder):
        found = [sys.prefix, resnet.__file__, sys.modules["slurm.job"].__file__]
        Path(folder, "where").write_text("\\n".join(found))

    def on_step(self, step, model):
        pass
"""


def test_ranks_run_from_their_nodes_own_disks(cluster: Cluster, tiny, tmp_path):
    environment, plugin = tmp_path / "venv", tmp_path / "where.py"
    venv.create(environment, symlinks=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "more.pth").write_text(str(Path(torch.__file__).parents[1]))
    plugin.write_text(WHERE)
    callback = f"plugins.callbacks=[{{path: '{plugin}:Where', args: {{folder: '{tmp_path}'}}}}]"
    staged = [*ONE_A_NODE, f"slurm.stage_environment={environment}"]
    cluster.launch("submit", *tiny, *staged, callback, "run.name=staged")
    broken = tmp_path / "broken.tar.gz"
    broken.write_text("no archive")
    cluster.launch("submit", *tiny, *ON_CLUSTER, f"slurm.stage_environment={broken}", "run.name=broken")

    assert cluster.wait_end("staged")["state"] == "finished"
    prefix, *modules = (tmp_path / "where").read_text().splitlines()
    place, _, key = prefix.rpartition("/environment-")
    assert place.startswith(f"{LOCAL}/resnet-job-")
    assert place.endswith(f"-{cluster.job('staged')}")
    assert cluster.run_dir("staged").parent.joinpath(".code", f"environment-{key}.tar").is_file()
    assert all(module.startswith(f"{place}/code-") for module in modules)
    ended = cluster.wait_end("broken")
    assert (ended["state"], ended["failure"]) == ("failed", "data")
    assert "staging failed on 127.0.0." in ended["reason"]
    assert "This does not look like a tar archive" in ended["reason"]
    assert [*Path(LOCAL).glob(f"{place.rpartition('-')[0].rpartition('/')[2]}-*")] == []


def test_only_the_first_rank_writes_to_the_run_directory_until_one_is_lost(cluster: Cluster, tiny):
    cluster.launch("submit", *tiny, "epochs=12", *ONE_A_NODE, "slurm.rank_logs=first", "run.name=quiet")
    run = cluster.run_dir("quiet")
    cluster.wait_step("quiet", 3)
    logs = run / "logs"
    assert [file.name for file in (logs / "attempt-1").glob("rank-*")] == ["rank-0.log"]
    said = cluster.launch("logs", "quiet", "--rank", 1, code=2).stderr
    assert "rank 1's log is on 127.0.0.2" in said
    assert "slurm.rank_logs=all" in said
    os.kill(json.loads(on_node(run, 1, "rank-1.json").read_text())["pid"], signal.SIGSEGV)
    cluster.wait_step("quiet", 5, attempt=2)
    # Brought beside the restart, which does not wait for it.
    cluster.wait("the log of the lost rank", (logs / "rank-1.log").exists)
    assert "Fatal Python error: Segmentation fault" in (logs / "rank-1.log").read_text()
    cluster.wait("what it printed", (logs / "attempt-1" / "rank-1.log").exists)
    assert "submitit" in (logs / "attempt-1" / "rank-1.log").read_text()
    cluster.wait_end("quiet")
    assert status(run)["state"] == "finished"
    assert [file.name for file in (logs / "attempt-2").glob("rank-*")] == ["rank-0.log"]
    assert [*LOCAL.glob(node_folder(run, "*").name)] == []
