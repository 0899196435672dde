"""ResNet-20 on CIFAR-10: our trainer beside an independent script in plain PyTorch, several seeds each.

    python -m tests.bench.cifar_resnet20 --data FOLDER [--images 4000 --test-images 1000] [--epochs 6 --milestones 3 5]
        [--batch-size 64 --lr 0.05] [--bf16] [--seeds 0 1 2] [--out FOLDER]

FOLDER: CIFAR-10 as parquet. Ours is trained as a user would, by `python train.py`; the other is
`tests/bench/plain_resnet20.py`, which imports nothing of ours. Both get the same images and hyperparameters, in one
process at a time, and draw their own first weights, order, crops and flips. Without options it is the training of the
paper (He et al. 2015, arXiv:1512.03385): all images, 164 epochs, batch 128, lr 0.1.

Prints each curve's mean over the seeds, and whether the means of the last epoch differ by more than seeds alone make
them (Student's t, 95%). --out keeps curves.json and curves.svg; what is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).parents[2]
PLAIN = Path(__file__).with_name("plain_resnet20.py")
T_95 = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 18: 2.101}
"""Two-sided quantiles of Student's t by degrees of freedom, of the usual numbers of seeds (2, 3, 4, 5, 10 each)."""
FIGURES = {"loss": "training loss", "top1": "test accuracy, %"}

Curves = dict[str, dict[str, list[dict[str, float]]]]
"""By trainer and seed: the rows of its epochs."""


def ours(arguments: argparse.Namespace, data: Path, seed: int, scratch: Path) -> list[dict[str, float]]:
    """Train with `python train.py`; the rows of its epochs."""
    milestones = ",".join(map(str, arguments.milestones))
    words = [
        *("recipe=cifar10_resnet18", "model.name=resnet20_cifar", "data.source=huggingface", f"data.train={data}"),
        *("data.val_split=test", "data.train_samples=null", "data.num_workers=0"),
        *("augment.mean=[0.4914,0.4822,0.4465]", "augment.std=[0.2470,0.2435,0.2616]"),
        *(f"epochs={arguments.epochs}", f"batch_size={arguments.batch_size}", f"optimizer.lr={arguments.lr}"),
        *("optimizer.lr_for_batch_size=null", f"optimizer.weight_decay={arguments.decay}"),
        *("schedule.name=multistep", f"schedule.milestones=[{milestones}]"),
        *(f"precision={'bf16' if arguments.bf16 else 'no'}", "device=cpu", f"seed={seed}", "log_every=1000000"),
        *("wandb.mode=disabled", "progress=off", f"run.root={scratch}", f"run.name=seed-{seed}"),
    ]
    subprocess.run([sys.executable, ROOT / "train.py", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows: dict[float, dict[str, float]] = {}
    for line in (scratch / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["epoch"], {"epoch": row["epoch"]}).update(
            {key: row[name] for key, name in (("loss", "train/loss"), ("top1", "val/top1")) if name in row}
        )
    return list(rows.values())


def plain(arguments: argparse.Namespace, data: Path, seed: int, scratch: Path) -> list[dict[str, float]]:
    """Train with the plain script; the rows of its epochs."""
    words = ["--epochs", arguments.epochs, "--milestones", *arguments.milestones, "--seed", seed]
    words += ["--batch-size", arguments.batch_size, "--lr", arguments.lr, "--decay", arguments.decay]
    words += ["--bf16"] if arguments.bf16 else []
    command = [sys.executable, str(PLAIN), str(data), *map(str, words)]
    done = subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def fewer(data: Path, images: int | None, test_images: int | None, folder: Path) -> Path:
    """A folder of so many of the images, spread evenly over the data."""
    for split, number in (("train", images), ("test", test_images)):
        table = pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in sorted(data.glob(f"{split}-*"))])
        number = min(number or table.num_rows, table.num_rows)
        chosen = pyarrow.array([index * table.num_rows // number for index in range(number)])
        pyarrow.parquet.write_table(table.take(chosen), folder / f"{split}-00000-of-00001.parquet")
    return folder


def compared(curves: Curves, key: str) -> dict[str, float | bool]:
    """The last epoch's values over the seeds, and whether their means are apart by more than seeds make them."""
    last = {name: [rows[-1][key] for rows in of.values()] for name, of in curves.items()}
    mean = {name: statistics.mean(values) for name, values in last.items()}
    deviation = {name: statistics.stdev(values) for name, values in last.items()}
    number = min(map(len, last.values()))
    error = math.sqrt(sum(deviation[name] ** 2 / len(last[name]) for name in last))
    difference, bound = mean["ours"] - mean["plain"], T_95[2 * number - 2] * error
    found: dict[str, float | bool] = {f"{name}_mean": value for name, value in mean.items()}
    found |= {f"{name}_deviation": value for name, value in deviation.items()}
    return found | {"difference": difference, "bound": bound, "within_noise": abs(difference) <= bound}


def means(curves: Curves, key: str) -> dict[str, list[tuple[float, float]]]:
    """By trainer, mean and deviation over the seeds after each epoch."""
    values = {name: [[row[key] for row in rows] for rows in of.values()] for name, of in curves.items()}
    return {
        name: [(statistics.mean(at), statistics.stdev(at)) for at in zip(*rows, strict=True)]
        for name, rows in values.items()
    }


def draw(curves: Curves, file: Path) -> None:
    """A panel for each figure: every seed's curve, thin, and their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2), FIGURES.items(), strict=True):
        for (name, of), color in zip(curves.items(), ("#e4572e", "#4c78a8"), strict=True):
            for rows in of.values():
                axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], color=color, lw=0.7, alpha=0.5)
            mean = [value for value, _ in means(curves, key)[name]]
            axes.plot(range(1, len(mean) + 1), mean, color=color, lw=2, marker="o", ms=4, label=name)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("epoch")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


def told(curves: Curves) -> list[str]:
    lines = []
    for key, title in FIGURES.items():
        lines += [f"{title}: mean and deviation over {len(curves['ours'])} seeds", "  epoch  ours             plain"]
        rows = zip(*means(curves, key).values(), strict=True)
        for epoch, cells in enumerate(rows, 1):
            lines.append(f"  {epoch:5}  " + "  ".join(f"{mean:7.3f} +- {spread:.3f}" for mean, spread in cells))
        found = compared(curves, key)
        verdict = "within" if found["within_noise"] else "BEYOND"
        lines.append(f"  last: they differ by {found['difference']:+.3f}, {verdict} the noise (+-{found['bound']:.3f})")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--images", type=int)
    parser.add_argument("--test-images", type=int)
    parser.add_argument("--epochs", type=int, default=164)
    parser.add_argument("--milestones", type=int, nargs="+", default=[82, 123])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=1e-4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    arguments = parser.parse_args(argv)
    setting = {key: value for key, value in vars(arguments).items() if key not in ("data", "seeds", "out")}
    curves: Curves = {"ours": {}, "plain": {}}
    kept = arguments.out / "curves.json" if arguments.out else None
    if kept is not None and kept.is_file():
        before: dict[str, Any] = json.loads(kept.read_text())
        if before["setting"] != setting:
            raise SystemExit(f"{kept} is of other settings: give another --out")
        curves = before["curves"]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "data").mkdir()
        data = fewer(arguments.data, arguments.images, arguments.test_images, scratch / "data")
        for seed in arguments.seeds:
            for name, trainer in (("ours", ours), ("plain", plain)):
                if str(seed) not in curves[name]:
                    curves[name][str(seed)] = trainer(arguments, data, seed, scratch)
                    print(f"{name}, seed {seed}: {curves[name][str(seed)][-1]}", flush=True)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps({"setting": setting, "curves": curves}, indent=1) + "\n")
    print("\n".join(told(curves)))
    if kept is not None:
        draw(curves, kept.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
