"""Let two clusters race for one run, again and again, kill and stall what has a part in it, and see that one trains.

    python -m tests.bench.cluster_race --races 36 [--seed 0]

Two Slurms side by side call themselves the same and number their jobs alike. What stands for the ranks (tests/stand_in)
takes the run's lease, makes 25 steps of a tenth of a second that each leave a checkpoint, and writes down who made
which. A race is right where the run ends finished, all steps were made, none of them by two jobs in turns, and not more
of them twice than ranks were killed in the middle of one. Kinds, one after the other:

    at once         both clusters become free at the same moment
    winner killed   so too, and the first batch script to claim the run is killed (-9), at some moment in the next 3 s
    goes back       the ranks are told to save and stop, and the run goes on wherever it next starts, both being free
    slow            both controllers stand still for 8 s from the moment the clusters become free
    unreachable     the controller of the one that lost does not answer until the run is over
    preempted       Slurm requeues the winner's job without a warning

Where a job was killed and no other waits any more, `launch retry` sends the run again, as a user would: it is counted.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from recipes.text import table
from resnet.rundir.files import read_lines
from slurm.claim import newest_claim
from tests.helpers import status
from tests.racing import NAMES, Two, batch_scripts, holder, two_clusters, verdict
from tests.stand_in import MADE

RETRIES = 3
WINNER_SECONDS = 3.0
SLOW_SECONDS = 8.0


def at_once(two: Two, run: Path, chance: random.Random) -> None:
    two.free()


def winner_killed(two: Two, run: Path, chance: random.Random) -> None:
    two.free()
    two.wait("a claim", lambda: holder(run))
    time.sleep(chance.uniform(0, WINNER_SECONDS))
    for pid, request in batch_scripts(run).items():
        if request == holder(run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def goes_back(two: Two, run: Path, chance: random.Random) -> None:
    two.free()
    two.wait("steps", lambda: len(read_lines(run / MADE)) > 2)
    time.sleep(chance.uniform(0, 1))
    name, job_id = _winner(run)
    two.ask(name, "scancel", "--signal=USR2", job_id, code=None)


def slow(two: Two, run: Path, chance: random.Random) -> None:
    two.free()
    with two.stopped(*NAMES):
        time.sleep(SLOW_SECONDS)


def unreachable(two: Two, run: Path, chance: random.Random) -> None:
    first, other = chance.sample(NAMES, 2)
    with two.stopped(other):
        two.free(first)
        two.wait("the end", lambda: status(run).get("state") == "finished")
        time.sleep(1)
    two.free(other)


def preempted(two: Two, run: Path, chance: random.Random) -> None:
    two.free()
    two.wait("steps", lambda: len(read_lines(run / MADE)) > 2)
    name, job_id = _winner(run)
    two.ask(name, "scontrol", "requeue", job_id, code=None)


KINDS: dict[str, Callable[[Two, Path, random.Random], None]] = {
    "at once": at_once,
    "winner killed": winner_killed,
    "goes back": goes_back,
    "slow": slow,
    "unreachable": unreachable,
    "preempted": preempted,
}
KILLED_IN_A_STEP = {"winner killed": 1, "preempted": 1}
"""Steps that a kill in their middle lets be made twice."""


def _winner(run: Path) -> tuple[str, str]:
    """Cluster and job that have the run."""
    claim = newest_claim(run)
    assert claim
    assert claim.holder
    return Path(claim.holder["cluster"]).stem, claim.holder["job_id"]


def race(two: Two, number: int, kind: str, chance: random.Random) -> dict:
    """One of them; returns its row."""
    two.block()
    run = two.submit(f"race-{number}")
    begin = time.monotonic()
    KINDS[kind](two, run, chance)
    retries = 0
    told = two.wait_end(run)
    while told["state"] != "finished" and retries < RETRIES:
        retries += 1
        two.launch("retry", run)
        told = two.wait_end(run)
    two.free()
    seconds = time.monotonic() - begin
    found = verdict(run)
    right = found["state"] == "finished" and found["all"] and found["turns"] == 0
    right = right and found["twice"] <= KILLED_IN_A_STEP.get(kind, 0)
    return {
        "race": number,
        "kind": kind,
        "trained by": ", ".join(found["by"]),
        "state": found["state"],
        "twice": found["twice"],
        "turns": found["turns"],
        "retries": retries,
        "s": round(seconds),
        "right": "yes" if right else "NO",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--races", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these")
    arguments = parser.parse_args()
    chance, kinds, found = random.Random(arguments.seed), arguments.kind or [*KINDS], []
    with tempfile.TemporaryDirectory(prefix="race-") as folder, two_clusters(Path(folder)) as two:
        for number in range(1, arguments.races + 1):
            row = race(two, number, kinds[(number - 1) % len(kinds)], chance)
            found.append(row)
            print(*row.values(), sep="  ", flush=True)
    print("\n".join(table({key: [str(row[key]) for row in found] for key in found[0]}, None)))
    count = collections.Counter((row["kind"], row["right"]) for row in found)
    for kind in kinds:
        print(f"{kind}: {count[kind, 'yes']} of {count[kind, 'yes'] + count[kind, 'NO']} right")


if __name__ == "__main__":
    main()
