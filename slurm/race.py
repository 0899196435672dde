"""A run that waits with several jobs is trained by the one that starts first. Standard library, Python 3.9.

Whoever starts claims the run (`slurm.claim`) before anything else, and cancels the others; on its way back to the queue
it lets go of the claim, and sends the others again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from resnet.process.environment import cluster_name, job_id
from resnet.process.exit_codes import FAILED, FINISHED
from resnet.rundir.lease import STALE_SECONDS as LEASE_SECONDS
from resnet.rundir.lease import holder_elsewhere
from resnet.rundir.status import status_or_nothing
from slurm import claim as claims
from slurm.claim import Claim, follow, newest_claim
from slurm.queue import STARTED, WAITING
from slurm.record import tell
from slurm.requests import Sent, all_sent, arrive, cancel_waiting, say, send_again, sent_with, state_of

TOKEN = "token"
"""File in the run's folder `slurm`: which submission is the newest, and, by its inode, that this is the same folder."""
LOOK_SECONDS = 1.0
ASK_SECONDS = 5.0
"""From one question for the state of a claim's holder to the next."""
CANCEL_AGAIN_SECONDS = (15.0, 60.0, 300.0)
"""After the first time, for requests that could not be reached, or were being sent, or were ending at that moment."""
LEAVE_SECONDS = 5.0
"""At the end of a run, for a request that is still on its way back to the queue."""
SEND_AGAIN_SECONDS = 20.0
"""For sending the others again: less than the half minute (Slurm's KillWait) that a job lives which it has requeued."""
ENDS = ("finished", "failed", "stopped")
"""States of a run that is over, for those that wait for it too."""


class Race:
    """The claim of this job, from `enter` to `let_go` or `end`."""

    def __init__(self, run_dir: Path, claim: Claim, token: str) -> None:
        self.run_dir, self.claim = run_dir, claim
        self.token = token
        """Of the submission, which all requests of the run share."""
        self.lost = False
        """Whether another job has taken the run over, as this one gave no sign of life."""
        self._environment = sent_with()
        self._left = {one.name for one in self._others()}
        """Requests that may yet start, or go back to the queue."""
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._keep, self._cancel_others)]
        for thread in self._threads:
            thread.start()

    def _keep(self) -> None:
        while not self._ended.wait(claims.BEAT_SECONDS):
            try:
                claims.beat(self.run_dir, self.claim)
                newest = newest_claim(self.run_dir)
            except (OSError, ValueError):
                continue
            if newest and newest.number > self.claim.number and not self._ended.is_set():
                self.lost = True
                who = holder_in_words(newest) if newest.holder else "another job"
                say(f"{who} has taken the run over")
                return

    def _cancel_others(self) -> None:
        for pause in (*CANCEL_AGAIN_SECONDS, None):
            self._cancel_left()
            if not self._left or pause is None or self._ended.wait(pause):
                return

    def _cancel_left(self, at_end: bool = False) -> None:
        """at_end: also where the run is let go of, when the others are to wait again."""
        with contextlib.suppress(OSError, ValueError):
            # Read anew: one that was being sent has its id by now.
            left = [one for one in self._others() if one.name in self._left]
            self._left = {one.name for one in left if (self._ended.is_set() and not at_end) or cancel_waiting([one])}

    def _others(self) -> list[Sent]:
        own = self.claim.content["request"], self.claim.content["job_id"]
        return [one for one in all_sent(self.run_dir) if (one.name, one.job_id) != own]

    def let_go(self) -> bool:
        """Let another job have the run, as this one goes back to the queue; returns whether this one still had it."""
        return self._stop() and self._follow({"free": self.claim.content["request"]})

    def send_others(self) -> bool:
        """Have the run wait everywhere again, after `let_go`, and say so; returns whether it waits anywhere else."""
        try:
            sent = send_again(self._others(), self._environment, time.monotonic() + SEND_AGAIN_SECONDS)
        except (OSError, ValueError) as error:
            say(f"the run waits in one place: {error}")
            return False
        for one in sent:
            say(one.line)
        return any(one.waits for one in sent)

    def end(self) -> None:
        """Note that the run is over, unless it goes on in the queue, or has been taken over."""
        if not self._stop():
            return
        status, own = status_or_nothing(self.run_dir), self.claim.content
        # Where another process trains it, it is not over.
        is_over = status.get("state") in ENDS and status.get("failure") != "lease"
        self._follow({**own, "over": status["state"]} if is_over else {"free": own["request"]})
        if is_over:
            self._cancel_left(at_end=True)
        if is_over and self._left:
            # One that went back to the queue a moment ago takes some seconds to be there.
            time.sleep(LEAVE_SECONDS)
            self._cancel_left(at_end=True)

    def is_followed(self) -> bool:
        """Whether another job has had the run since this one has let go of it."""
        with contextlib.suppress(OSError, ValueError):
            newest = newest_claim(self.run_dir)
            return newest is not None and newest.number > self.claim.number + 1
        return False

    def _follow(self, content: dict[str, Any]) -> bool:
        """Make the next claim; returns whether nobody else has."""
        try:
            return follow(self.run_dir, self.claim, content) is not None
        except OSError as error:
            # Those that come later ask Slurm for this job. That it goes back to the queue matters more.
            say(f"the claim of {self.run_dir.name} could not be changed: {error}")
            return True

    def _stop(self) -> bool:
        """Give no more signs of life; returns whether the claim is still to be let go of."""
        first = not self._ended.is_set()
        self._ended.set()
        # A beat that came later would be that of nobody.
        self._threads[0].join(claims.BEAT_SECONDS)
        return first and not self.lost


def enter(run_dir: Path, request: dict[str, Any]) -> Race | int:
    """Claim the run for this job, or the exit code with which it is to end.

    request: what the submission wrote of this job: its name, the token, and the inode of the token's file.
    """
    if (code := _wrong_place(run_dir, request)) is not None:
        return code
    own = {"request": request["name"], "job_id": job_id(), "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0"))}
    own |= {"cluster": cluster_name(), "name": run_dir.name, "host": socket.gethostname(), "time": time.time()}
    claim = None
    try:
        arrive(run_dir, request["name"], own["job_id"])
        claim = take(run_dir, own)
        if claim is None:
            return FINISHED
        # To take it may have lasted for minutes.
        if (code := _wrong_place(run_dir, request)) is not None:
            follow(run_dir, claim, {"free": request["name"]})
            return code
        race = Race(run_dir, claim, request["token"])
    except (OSError, ValueError) as error:
        say(f"{run_dir.name} cannot be claimed: {error}")
        with contextlib.suppress(OSError):
            if claim:
                follow(run_dir, claim, {"free": request["name"]})
        _tell_failed(run_dir, f"the run cannot be claimed: {error}")
        return FAILED
    _await_lease(run_dir)
    return race


def _tell_failed(run_dir: Path, why: str) -> None:
    """Unless another job has the run."""
    with contextlib.suppress(OSError, ValueError):
        newest = newest_claim(run_dir)
        if not (newest and newest.holder):
            tell(run_dir, state="failed", reason=why, failure="disk", eta_s=None)


def _wrong_place(run_dir: Path, request: dict[str, Any]) -> int | None:
    """The exit code of a job that may not touch the run: it was sent again since, or this is another folder."""
    file = run_dir / "slurm" / TOKEN
    try:
        token, inode = file.read_text(encoding="utf-8"), file.stat().st_ino
    except OSError as error:
        say(f"{file}: {error.strerror}: this cluster does not see the folder that the run was sent from (run_root)")
        return FAILED
    if token != request["token"]:
        say(f"{run_dir.name} was sent again since: this job is not needed")
        return FINISHED
    if inode != request["inode"]:
        say(
            f"{run_dir} is another folder here than where the run was sent from: a copy, or another file system of the "
            "same path (run_root must be one file system that all clusters share). Nothing was done."
        )
        return FAILED
    return None


def take(run_dir: Path, own: dict[str, Any]) -> Claim | None:
    """Claim the run; None where a live other has it, or it is over."""
    while True:
        before = newest_claim(run_dir)
        if before and before.over:
            say(f"{run_dir.name} is over ({before.over}): this job is not needed")
            return None
        if before and before.holder and not _is_own(before.holder, own) and not is_gone(run_dir, before):
            say(f"{holder_in_words(before)} trains {run_dir.name}: this job is not needed")
            return None
        if claim := follow(run_dir, before, own):
            return claim
        time.sleep(0.05)


def _is_own(holder: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether a claim is of an earlier start of the same job, which has ended where this one runs."""
    return all(holder.get(key) == own[key] for key in ("request", "job_id"))


def is_gone(run_dir: Path, claim: Claim) -> bool:
    """Whether the holder of a claim is over, or waits in the queue again: by its controller, or for want of life.

    Waits until one of them is known, or a sign of life is seen. One that is suspended gives none, and goes on.
    """
    holder = claim.content
    request = next((one for one in all_sent(run_dir) if one.name == holder["request"]), None)
    seen, asked, state = claims.last_beat(run_dir, claim), -ASK_SECONDS, None
    while True:
        if request and time.monotonic() - asked > ASK_SECONDS:
            state = state_of(request, holder["job_id"])
            if state is not None and (state in WAITING or state not in STARTED):
                return True
            asked = time.monotonic()
        now = newest_claim(run_dir)
        if now and now.number != claim.number:
            # Somebody was quicker; or it was let go of.
            return True
        if claims.last_beat(run_dir, claim) != seen:
            return False
        if claims.age(run_dir, claim) > claims.STALE_SECONDS:
            return state != "SUSPENDED"
        time.sleep(LOOK_SECONDS)


def _await_lease(run_dir: Path) -> None:
    """Wait for the lease of ranks that were killed with the job that had the run before: it ends by itself."""
    deadline = time.monotonic() + LEASE_SECONDS + 10
    while holder_elsewhere(run_dir) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def holder_in_words(claim: Claim) -> str:
    cluster = claim.content.get("cluster")
    return f"job {claim.content.get('job_id')}" + (f" on {cluster}" if cluster else "")
