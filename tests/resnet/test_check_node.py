"""What a rank looks at before training: products known exactly, its node, the others, and what a GPU's driver says."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

import pytest
import torch

from recipes.load import dump, load
from resnet.process import nvml
from resnet.process.check_lines import told
from resnet.process.nvml import Health, health
from resnet.tools import check_node
from resnet.tools.check_node import partner, unhealthy, wrong_products
from tests.processes import start_ranks, wait_ranks


def test_a_single_wrong_number_in_a_product_is_found(monkeypatch):
    cpu = torch.device("cpu")
    assert wrong_products(cpu, 0.01) == []
    multiply, calls = torch.Tensor.__matmul__, []

    def flipping(left, right):
        product = multiply(left, right)
        calls.append(product)
        if product.dtype == torch.float32 and len(calls) == 7:
            product.view(torch.int32)[17, 200] ^= 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", flipping)
    assert wrong_products(cpu, 0.0) == ["cpu: 1 wrong numbers in 10 known products (float32)"]


@pytest.mark.parametrize(("nodes", "local_ranks"), [(2, 1), (3, 2), (4, 8), (7, 1), (128, 8)])
def test_each_node_is_measured_with_another_and_with_two_where_there_are_as_many(nodes, local_ranks):
    world = nodes * local_ranks
    met: dict[int, set[int]] = {node: set() for node in range(nodes)}
    for shift in (0, 1):
        for rank in range(world):
            other = partner(rank, world, local_ranks, shift)
            if other is not None:
                assert partner(other, world, local_ranks, shift) == rank
                assert other % local_ranks == rank % local_ranks
                met[rank // local_ranks].add(other // local_ranks)
    alone = {0, nodes - 1} if nodes % 2 else set()
    for node, others in met.items():
        assert len(others) == (1 if nodes == 2 or node in alone else 2)
        assert node not in others


def test_one_rank_has_no_partner():
    assert partner(0, 1, 1, 0) is None
    assert partner(3, 8, 8, 1) is None


def test_ranks_look_alone_and_together(tmp_path):
    (tmp_path / "slurm").mkdir()
    data = f"data={{source: csv, train: {tmp_path}/none.csv, val: /dev/null}}"
    (tmp_path / "slurm" / "recipe.yaml").write_text(dump(load(["recipe=quickstart", data]).recipe))

    def program(argv):
        rank = os.environ["RANK"]
        os.environ.update(SLURM_PROCID=rank, SLURM_LOCALID="0", SLURM_NTASKS="3", SLURM_NNODES="3")
        os.environ["SLURMD_NODENAME"] = f"n{rank}"
        return check_node.main([*argv])

    output = tmp_path / "check.log"
    assert wait_ranks(start_ranks([str(tmp_path)], 3, output, program), 60) == [0, 0, 0]
    rows = told(output.read_text())
    alone = {row["node"]: row for row in rows if "bad" in row}
    joined = {row["node"]: row for row in rows if "clock" in row}
    assert {*alone} == {*joined} == {"n0", "n1", "n2"}
    for row in alone.values():
        assert (row["device"], row["bad"]) == ("cpu", [])
        assert row["facts"]["unreadable"] == [f"data.train={tmp_path}/none.csv: No such file or directory"]
        assert row["facts"]["tmp_gb"] > 0
    for row in joined.values():
        assert row["backend"] == "gloo"
        assert min(row["pair_gbs"], row["all_reduce_gbs"]) > 0
        assert abs(row["clock"] - joined["n0"]["clock"]) < 2


def test_by_nvidias_word_a_gpu_is_not_to_be_used():
    well = Health(0, False, False, [], 40, 1980, 1980)
    assert unhealthy(well) == []
    assert unhealthy(Health(*[None] * 3, [], *[None] * 3)) == []
    ill = Health(2, True, True, ["slowed"], 90, 300, 1980)
    assert [words.partition(" ")[0] for words in unhealthy(ill)] == ["2", "a", "bad", "slowed"]


DRIVER = """
#include <string.h>
typedef unsigned u;
typedef unsigned long long ull;
static void *gpu = (void *)0x123456789abcL;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **d) { *d = gpu; return strcmp(uuid, "GPU-1") ? 6 : 0; }
static int known(void *d) { return d == gpu ? 0 : 2; }
int nvmlDeviceGetTotalEccErrors(void *d, int type, int counter, ull *n) {
    *n = (1ULL << 40) + 10 * type + counter;
    return known(d);
}
int nvmlDeviceGetRemappedRows(void *d, u *corrected, u *uncorrected, u *pending, u *failed) {
    *corrected = 3; *uncorrected = 2; *pending = 1; *failed = 0;
    return known(d);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, ull *bits) { *bits = 0x4 | 0x40; return known(d); }
int nvmlDeviceGetTemperature(void *d, int sensor, u *celsius) { *celsius = 41 + sensor; return known(d); }
int nvmlDeviceGetClockInfo(void *d, int type, u *mhz) { *mhz = 1000 + type; return 3; }
int nvmlDeviceGetMaxClockInfo(void *d, int type, u *mhz) { *mhz = 1980 + type; return known(d); }
"""
"""With the signatures of nvml.h; a clock it does not know (3: not supported), and retired pages not at all."""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_drivers_answers_are_read_by_the_signatures_of_nvml(tmp_path, monkeypatch):
    (tmp_path / "nvml.c").write_text(DRIVER)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    load = ctypes.CDLL
    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: load(str(tmp_path / name)))
    assert health("GPU-1") == Health(
        ecc_errors=2**40 + 10,
        remap_pending=True,
        remap_failed=False,
        slowed=["slowed down by its hardware for heat (HW thermal slowdown)"],
        celsius=41,
        sm_mhz=None,
        most_sm_mhz=1981,
    )
    assert health("GPU-2") is None
    monkeypatch.undo()
    assert health("GPU-1") is None
