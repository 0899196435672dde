"""When a job would start that is not sent: `sbatch --test-only`. Only the standard library, Python 3.9."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from slurm.control import TIMEOUT_SECONDS, without_other_jobs
from slurm.patience import is_silence


class Answer(NamedTuple):
    """Slurm's."""

    refused: bool
    """Whether it would not take the job."""
    start: float | None
    """Unix time; None where it names none."""
    preempts: int
    """Jobs that would have to make room."""
    said: str
    """Its own words."""


def ask_start(
    script: Path | str,
    options: Sequence[str],
    client: Mapping[str, str] | None = None,
    seconds: float = TIMEOUT_SECONDS,
) -> Answer:
    """What Slurm says of a job of this batch script. Raises ValueError where it does not answer.

    options: of sbatch, that go before the script's own. client: variables that choose the cluster. seconds: to wait.
    """
    command = ["sbatch", "--test-only", *options, str(script)]
    try:
        with without_other_jobs(client):
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ValueError(f"Slurm does not answer: sbatch took more than {seconds:g} s") from None
    except OSError as error:
        raise ValueError(f"sbatch cannot be run: {error.strerror}") from error
    said = " ".join(done.stderr.replace("sbatch:", "").split())
    if done.returncode and is_silence(said):
        raise ValueError(f"Slurm does not answer: {said}")
    found = re.search(r"to start at (\d+-\d+-\d+T\d+:\d+:\d+)", said)
    start = time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) if found else None
    preempted = re.search(r"Preempts: (\S+)", said)
    return Answer(done.returncode != 0, start, len(preempted[1].split(",")) if preempted else 0, said)
