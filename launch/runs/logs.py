"""The logs that the ranks of a run, and its batch scripts, leave."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

from launch.runs.job_record import read_job
from resnet.process.rank_logs import on_node, output_name
from resnet.rundir.attempts import read_attempts
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import status_or_nothing

TAIL_BYTES = 32_768


def attempts(run_dir: Path) -> list[int]:
    """Numbers of the attempts that have logs of their own (under Slurm), in order."""
    found = (re.fullmatch(r"attempt-(\d+)", path.name) for path in (run_dir / "logs").glob("attempt-*"))
    return sorted(int(match[1]) for match in found if match)


def log_files(run_dir: Path, attempt: int | None = None) -> dict[int, Path]:
    """The log of each rank in an attempt, by default the newest; without Slurm a rank has one for all attempts."""
    known = attempts(run_dir)
    folder = run_dir / "logs"
    if known:
        folder /= f"attempt-{known[-1] if attempt is None else attempt}"
    # Where the ranks never began, the logs of what was to bring them their data.
    for names in ("rank", "stage"):
        found = ((re.fullmatch(rf"{names}-(\d+)\.log", path.name), path) for path in folder.glob(f"{names}-*.log"))
        if logs := dict(sorted((int(match[1]), path) for match, path in found if match)):
            return logs
    return {}


def log_file(run_dir: Path, rank: int, attempt: int | None = None) -> Path | None:
    """The log of a rank, if there is one yet."""
    return log_files(run_dir, attempt).get(rank)


def place_of_log(run_dir: Path, rank: int, attempt: int | None = None) -> str | None:
    """Where the log of a rank that kept none in the run directory is, or was; None: the attempt had no such rank."""
    with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
        ranks = read_provenance(run_dir)["world_size"]
        of_job = [row for row in read_attempts(run_dir) if attempt in (None, row["attempt"])]
        if rank >= ranks:
            return None
        if not of_job:
            return f"of {ranks} ranks only the first keeps its log, and those that fail"
        number, nodes = of_job[-1]["attempt"], of_job[-1]["nodes"]
        node, file = nodes[rank * len(nodes) // ranks], on_node(run_dir, number, output_name(rank))
        kept = "slurm.rank_logs=all keeps all ranks' logs in the run directory"
        if "end" in of_job[-1]:
            # It stays where the batch script was killed with the ranks.
            return f"rank {rank}'s log was on {node}, in {file}, and is removed when a job has ended; {kept}"
        return f"rank {rank}'s log is on {node}, in {file}, until it ends; {kept}"
    return None


def newest_batch_files(run_dir: Path) -> list[Path]:
    """Output of the newest batch script, and its errors if there are any."""
    folder, job = run_dir / "slurm", None
    with contextlib.suppress(ValueError, OSError):
        job = read_job(run_dir)
    # Of several jobs that waited for the run each has a folder of its own; one that came too late writes there too.
    own = [*(folder / job.request).glob("*_log.out")] if job and job.request else []
    found = own or [*folder.glob("*_log.out"), *folder.glob("request-*/*_log.out")]
    files = sorted(found, key=lambda file: file.stat().st_mtime)
    if not files:
        return []
    errors = files[-1].with_suffix(".err")
    return [files[-1], errors] if errors.is_file() and errors.stat().st_size else [files[-1]]


def first_failure(run_dir: Path) -> tuple[int, str] | None:
    """The rank of the newest attempt that failed first, and not because another was gone; and how, in a line."""
    start = 0.0
    with contextlib.suppress(ValueError, OSError, KeyError, IndexError, TypeError):
        start = float(read_provenance(run_dir)["attempts"][-1]["start"])
    records, folders = [], ["", *(f"attempt-{number}/" for number in attempts(run_dir)[-1:])]
    for file in [path for folder in folders for path in (run_dir / "logs").glob(f"{folder}failure-*.json")]:
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
            record = json.loads(file.read_bytes())
            # A file of an attempt before is left where that had more ranks. Machines' clocks differ a little.
            if record["time"] > start - 60:
                how = f"rank {record['rank']} on {record['host']}, after step {record['step']}: {record['reason']}"
                records.append((record["own_fault"] is False, record["time"], record["rank"], how))
    own = [record for record in records if not record[0]]
    # Where all failed since one was gone, that one left no record, and the run's reason names it.
    told = None if own else re.match(r"rank (\d+) on .*", str(status_or_nothing(run_dir).get("reason")))
    if told:
        return int(told[1]), told[0]
    return min(own or records)[2:] if records else None


def tail(file: Path, count: int, begin: int = 0) -> list[str]:
    """The last lines of a log, of those from a byte on."""
    try:
        with open(file, "rb") as log:
            log.seek(max(begin, log.seek(0, 2) - TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n") if line.strip()][-count:]
