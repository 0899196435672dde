"""What sinfo and squeue say of a partition's nodes, and of who waits for them."""

import pytest

from slurm import room as module
from slurm.room import others_wait, room

SINFO = """\
low*|30:00|idle|n1
long|2-00:00:00|idle|n1
low*|30:00|mix|n2
long|2-00:00:00|mix|n2
long|2-00:00:00|idle~|n3
long|2-00:00:00|idle*|n4
long|2-00:00:00|plnd|n5
other|infinite|idle|n6
"""


@pytest.fixture
def answers(monkeypatch) -> dict[str, str]:
    """By the command's name."""
    told = {"sinfo": SINFO, "squeue": ""}
    monkeypatch.setattr(module, "ask", lambda command, seconds=None, client=None: told[command[0]])
    return told


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        (None, (30, 1, ("long", "low"))),
        ("low", (30, 1, ("long", "low"))),
        ("long", (2880, 3, ("long", "low"))),
        # Each node once, and the smaller limit.
        ("low,long", (30, 3, ("long", "low"))),
        ("other", (None, 1, ("other",))),
    ],
)
def test_what_partitions_have(answers, partition, expected):
    assert tuple(room(partition)) == expected


def test_a_partition_that_slurm_does_not_show_is_not_one_without_a_limit(answers):
    with pytest.raises(ValueError, match="sinfo shows no nodes of partition secret"):
        room("secret")
    answers["sinfo"] = "other|infinite|idle|n6\n"
    with pytest.raises(ValueError, match="a default partition"):
        room(None)


@pytest.mark.parametrize(
    ("queue", "waits"),
    [
        ("", False),
        ("|Resources\n", True),
        ("N/A|Dependency\n|Priority\n", True),
        ("|None\n", True),
        # Nodes are planned for it, whatever keeps it.
        ("n[2-3]|QOSMaxJobsPerUserLimit\n", True),
        # Those that wait for something else do not keep a run from growing.
        ("|Dependency\n|JobHeldUser\n(null)|BeginTime\n|QOSMaxJobsPerUserLimit\n|JobArrayTaskLimit\n", False),
    ],
)
def test_who_waits_for_nodes(answers, queue, waits):
    answers["squeue"] = queue
    assert others_wait(("low", "long")) == waits
