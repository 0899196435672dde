"""How long a person waits: for a mistake to be told, for the first step, and for the prompt after the last line.

    python -m tests.bench.start [--rounds N] [--program FOLDER ...] [KEY=VALUE ...]
    python -m tests.bench.start --ranks 2 [--slurm FOLDER] [--program FOLDER ...] [KEY=VALUE ...]

Times `python train.py recipe=quickstart max_steps=2` as it is typed, W&B offline. --program: other checkouts, which
take turns with this one. With --ranks: what each of so many ranks asks of the file system until its first step is done,
by strace, and its seconds by stage without; --slurm: on the test cluster of that folder (`slurm.testcluster up`), two
ranks a node, without the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from resnet.process.environment import PROGRAM
from resnet.process.stages import STAGES
from tests.bench.machine import facts, headline
from tests.bench.start_calls import MARKS, counted, parts, table, traced
from tests.processes import free_port


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.start", description="time starts and ends")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=0, help="count calls of so many ranks instead")
    parser.add_argument("--slurm", type=Path, help="folder of a test cluster on which they are to run")
    parser.add_argument("--program", nargs="+", type=Path, default=[], help="other checkouts")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    print(headline(facts()))
    programs = [PROGRAM, *given.program]
    if given.ranks:
        count_calls(programs, given.ranks, given.slurm, given.words)
        return 0
    found: dict[Path, list[dict[str, float]]] = {program: [] for program in programs}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds + 1):
            for program in programs:
                seconds = one_start(program, Path(folder), f"{program.name}-{number}", given.words)
                # In the first round the images are drawn, and files come from the disk.
                if number:
                    found[program].append(seconds)
    for program, rounds in found.items():
        print(f"\n{program}, seconds, median of {given.rounds} (least to most)")
        for what in rounds[0]:
            values = [seconds[what] for seconds in rounds]
            print(f"  {what:42}{statistics.median(values):7.2f}  ({min(values):.2f} to {max(values):.2f})")
    return 0


def one_start(program: Path, root: Path, name: str, words: list[str]) -> dict[str, float]:
    """Seconds of a mistake, and of a run of two steps."""
    start = time.perf_counter()
    _start(program, root, "recipe=quickstart", "optimizer.lrr=1").communicate()
    mistake = time.perf_counter() - start
    fixed = ["max_steps=2", "log_every=1", "wandb.mode=offline", f"run.root={root}", f"run.name={name}"]
    start = time.perf_counter()
    process = _start(program, root, "recipe=quickstart", f"data.train={root}/shapes", *fixed, *words)
    printed: list[float] = []
    reader = threading.Thread(target=lambda: [printed.append(time.perf_counter()) for _ in process.stdout or ()])
    reader.start()
    while process.poll() is None and not _has_stepped(root / name / "status.json"):
        time.sleep(0.01)
    stepped = time.perf_counter()
    process.wait()
    ended = time.perf_counter()
    reader.join()
    if process.returncode:
        raise RuntimeError(f"{program}: train.py left with {process.returncode}")
    return {
        "a mistake on the command line is told": mistake,
        "first step done": stepped - start,
        "from the last line to the prompt": ended - printed[-1],
        "two steps, evaluation, report: all of it": ended - start,
    }


def count_calls(programs: list[Path], ranks: int, cluster: Path | None, words: list[str]) -> None:
    """Print for each program what its ranks do at their start."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        for number, program in enumerate(programs):
            root = Path(folder) / str(number)
            root.mkdir()
            data = root / "shapes"
            keys = [
                "recipe=quickstart",
                "max_steps=1",
                "wandb.mode=disabled",
                f"data.train={data}",
                f"run.root={root / 'runs'}",
            ]
            # Which draws the images.
            plain = [word for word in words if not word.startswith("slurm.")]
            _run_ranks(program, ranks, root, [*keys, "run.name=first", *plain], {})
            print(f"\n{program}, {ranks} ranks{' of a job' if cluster else ''}")
            run_dir = root / "runs" / "counted"
            again = [*keys, "run.name=counted", *words]
            if cluster:
                files = _trace_job(program, ranks, root, cluster, again)
            else:
                environment = {"START_MARKS": str(root)}
                _run_ranks(program, ranks, root, [*keys, "run.name=timed", *words], environment)
                _print_seconds(root, ranks)
                _run_ranks(program, ranks, root, again, {}, trace=root / "trace")
                files = {rank: [*root.glob(f"trace-{rank}.*")] for rank in range(ranks)}
            for rank, traces in files.items():
                print(f"rank {rank}")
                print(table(counted(traces, parts(program, run_dir, data))))


def _run_ranks(
    program: Path, ranks: int, root: Path, words: list[str], environment: dict[str, str], trace: Path | None = None
) -> None:
    """Train on so many ranks, each started as torchrun would."""
    port, processes = free_port(), []
    for rank in range(ranks):
        of_rank = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        of_rank |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": MARKS, "OMP_NUM_THREADS": 1}
        command = [
            *(traced(Path(f"{trace}-{rank}")) if trace else []),
            sys.executable,
            str(program / "train.py"),
            *words,
        ]
        variables = os.environ | {key: str(value) for key, value in of_rank.items()} | environment
        with open(root / f"rank-{rank}.out", "ab") as log:
            processes.append(subprocess.Popen(command, cwd=root, env=variables, stdout=log, stderr=log))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError((root / "rank-0.out").read_text())


def _trace_job(program: Path, ranks: int, root: Path, cluster: Path, words: list[str]) -> dict[int, list[Path]]:
    """Let a job of two ranks a node train; returns the traces of each rank."""
    starter = root / "traced.sh"
    traced_command = f"{' '.join(traced(root / 'trace'))}-$SLURM_PROCID"
    starter.write_text(f'case "$*" in *slurm.batch*) exec "$@" ;; *) exec {traced_command} "$@" ;; esac\n')
    slurm = ["cluster=local-test", f"slurm.nodes={max(1, ranks // 2)}", f"slurm.gpus_per_node={min(2, ranks)}"]
    slurm += [f"slurm.python=sh {starter} {sys.executable}", "slurm.time=10", f"slurm.environment.PYTHONPATH={MARKS}"]
    command = [sys.executable, "-m", "launch", "submit", *words, *slurm]
    environment = os.environ | {"SLURM_CONF": str(cluster / "slurm.conf"), "PYTHONPATH": str(program)}
    subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
    status = root / "runs" / "counted" / "status.json"
    while (state := json.loads(status.read_text())["state"]) in ("queued", "running"):
        time.sleep(1)
    if state != "finished":
        raise RuntimeError(status.read_text())
    # The job has yet to remove its copies.
    while subprocess.run(["squeue", "-h"], env=environment, capture_output=True).stdout.strip():
        time.sleep(1)
    return {rank: [*root.glob(f"trace-{rank}.*")] for rank in range(ranks)}


def _print_seconds(root: Path, ranks: int) -> None:
    """What each stage took on the rank that took longest."""
    of_ranks = [json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
    for stage in of_ranks[0]:
        print(f"  {STAGES[stage]:40}{max(seconds.get(stage, 0.0) for seconds in of_ranks):7.2f} s")


def _start(program: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(program / "train.py"), *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _has_stepped(status: Path) -> bool:
    try:
        return json.loads(status.read_text()).get("step", 0) >= 1
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    raise SystemExit(main())
