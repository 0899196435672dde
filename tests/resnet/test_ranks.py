"""Ranks as real processes: what they tell one another, how they agree, and what that costs them."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from recipes.load import load_values
from recipes.plan import make_plan
from resnet.agreement import NOTHING, SAVE, STOP, Agreement
from resnet.failure import explain
from resnet.main import main
from resnet.process.exit_codes import MISTAKE
from resnet.process.mistakes import OfAllRanks, OfOneRank
from resnet.process.open_files import allow_open_files
from resnet.ranks import (
    _gather_as_sums,
    first_of_ranks,
    gather,
    least_of_ranks,
    leave_ranks,
    of_all_ranks,
    of_node,
    processes_of_node,
    together,
    wait_beside,
)
from tests.bench import ranks as bench
from tests.helpers import OFF
from tests.processes import start_ranks, wait_ranks


def on_ranks(ranks: int, output: Path, what: Callable[[int], object]) -> list[int]:
    """Call something on so many ranks, which have joined, with the number of each; their exit codes."""

    def program(_: object) -> int:
        os.environ["TORCH_GLOO_LAZY_INIT"] = "1"
        dist.init_process_group("gloo")
        what(dist.get_rank())
        leave_ranks()
        return 0

    return wait_ranks(start_ranks([], ranks, output, program), 60)


def test_what_ranks_tell_one_another(tmp_path):
    def talk(rank: int) -> None:
        assert of_all_ranks(f"rank {rank}") == [f"rank {other}" for other in range(5)]
        kept = _get_default_store().num_keys()
        for turn in range(10):
            assert first_of_ranks(rank + turn if rank in (2, 4) else None) == 2 + turn
            assert least_of_ranks(10 - rank) == 6
            assert of_node(rank or None) == 1
            assert first_of_ranks(None) is None
        if rank == 0:
            # Besides those of ranks that have come to the next exchange already.
            assert _get_default_store().num_keys() <= kept + 5

        def task() -> int:
            if rank in (1, 3):
                raise ValueError(f"the mistake of rank {rank}")
            return rank

        with pytest.raises(OfAllRanks, match="the mistake of rank 1"):
            together(task)
        assert together(lambda: rank) == rank
        mine = torch.arange(6, dtype=torch.float64).view(2, 3) + 10 * rank
        found = gather(mine)
        assert (found is None) == (rank > 0)
        if found is not None:
            assert torch.equal(found, torch.stack([mine + 10 * other for other in range(5)]))
        assert gather(torch.empty(0)) is not None
        # As with NCCL, two ranks at a time, bit for bit.
        mine = torch.tensor([-0.0, torch.nan, rank, 1e-45]).view(2, 2)
        found = _gather_as_sums(mine, memory=40)
        assert (found is None) == (rank > 0)
        if found is not None:
            wanted = torch.stack([torch.tensor([-0.0, torch.nan, other, 1e-45]).view(2, 2) for other in range(5)])
            assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))

    assert on_ranks(5, tmp_path / "out.txt", talk) == [0] * 5, (tmp_path / "out.txt").read_text()


def test_a_wish_is_granted_to_all_at_the_same_step_one_late_beside_the_gradients(tmp_path):
    wishes = {(2, 1): SAVE, (5, 3): STOP, (5, 0): SAVE}
    """By step and rank."""

    def steps(rank: int) -> None:
        agreement, sums, granted = Agreement(torch.device("cpu")), torch.zeros(1000), []
        for step in range(8):
            time.sleep(0.02 * (rank == step % 4))
            work = dist.all_reduce(sums.fill_(rank), async_op=True)
            granted.append(agreement.reach(wishes.get((step, rank), NOTHING)))
            assert work is not None
            work.wait()
            assert sums.eq(6).all()
        assert granted == [NOTHING] * 3 + [SAVE, NOTHING, NOTHING, STOP, NOTHING]

    assert on_ranks(4, tmp_path / "out.txt", steps) == [0] * 4, (tmp_path / "out.txt").read_text()


@pytest.mark.parametrize("lost_rank", [0, 2])
def test_the_loss_of_a_rank_is_that_of_a_peer(lost_rank, tmp_path):
    plan = make_plan(load_values("quickstart", {"batch_size": 16}).recipe, 160, 1)

    def lose(rank: int) -> None:
        of_all_ranks(rank)
        if rank == lost_rank:
            time.sleep(1)
            os._exit(0)
        with pytest.raises(dist.DistError) as lost:
            first_of_ranks(rank)
        # Rank 0 holds the store of the others, who notice that it is gone.
        assert explain(lost.value, plan).kind == "peer"

    assert on_ranks(3, tmp_path / "out.txt", lose) == [0] * 3, (tmp_path / "out.txt").read_text()


def test_a_wait_for_the_device_ends_with_a_rank_of_the_machine(tmp_path):
    """As where NCCL waits for one that was killed, without a sign of it."""

    def wait(rank: int) -> None:
        processes = processes_of_node()
        assert len(processes) == 3
        # All have looked by now.
        assert least_of_ranks(rank) == 0
        wait_beside(processes, iter([False, False, True]).__next__)
        if rank == 1:
            os._exit(0)
        with pytest.raises(dist.DistNetworkError, match="remote process exited"):
            wait_beside(processes, lambda: False)
        time.sleep(1)
        os._exit(0)

    assert on_ranks(3, tmp_path / "out.txt", wait) == [0] * 3, (tmp_path / "out.txt").read_text()


def test_eight_ranks_join_train_agree_to_stop_save_and_leave():
    row = bench.measure(8)
    assert max(row["files"], row["files_0"]) <= 64 + 8
    assert row["threads"] <= 16


def test_a_rank_that_may_not_open_enough_files_says_so_itself(tmp_path):
    def train(_: object) -> int:
        if os.environ["RANK"] == "0":
            return 0
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        return main(["recipe=quickstart", *OFF, f"run.root={tmp_path}"])

    assert wait_ranks(start_ranks([], 2, tmp_path / "out.txt", train), 60) == [0, MISTAKE]
    assert (tmp_path / "out.txt").read_text().startswith("train.py: rank 1 needs 256 open files, and ")


@pytest.fixture
def few_files() -> Iterator[int]:
    """The hard limit, while the soft one is low."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_open_files_is_raised_or_named(few_files):
    allow_open_files(2, 0)
    allowed, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (allowed, hard) == (2**16 if few_files < 0 else min(few_files, 2**16), few_files)
    with pytest.raises(
        OfOneRank, match=rf"^rank 0 of {allowed} ranks needs {allowed + 256} open files, .* allows {allowed} .*-Hn"
    ):
        allow_open_files(allowed, 0)
    # The others have no connections but to it and to neighbours.
    allow_open_files(allowed, 1)
