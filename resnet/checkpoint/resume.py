"""Where a run starts: anew, or from the newest checkpoint that is whole. Chosen on one rank, the same for all."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from recipes.changes import differences, going_on, refuse_fixed
from recipes.load import load_file
from recipes.plan import Plan
from recipes.schema.plugins import PLUGINS
from recipes.schema.recipe import Recipe
from recipes.text import show
from resnet.checkpoint.commit import MANIFEST, CheckpointError, digest_of, newest_valid, read_manifest
from resnet.checkpoint.snapshot import read_rest
from resnet.data.order import Kind, kind_of
from resnet.data.sources.source import Source, targets_of
from resnet.plugins import edits
from resnet.ranks import first_of_ranks
from resnet.rundir.find import new_run_dir
from resnet.rundir.lease import Lease
from resnet.rundir.status import read_status
from resnet.state import TrainState


@dataclass
class Start:
    """Where this run starts, the same on all ranks but for `rest`, which each reads for itself."""

    run_dir: Path
    data_digest: str
    checkpoint: Path | None = None
    checkpoint_digest: str = ""
    is_new: bool = True
    """Whether no checkpoint of this run is there yet (also when it starts from another run's)."""
    was_finished: bool = False
    """Whether the last attempt wrote its final files: the status comes after them."""
    was_tested: bool = False
    """Whether it wrote what it reached on the images that it is to be tested on by now."""
    stopped_early: bool = False
    """Whether it had stopped early, by the rule that it is to stop by now."""
    origin: str | None = None
    """Where the run started from by `resume=PATH`, whatever later attempts are asked."""
    changed: dict[str, list[Any]] = field(default_factory=dict)
    """Keys that differ from the run's recipe, each with the value before and now."""
    messages: list[str] = field(default_factory=list)
    rest: dict[str, Any] = field(default_factory=dict)
    lease: Lease | None = None
    """On rank 0, from the moment the run directory is there."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lease": None}

    def acquire(self) -> None:
        """Become the run's one writer. Raises ValueError where somebody else is."""
        if self.lease is None:
            lease = Lease(self.run_dir)
            lease.acquire()
            self.lease = lease

    def release(self) -> None:
        if self.lease is not None:
            self.lease.release()

    @property
    def step(self) -> int:
        return self.rest["counters"]["step"] if self.rest and not self.is_new else 0

    @property
    def epoch(self) -> float:
        """Of the checkpoint."""
        return self.rest["counters"]["step"] / self.rest["steps_per_epoch"]

    @property
    def metric(self) -> str | None:
        """What the checkpoint's best is the best of; None: it does not say."""
        return (self.rest.get("recipe") or {}).get("eval", {}).get("metric")

    @property
    def log_length(self) -> int:
        return self.rest["log_length"] if self.rest and not self.is_new else 0

    @property
    def micro_batch(self) -> int | None:
        return self.rest["micro_batch"] if self.rest and not self.is_new else None

    @property
    def order(self) -> Kind:
        """How the order of the data comes about: as the run began."""
        return kind_of({} if self.is_new else self.rest)

    def is_finished(self, plan: Plan) -> bool:
        at_end = self.step == plan.end_step or self.stopped_early
        tested = self.was_tested or not plan.recipe.data.is_tested
        return self.checkpoint is not None and not self.is_new and at_end and self.was_finished and tested

    def place_in(self, state: TrainState, plan: Plan) -> None:
        """Let a new run go on at the epoch that another run's checkpoint was taken at."""
        epochs = state.step / self.rest["steps_per_epoch"]
        state.step = round(epochs * plan.steps_per_epoch)
        state.evaluated, state.best, state.best_step, state.stopping = 0, None, None, {}
        state.window.sums.zero_()


def data_digest(train: Source) -> str:
    """Hash of what the order of the data leans on: the images' classes, in their order, and the classes' names."""
    content = "\n".join(train.classes).encode() + train.labels.tobytes()
    if (targets := targets_of(train)) is not None:
        content += targets.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def find_start(recipe: Recipe, train: Source) -> Start:
    """Choose where to start; rank 0 looks, the others follow.

    Raises ValueError where the run exists and `resume=never`, where keys changed that cannot, or where nothing in it
    can be loaded.
    """
    chosen: Start | str | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            chosen = _choose(recipe, data_digest(train))
        except (ValueError, OSError) as error:
            chosen = str(error)
    start = first_of_ranks(chosen)
    if not isinstance(start, Start):
        raise ValueError(start)
    if start.checkpoint is not None:
        _wait_for(start.checkpoint, start.checkpoint_digest)
        try:
            start.rest = read_rest(start.checkpoint)
            _check(start, recipe)
        except BaseException:
            start.release()
            raise
    return start


def finished_before(recipe: Recipe) -> Path | None:
    """The run directory of a run that is finished as the recipe asks, told before its data is there; None: go on.

    Raises ValueError where the run exists and cannot be continued with this recipe.
    """
    run_dir = Path(recipe.run.root).expanduser() / (recipe.run.name or "")
    if recipe.run.name is None or not (run_dir / "recipe.yaml").is_file():
        return None
    _refuse_existing(recipe, run_dir)
    before = load_file(run_dir / "recipe.yaml").recipe
    changed = differences(before, going_on(recipe, before))
    if not any((run_dir / "checkpoints").glob("step-*[0-9]")):
        return None
    refuse_fixed(changed, run_dir)
    return run_dir if not changed and read_status(run_dir).get("state") == "finished" else None


def _refuse_existing(recipe: Recipe, run_dir: Path) -> None:
    if recipe.resume == "never":
        raise ValueError(f"{run_dir} exists and resume=never: choose another run.name")


def _choose(recipe: Recipe, digest: str) -> Start:
    root, name = Path(recipe.run.root).expanduser(), recipe.run.name
    run_dir = root / name if name else new_run_dir(root, recipe.name)
    messages: list[str] = []
    start = Start(run_dir, digest, origin=_path_of(recipe), messages=messages)
    if not (run_dir / "recipe.yaml").is_file():
        _start_from_origin(start)
        return start
    before, _, notes = load_file(run_dir / "recipe.yaml")
    _refuse_existing(recipe, run_dir)
    if start.origin not in (None, _path_of(before)):
        raise ValueError(f"{run_dir} exists: resume={recipe.resume} starts a new run, give it another run.name")
    start.origin = _path_of(before)
    start.acquire()
    try:
        _continue_from_newest(start, before, recipe)
    except BaseException:
        start.release()
        raise
    messages += notes
    return start


def _path_of(recipe: Recipe) -> str | None:
    """The path that `resume` is, if it is one."""
    return None if recipe.resume in ("auto", "never") else str(Path(recipe.resume).expanduser().absolute())


def _start_from_origin(start: Start) -> None:
    if start.origin is not None:
        start.checkpoint = _from_path(Path(start.origin), start.messages)
        start.checkpoint_digest = digest_of(start.checkpoint)


def _continue_from_newest(start: Start, before: Recipe, recipe: Recipe) -> None:
    start.changed = differences(before, going_on(recipe, before))
    status = read_status(start.run_dir)
    start.was_finished = status.get("state") == "finished"
    other_test = any(key in start.changed for key in ("data.test", "data.test_split"))
    start.was_tested = status.get("test_top1") is not None and not other_test
    same_rule = not any(key.partition(".")[0] == "early_stopping" for key in start.changed)
    if "eval.metric" in start.changed and recipe.early_stopping and recipe.early_stopping.metric is None:
        same_rule = False
    start.stopped_early = bool(status.get("stopped_early")) and same_rule
    start.checkpoint = newest_valid(start.run_dir / "checkpoints", start.messages.append)
    if start.checkpoint is None and start.messages:
        raise ValueError(
            "\n".join([*start.messages, f"no checkpoint of {start.run_dir} can be used: choose another run.name"])
        )
    if start.checkpoint is None:
        if start.was_finished and start.origin is None:
            raise ValueError(
                f"{start.run_dir} is finished and has no checkpoint to go on from: choose another run.name; "
                f"model.pretrained={start.run_dir} starts from its weights"
            )
        _start_from_origin(start)
    else:
        start.is_new = False
        refuse_fixed(start.changed, start.run_dir)
        start.checkpoint_digest = digest_of(start.checkpoint)
    start.messages += [f"changed: {key} {show(before)} -> {show(now)}" for key, (before, now) in start.changed.items()]


def _from_path(path: Path, messages: list[str]) -> Path:
    """The checkpoint that `resume=PATH` means: itself, or the newest valid one of a run directory."""
    if (path / MANIFEST).is_file():
        read_manifest(path)
        return path
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and (checkpoint := newest_valid(folder, messages.append)):
            return checkpoint
    raise ValueError("\n".join([*messages, f"resume={path} is no checkpoint, nor a run directory that holds one"]))


def _check(start: Start, recipe: Recipe) -> None:
    needed = {
        "digest",
        "micro_batch",
        "world_size",
        "precision",
        "steps_per_epoch",
        "data",
        "log_length",
        "counters",
        "per_rank",
    }
    if missing := needed - start.rest.keys():
        raise CheckpointError(f"{start.checkpoint} lacks {', '.join(sorted(missing))}")
    if not start.is_new and start.rest["data"] != start.data_digest:
        raise ValueError(
            f"{recipe.data.train} is not the data {start.run_dir} was trained on so far (other images or classes): "
            f"put it back, or start a new run from it: resume={start.run_dir} run.name=..."
        )


def note_edits(start: Start, recipe: Recipe, own: dict[str, str]) -> None:
    """Take down which files of the user's own code were edited since the checkpoint.

    own: by the key that names it, what each file holds now. Raises ValueError where it is the network's.
    """
    for key, (before, now) in edits(start.rest.get("plugins", {}), own).items():
        plugin = recipe.plugins_named()[key]
        file = plugin.file.name if plugin.file else str(plugin.module)
        if key == "model.plugin":
            kept = f", as in {start.run_dir / PLUGINS / file}" if plugin.file else ""
            raise ValueError(
                f"{start.run_dir} is a run, and its network cannot change while it goes on: {key} ({file} was edited)\n"
                f"put the file back{kept}, or choose another run.name"
            )
        start.changed[f"{key} ({file})"] = [before, now]
        start.messages.append(f"changed: {key} ({file} was edited)")


def _wait_for(checkpoint: Path, digest: str, seconds: float = 60) -> None:
    """Until this machine sees the checkpoint that rank 0 chose: a network file system may show it late."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if digest_of(checkpoint) == digest:
                return
            problem = "is another one here than on rank 0"
        except OSError as error:
            problem = f"cannot be read here ({error.strerror})"
        if time.monotonic() > deadline:
            raise CheckpointError(f"{checkpoint} {problem}: all ranks need the same run.root on a shared file system")
        time.sleep(0.5)
