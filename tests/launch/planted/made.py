"""Run directories with a fault, written by the program's own writers; and real runs, trained in this process."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from launch.runs.job_record import Job, write_job
from recipes.load import dump, load
from recipes.plan import Plan, make_plan
from recipes.schema.recipe import Recipe
from resnet.process.processes import pid_namespace
from resnet.rundir.evaluation import write_evaluation
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.metrics_log import MetricsLog
from resnet.rundir.provenance import end_attempt, record_attempt
from resnet.rundir.stages import stages_file
from resnet.rundir.status import write_status
from slurm.profile import load_profile
from tests.fabricated import provenance_of
from tests.helpers import train
from tests.launch.planted import Place

CIFAR = ("recipe=cifar10_resnet20", "epochs=20", "schedule.milestones=[10,15]", "log_every=100")
"""A run of 20 epochs of 391 steps."""
H100 = "NVIDIA H100 80GB HBM3"

Row = dict[str, Any]


def trained(place: Place, name: str, *words: object) -> Path:
    """A run of the tiny network, trained here and now, as if this process had begun with it."""
    own_data = any(str(word).startswith("data=") for word in words)
    begun = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    with mock.patch("resnet.process.stages._birth", return_value=begun):
        kept = [word for word in place.words if not (word.startswith("data.") and own_data)]
        train(*kept, "progress=off", *words, f"run.root={place.folder / 'runs'}", f"run.name={name}")
    return place.run_dir(name)


def own_code(place: Place, name: str, text: str) -> Path:
    """A file of a user's own code."""
    file = place.folder / f"{name}.py"
    file.write_text(text)
    return file


class Made:
    """A run of a recipe that comes with the program, of which only the log is made up."""

    def __init__(self, place: Place, name: str, *words: str, ranks: int = 1, device: str = H100, images: int = 50000):
        self.run_dir = place.run_dir(name)
        self.run_dir.mkdir(parents=True)
        where = [f"run.root={self.run_dir.parent}", f"run.name={name}"]
        self.recipe: Recipe = load([*(words or CIFAR), *where]).recipe
        self.plan: Plan = make_plan(self.recipe, images, ranks)
        (self.run_dir / "recipe.yaml").write_text(dump(self.recipe))
        derived = {"training_images": images, "samples_per_epoch": images, "micro_batch": self.plan.micro_batch}
        derived |= {"batch_size": self.plan.batch_size, "precision": "bf16"}
        self.information = {**provenance_of("CPU"), "plan": derived, "world_size": ranks, "devices": [device] * ranks}
        self.attempts, self.clock = 0, time.time() - 1e6

    def attempt(self, step: int = 0, **changes: Any) -> int:
        """Begin an attempt at a step. changes: to what provenance.json says of it."""
        if self.attempts:
            self._end("stopped", step)
        with mock.patch.dict(os.environ), mock.patch("time.time", return_value=self.clock):
            os.environ.pop("RESNET_ATTEMPT", None)
            self.attempts = record_attempt(self.run_dir, {**self.information, **changes}, step)
        return self.attempts

    def sent(self, cluster: str = "a100", **profile: Any) -> Made:
        """Note that it was sent to Slurm."""
        words = [f"slurm.{key}={value}" for key, value in profile.items()]
        job = Job.to_send(self.run_dir.name, cluster, load_profile(cluster, words), self.run_dir, self.run_dir)
        (self.run_dir / "slurm").mkdir()
        write_job(self.run_dir, job, "17")
        return self

    def log(
        self,
        loss: Callable[[int], float] | None = None,
        top1: float | None = 91.3,
        epochs: float = 20,
        **values: Callable[[int], Any],
    ) -> Made:
        """Write metrics.jsonl. loss and values: of steps done. top1: of the validation images in the end (percent)."""
        rows: list[Row] = []
        for step in range(1, round(epochs * self.plan.steps_per_epoch) + 1):
            at_end = step % self.plan.steps_per_epoch == 0
            if step % self.recipe.log_every and not at_end:
                continue
            row: Row = {"step": step, "epoch": self.plan.epoch(step), "samples": self.plan.samples_seen(step)}
            row |= {"lr": self.plan.hyper(step - 1).lr, "train/loss": (loss or usual)(step), "train/top1": 95.0}
            row |= {"grad_norm": 2 + math.sin(step), "images_per_second": 9000.0 + 200 * math.sin(step)}
            row |= {"data_wait": 0.02, "time": 1.7e9 + step}
            rows.append(row | {key: value(step) for key, value in values.items()})
            if at_end and top1 is not None:
                reached = top1 * (1 - 0.5 ** (4 * step / self.plan.steps_per_epoch / epochs)) / (1 - 0.5**4)
                rows.append({"step": step, "epoch": row["epoch"], "val/loss": 0.4, "val/top1": reached, "time": 1.7e9})
        log = MetricsLog(self.run_dir / "metrics.jsonl")
        for row in rows:
            log.log(row)
        log.close()
        self.top1 = top1
        return self

    def evaluated(self, confusion: Sequence[Sequence[int]], classes: Sequence[str] = "abcdefghij") -> Made:
        """Write evaluation.json, by how many images of each class were taken for which."""
        counts = torch.tensor(confusion)
        result = {"top1": 100 * counts.diag().sum().item() / counts.sum().item(), "top5": 99.0, "loss": 0.4, "ece": 1.0}
        result |= {"samples": int(counts.sum()), "confusion": counts, "calibration": [], "confused": [], "mistakes": []}
        write_evaluation(self.run_dir, result, list(classes), self.plan.end_step)
        return self

    def spent(
        self, stages: Mapping[str, float], first: int, step: int, kept: int | None = None, **seconds: float
    ) -> Made:
        """Write what the newest attempt spent its time on, in seconds: by kind, and in the stages of its start.

        first, step: steps done when it began, and when it ended. kept: those of its last checkpoint; None: all.
        """
        share = 1.0 if kept is None else (kept - first) / (step - first)
        told = {"format": 1, "started": self.clock, "seconds": {"step": 1.0, **stages}, "spent": seconds, "ended": True}
        kept_seconds = {kind: value * (1.0 if kind == "start" else share) for kind, value in seconds.items()}
        told |= {"step": step, "kept": {"step": step if kept is None else kept, "spent": kept_seconds}}
        file = stages_file(self.run_dir, self.attempts)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, to_json(told))
        self.clock += sum(seconds.values())
        return self

    def running(self, step: int) -> Path:
        """Write status.json of a run that trains now."""
        if not self.attempts:
            self.attempt()
        alive = {"pid": os.getpid(), "host": socket.gethostname(), "pid_namespace": pid_namespace()}
        self._tell("running", step, **alive)
        return self.run_dir

    def ended(self, state: str = "finished", **status: Any) -> Path:
        """Write status.json, and the end of the last attempt."""
        if not self.attempts:
            self.attempt()
        step = status.pop("step", self.plan.end_step)
        with mock.patch("time.time", return_value=self.clock):
            self._tell(state, step, **status)
        self._end(state, step)
        return self.run_dir

    def _tell(self, state: str, step: int, **status: Any) -> None:
        told = {"name": self.run_dir.name, "recipe": self.recipe.name, "state": state, "step": step}
        told |= {"total_steps": self.plan.end_step, "epochs": self.recipe.epochs, "attempts": self.attempts}
        told |= {"images_per_second": 9000.0, "best": getattr(self, "top1", None)}
        write_status(self.run_dir, **told | status)

    def _end(self, state: str, step: int) -> None:
        with mock.patch("time.time", return_value=self.clock):
            end_attempt(self.run_dir, state, step)


def usual(step: int) -> float:
    """The loss of a run that does well."""
    return 0.2 + 2.1 * math.exp(-step / 1500) + 0.03 * math.sin(7.3 * step)


def diagonal(classes: int = 10, images: int = 1000, right: float = 0.9) -> list[list[int]]:
    """Images of each class that are taken for each: so many are right, the others are spread."""
    wrong = round(images * (1 - right) / (classes - 1))
    return [[images - wrong * (classes - 1) if at == to else wrong for to in range(classes)] for at in range(classes)]
