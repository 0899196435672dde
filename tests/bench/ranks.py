"""What many ranks cost one another: how long they join, agree to stop, save and leave, and what each holds meanwhile.

    python -m tests.bench.ranks [--ranks 16 64 128 256] [--out FILE]

The ranks are forked from this process, which has imported everything, and wait for one another before they begin. They
train a tiny net by the program's own code, DDP over gloo, one thread each; in the fourth step the last rank is told to
stop by a signal, as Slurm would. Here all share the cores of one machine: seconds on the clock are those of all ranks'
work, and the processor's seconds of one rank say what a machine of its own for each would need beside the network.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import resnet.loop
import resnet.run
from resnet.agreement import STOP, Agreement
from resnet.checkpoint.saver import Saver
from resnet.main import main as train
from resnet.process.environment import available_memory
from resnet.process.exit_codes import STOPPED
from tests.bench.machine import facts, headline
from tests.processes import start_ranks, wait_ranks

WORDS = [
    *("recipe=quickstart", "device=cpu", "model.name=null", "model.block=basic", "model.layers=[1,1,1]"),
    *("augment.train_size=16", "augment.val_size=16", "augment.val_resize=16"),
    *("optimizer.lr=0.01", "log_every=1000", "wandb.mode=disabled", "progress=off", "run.name=r"),
]
STOPS_IN = 3
"""Steps done before the one in which a rank is told to stop."""
SECONDS = 1500
MB_OF_RANK = 75
"""What each has of its own, of the 515 that it sees: mostly pages of what is imported, whose references it counts."""
TIMES = ("join", "set_up", "step", "agree", "save", "leave")
HELD = ("files", "threads", "rss_mb", "pss_mb")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ranks", description="time what many ranks do together")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 128, 256])
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    given = parser.parse_args(arguments)
    found = facts()
    print(headline(found), flush=True)
    print("\nseconds on the clock; join_cpu, all_cpu: of one rank's processor; files of rank 0 and of the others' most")
    columns = ("ranks", *TIMES, "join_cpu", "all_cpu", "files_0", *HELD)
    print("".join(f"{column:>9}" for column in columns), flush=True)
    rows = []
    for ranks in given.ranks:
        if (available_memory() or math.inf) < MB_OF_RANK * 1e6 * ranks:
            print(f"{ranks:>9} ranks need {MB_OF_RANK * ranks / 1e3:.0f} GB of free memory")
            continue
        rows.append(row := measure(ranks))
        print("".join(f"{row[column]:>9.4g}" for column in columns), flush=True)
    for name in (*TIMES, "join_cpu", "files_0", "files"):
        print(f"{name:>9}: {growth([row['ranks'] for row in rows], [row[name] for row in rows])}")
    if given.out:
        given.out.write_text(json.dumps({"machine": found, "rows": rows}, indent=1) + "\n")
    return 0


def measure(ranks: int) -> dict[str, float]:
    """Train on so many ranks, one of which is told to stop. Raises RuntimeError where they end in another way."""
    gc.collect()
    # So that ranks share what is imported: a collection would write to it.
    gc.freeze()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gate, opens = os.pipe()
        data = f"data={{source: synthetic, samples: {40 * ranks}, classes: 10, size: 16, num_workers: 0}}"
        words = [*WORDS, data, f"batch_size={2 * ranks}", f"run.root={folder / 'runs'}"]

        def program(argv: Sequence[str]) -> int:
            os.close(opens)
            # Where memory runs out the kernel is to end these, and nothing else.
            Path("/proc/self/oom_score_adj").write_text("1000")
            os.read(gate, 1)
            return _rank(argv, folder)

        children = start_ranks(words, ranks, folder / "out.txt", program)
        os.close(gate)
        begin = time.monotonic()
        os.close(opens)
        gc.unfreeze()
        codes = wait_ranks(children, SECONDS)
        end = time.monotonic()
        if codes != [STOPPED] * ranks:
            raise RuntimeError(f"exit codes {codes}:\n{(folder / 'out.txt').read_text()[-3000:]}")
        return _summary(begin, end, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)])


def _summary(begin: float, end: float, records: list[dict[str, float]]) -> dict[str, float]:
    def last(name: str) -> float:
        return max(record[name] for record in records)

    times = {
        "ranks": len(records),
        "join": last("joined") - begin,
        "set_up": last("first_step") - last("joined"),
        "step": (last("last_step") - last("first_step")) / STOPS_IN,
        "agree": last("granted") - records[-1]["wished"],
        "save": last("saved") - last("granted"),
        "leave": end - last("saved"),
        "join_cpu": sum(record["join_cpu"] for record in records) / len(records),
        "all_cpu": sum(record["all_cpu"] for record in records) / len(records),
        "files_0": records[0]["files"],
    }
    return times | {name: max(record[name] for record in records[1:]) for name in HELD}


def _rank(argv: Sequence[str], folder: Path) -> int:
    """Train on this rank, with a record of when it came where and what it held when it had saved."""
    rank, record = int(os.environ["RANK"]), dict[str, float]()
    if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        _in_step(STOPS_IN, lambda: (record.update(wished=time.monotonic()), os.kill(os.getpid(), signal.SIGTERM)))
    _in_step(0, lambda: record.update(first_step=time.monotonic()))
    _in_step(STOPS_IN, lambda: record.update(last_step=time.monotonic()))
    _after(resnet.run, "build_accelerator", lambda _: record.update(joined=time.monotonic(), join_cpu=_cpu()))
    _after(Agreement, "reach", lambda granted: granted == STOP and record.update(granted=time.monotonic()))
    _after(Saver, "save", lambda _: record.update(saved=time.monotonic(), **_held()))
    code = train(list(argv))
    (folder / f"{rank}.json").write_text(json.dumps(record | {"all_cpu": _cpu()}))
    return code


def _cpu() -> float:
    return time.process_time()


def _after(owner: Any, name: str, then: Callable[[Any], object]) -> None:
    real = getattr(owner, name)

    def patched(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        then(result)
        return result

    setattr(owner, name, patched)


def _in_step(step: int, then: Callable[[], object]) -> None:
    real = resnet.loop._forward

    def patched(trainer: Any, batch: Any, turn: int) -> Any:
        if (trainer.state.step, turn) == (step, 0):
            then()
        return real(trainer, batch, turn)

    resnet.loop._forward = patched


def _held() -> dict[str, float]:
    own = Path("/proc/self")
    memory = dict(line.split()[:2] for line in (own / "smaps_rollup").read_text().splitlines()[1:])
    return {
        "files": len(os.listdir(own / "fd")),
        "threads": len(os.listdir(own / "task")),
        "rss_mb": int(memory["Rss:"]) / 1024,
        "pss_mb": int(memory["Pss:"]) / 1024,
    }


def growth(ranks: Sequence[float], values: Sequence[float]) -> str:
    """A fit c * ranks**p, and by what a constant part and one of n, n log n or n^2 fit, with which error."""
    if len(ranks) < 3:
        return "too few numbers of ranks to tell how it grows"
    logs = [(math.log(n), math.log(max(value, 1e-6))) for n, value in zip(ranks, values, strict=True)]
    power, _ = _line(logs)
    shapes = {"n": float, "n log n": lambda n: n * math.log2(n), "n^2": lambda n: float(n * n), "log n": math.log2}
    found = []
    for shape, of in shapes.items():
        slope, start = _line([(of(n), value) for n, value in zip(ranks, values, strict=True)])
        errors = [start + slope * of(n) - value for n, value in zip(ranks, values, strict=True)]
        found.append((math.hypot(*errors), f"{start:.3g} + {slope:.3g} {shape}"))
    return f"as n^{power:.2f}; " + ", ".join(f"{words} (+-{error:.2g})" for error, words in sorted(found)[:2])


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and start of the line of least squares."""
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return slope, y - slope * x


if __name__ == "__main__":
    raise SystemExit(main())
