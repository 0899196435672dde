"""What a job makes of what its ranks say of their nodes before training, and what of a rehearsal."""

from __future__ import annotations

from typing import Any

import pytest

from slurm.node_check import judge

NODES = ["n1", "n2", "n3"]


def alone(node: str, rank: int, device: str = "cuda", bad: tuple[str, ...] = (), **facts: Any) -> dict[str, Any]:
    return {"node": node, "rank": rank, "device": device, "bad": [*bad], "facts": facts, "after": 5.0}


def joined(node: str, rank: int, rate: float, clock: float = 0.0, backend: str = "nccl") -> dict[str, Any]:
    return {"node": node, "rank": rank, "clock": clock, "pair_gbs": rate, "all_reduce_gbs": 9.0, "backend": backend}


def begun(node: str, rank: int, after: float = 4.0) -> dict[str, Any]:
    return {"node": node, "rank": rank, "begun": after}


def of_all(*more: dict[str, Any], without: str = "") -> list[dict[str, Any]]:
    return [*(alone(node, rank) for rank, node in enumerate(NODES) if node != without), *more]


@pytest.mark.parametrize(
    ("rows_", "bad"),
    [
        (of_all(), {}),
        (of_all(alone("n2", 3, bad=("GPU 1: heat", "and more"))), {"n2": "GPU 1: heat"}),
        (of_all(without="n3"), {"n3": "no answer within 7 s"}),
        (of_all(alone("n1", 3, device="cpu")), {"n1": "rank 3 sees no GPU"}),
        (of_all(*(joined(node, rank, 10 - 6 * (node == "n2")) for rank, node in enumerate(NODES))), {"n2": "4 GB/s"}),
        # On CPUs that may be busy it is only told.
        (of_all(*(joined(n, rank, 10 - 6 * (n == "n2"), backend="gloo") for rank, n in enumerate(NODES))), {}),
        # Whom to blame cannot be known of two.
        (of_all(joined("n1", 0, 10), joined("n2", 1, 1)), {}),
        # Without GPUs on any of them none is missing.
        ([alone(node, rank, device="cpu") for rank, node in enumerate(NODES)], {}),
        # What all nodes do is no node's fault.
        ([alone(node, rank, bad=("wrong",)) for rank, node in enumerate(NODES)], {}),
        ([], {}),
    ],
)
def test_the_bad_node_is_named(rows_, bad):
    found = judge(rows_, NODES, 7.0)
    assert found.bad.keys() == bad.keys()
    assert all(why in found.bad[node] for node, why in bad.items())
    if bad:
        assert found.end is not None
        assert (found.end.outcome, found.end.failure, found.end.node) == ("killed", "node", next(iter(bad)))
    else:
        assert found.end is None


def test_what_is_no_reason_to_leave_a_node_out_is_told():
    rows_ = of_all(
        *(joined(node, rank, 10 - 6 * (node == "n2"), 5.0 * (node == "n3"), "gloo") for rank, node in enumerate(NODES)),
        alone("n1", 3, tmp_gb=0.2, shm_gb=30.0, unreadable=["data.train=/data: No such file or directory"]),
        {"node": "n2", "rank": 1, "trouble": "DistNetworkError: refused"},
    )
    found = judge(rows_, NODES)
    assert [*found.notes] == [
        "n1: 0.2 GB free in the folder for temporary files",
        "n1 cannot read data.train=/data: No such file or directory",
        "n3: its clock is +5.0 s off the others'",
        "n2: its network gives 4 GB/s, the median is 10",
        "n2: DistNetworkError: refused",
    ]
    assert found.all_reduce_gbs == 9.0
    many = judge([alone(f"n{number}", number, tmp_gb=0.1) for number in range(200)], [])
    assert len(many.notes) == 11
    assert many.notes[-1] == "... and 190 more such lines"
    [only] = judge([alone("n1", 0, bad=("wrong",))], ["n1"]).bad
    assert only == "n1"


@pytest.mark.parametrize(
    ("rows_", "seconds", "nodes", "bad", "notes"),
    [
        # A program that fails, files that all wait for: no node's fault, of one as little as of three.
        ([], 0.4, "n1", "", "no answer within 0 s from any node: srun ended with code 1: no torch"),
        ([], 121.0, "n1", "", "no answer within 121 s from any node: srun ended with code 1: no torch"),
        ([begun("n1", 0)], 3.0, "n1", "", "no answer within 3 s from any node: srun ended with code 1: no torch"),
        (
            [begun("n1", 0, 90.0)],
            121.0,
            "n1",
            "",
            "no answer within 121 s from any node: srun ended with code 1: no torch",
        ),
        ([alone("n1", 0)], 121.0, "n1 n2 n3", "", "n2: no answer within 121 s; n3: no answer within 121 s"),
        ([alone("n1", 0) | {"after": 110.0}], 121.0, "n1 n2", "", "n2: no answer within 121 s"),
        # A GPU that hangs, on the only node or of one rank of several.
        ([begun("n1", 0)], 121.0, "n1", "n1", ""),
        ([begun("n1", 0), alone("n1", 0), begun("n1", 1)], 121.0, "n1", "n1", ""),
        ([alone("n1", 0)], 121.0, "n1 n2", "n2", ""),
    ],
)
def test_a_node_without_an_answer_is_blamed_for_what_is_its_own(rows_, seconds, nodes, bad, notes):
    found = judge(rows_, nodes.split(), seconds, "srun ended with code 1: no torch")
    assert (" ".join(found.bad), "; ".join(found.notes)) == (bad, notes)
