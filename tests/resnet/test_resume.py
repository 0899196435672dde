"""A run that was interrupted, however often and on however many ranks, ends as one that was not."""

import importlib
import json
import os
import re
import signal
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import resnet.ending
import resnet.loop
import resnet.run
import resnet.tools.report.report
from recipes.load import load_file
from recipes.schema.model import Model
from resnet.checkpoint.commit import commit, name_of, newest_first, read_manifest
from resnet.checkpoint.resume import Start
from resnet.checkpoint.snapshot import REST, load_weights, read_rest
from resnet.data.order import Order
from resnet.data.sources.synthetic import Synthetic
from resnet.net import build_model
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import read_status, write_status
from resnet.tools.compare import compare_runs
from resnet.tools.difference import CLOCK
from resnet.tools.evaluate import evaluate
from resnet.tools.trained import find_trained
from tests.bench import kill
from tests.helpers import OFF, PROGRAM
from tests.processes import start_ranks, wait_ranks

IMAGES = 80
NUMBERED = [
    *(word for word in kill.RECIPE if not word.startswith(("data.", "checkpoint.", "progress"))),
    f"data={{source: synthetic, samples: {IMAGES}, classes: {IMAGES}, size: 24}}",
    *(
        "data.num_workers=1",
        "data.prefetch=2",
        "device=cpu",
        "checkpoint.every=2 steps",
        "checkpoint.keep=1",
        "progress=lines",
    ),
]
"""A class for each training image: its label tells which it is. 5 steps of 4 micro-batches of 4 images an epoch."""


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Ranks are forked from here, with what is patched here. The report would take most of such a short run."""
    monkeypatch.setattr(resnet.tools.report.report, "write_report", lambda run: run / "report.html")


@pytest.fixture
def interrupt(monkeypatch, tmp_path) -> dict[str, object]:
    """Makes ranks log the images they train on, and send themselves `signal` in the step `step` (on rank `rank`)."""
    plan: dict[str, object] = {"step": None, "rank": 0, "signal": signal.SIGKILL}
    forward = resnet.loop._forward

    def noted(trainer, batch, turn):
        step = trainer.state.step
        if step == plan["step"] and trainer.rank == plan["rank"] and turn == 0:
            os.kill(os.getpid(), plan["signal"])  # pyright: ignore[reportArgumentType]
        row = [os.getppid(), step, batch.key.epoch, batch.key.start, batch.labels.tolist()]
        with open(trainer.hooks.run_dir / f"images-{trainer.rank}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        return forward(trainer, batch, turn)

    monkeypatch.setattr(resnet.loop, "_forward", noted)
    return plan


def attempt(folder: Path, name: str, *words: str, ranks: int = 1, recipe: Sequence[str] = NUMBERED) -> list[int]:
    argv = [*recipe, f"run.root={folder}", f"run.name={name}", *words]
    return wait_ranks(start_ranks(argv, ranks, folder / f"{name}.txt"), 120)


def images_of_steps(run: Path) -> dict[int, list[tuple[int, int, list[int]]]]:
    """By step: (epoch, first position, images) of its micro-batches, in the order of their positions.

    A step that was done again after an interruption must have been of the same images.
    """
    found: dict[int, dict[tuple[int, int], list[int]]] = defaultdict(dict)
    for file in run.glob("images-*.jsonl"):
        for line in file.read_text().splitlines():
            _, step, epoch, start, images = json.loads(line)
            assert found[step].setdefault((epoch, start), images) == images
    return {step: [(*key, images) for key, images in sorted(found[step].items())] for step in sorted(found)}


def log_of(run: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in read_metrics(run)]


def output(folder: Path, name: str) -> str:
    return (folder / f"{name}.txt").read_text()


# Kills


@pytest.mark.parametrize(("ranks", "trials"), [(1, 1), (2, 1), (4, 1)])
def test_kills_at_random_moments_change_nothing(tmp_path, ranks, trials):
    reference, seconds = kill.straight(tmp_path, ranks, ["device=cpu", "epochs=2"])
    for number in range(trials):
        name, seed = f"killed-{number}", 10 * ranks + number
        outcome = kill.trial(tmp_path, name, [ranks], reference, seconds, seed, ["device=cpu", "epochs=2"])
        assert outcome.differences == []
        assert outcome.kills > 0


def test_a_kill_between_the_last_step_and_the_end_loses_nothing(tmp_path, monkeypatch):
    reference, _ = kill.straight(tmp_path, 1, ["device=cpu", "epochs=1"])
    words = ["device=cpu", "epochs=1", f"data.train={tmp_path}/shapes"]

    def killed(run, **fields):
        if fields.get("state") == "finished":
            os.kill(os.getpid(), signal.SIGKILL)
        write_status(run, **fields)

    with monkeypatch.context() as patched:
        patched.setattr(resnet.ending, "write_status", killed)
        assert attempt(tmp_path, "r", *words, recipe=kill.RECIPE) == [-9]
    run = tmp_path / "r"
    assert (run / "final.safetensors").is_file()
    assert read_status(run)["state"] == "running"
    assert attempt(tmp_path, "r", *words, recipe=kill.RECIPE) == [0]
    assert read_status(run)["state"] == "finished"
    assert compare_runs(reference, run) == []
    assert len(read_metrics(run)) == len(read_metrics(reference))


# Samples


def test_each_epoch_draws_each_position_once_over_any_number_of_restarts(tmp_path, interrupt):
    for step, number in [(1, signal.SIGTERM), (3, signal.SIGTERM), (7, signal.SIGKILL), (8, signal.SIGKILL)]:
        interrupt |= {"step": step, "signal": number}
        assert attempt(tmp_path, "r", "epochs=3") == [85 if number == signal.SIGTERM else -9]
    interrupt["step"] = None
    assert attempt(tmp_path, "r", "epochs=3") == [0]

    run = tmp_path / "r"
    firsts = [entry["first_step"] for entry in read_provenance(run)["attempts"]]
    assert firsts == [0, 2, 4, 6, 6] or firsts == [0, 2, 4, 6, 8], "a kill may come before the save of the step before"
    order = Order(Synthetic(IMAGES, IMAGES, 24).labels, 0, 16)
    drawn = drawn_in(run)
    assert drawn == {epoch: order.at(epoch, np.arange(IMAGES)).tolist() for epoch in range(3)}
    assert all(sorted(images) == list(range(IMAGES)) for images in drawn.values())


def drawn_in(run: Path) -> dict[int, list[int]]:
    """The images of each epoch in the order of its positions."""
    drawn: dict[int, list[int]] = defaultdict(list)
    for step, batches in images_of_steps(run).items():
        assert [start for _, start, _ in batches] == [step % 5 * 16 + 4 * slot for slot in range(4)]
        for epoch, _, images in batches:
            drawn[epoch] += images
    return drawn


def test_a_run_of_an_older_version_goes_on_in_its_own_order(tmp_path, interrupt, monkeypatch):
    facts = resnet.run._facts
    with monkeypatch.context() as older:
        older.setattr(Start, "order", "table")
        older.setattr(resnet.run, "_facts", lambda *given: {k: v for k, v in facts(*given).items() if k != "order"})
        assert attempt(tmp_path, "straight", "epochs=2") == [0]
        interrupt |= {"step": 3, "signal": signal.SIGTERM}
        assert attempt(tmp_path, "r", "epochs=2") == [85]
    interrupt |= {"step": 6, "signal": signal.SIGKILL}
    assert attempt(tmp_path, "r", "epochs=2") == [-9]
    interrupt["step"] = None
    assert attempt(tmp_path, "r", "epochs=2") == [0]
    assert compare_runs(tmp_path / "straight", tmp_path / "r") == []
    order = Order(Synthetic(IMAGES, IMAGES, 24).labels, 0, 16, kind="table")
    assert drawn_in(tmp_path / "r") == {epoch: order.at(epoch, np.arange(IMAGES)).tolist() for epoch in range(2)}
    assert read_provenance(tmp_path / "r")["plan"]["order"] == "table"
    rest = read_rest(newest_first(tmp_path / "r" / "checkpoints")[0])
    assert Start(tmp_path, "", is_new=False, rest=rest).order == "table"
    assert Start(tmp_path, "", is_new=True, rest=rest).order == "bijection", "a new run from that checkpoint"


# Keys whose effect reaches from one step to the next

COMBINATIONS = {
    "TensorFlow's RMSprop, milestones, clipped by units, unfrozen by and by, SWA": [
        *("optimizer={name: rmsprop_tf, lr: 1e-3, layer_decay: 0.8}", "grad_clip_adaptive=0.01", "ema=off"),
        *("schedule={name: multistep, milestones: [1.2], warmup_epochs: 0.5}", "swa.start_epoch=1"),
        *("model.pretrained=FOLDER/first.safetensors", "model.unfreeze={1: layer3}"),
    ],
    "focal loss of weighted classes drawn by shares, early stopping, a test at the end; a pre-activation net": [
        *("loss=focal", "focal_gamma=1.5", "class_weights=effective", "class_weights_beta=0.9", "label_smoothing=0.1"),
        *("data={source: synthetic, samples: 110, classes: 4, size: 24}", "data.balance=shares"),
        *("data.class_shares={'2': 0.5}", "data.fold=2/9", "data.test_fraction=0.2"),
        "early_stopping={patience: 1, min_delta: 100, metric: loss}",
        *("model.block=preact_basic", "model.layers=[1,1]", "model.widths=[8,16]", "model.stem=deep"),
        *("model.downsample=avgpool", "model.attention=se", "model.norm=group", "model.norm_groups=4"),
        *("model.dropout=0.2", "model.block_dropout=0.3", "model.init=fan_in", "model.zero_init_residual=true"),
    ],
    "adam onecycle, average every other step, grey": [
        *("optimizer={name: adam, lr: 1e-3}", "schedule={name: onecycle}", "ema.every=2", "grad_clip_value=0.1"),
        "model.in_channels=1",
    ],
}
"""What a run is to go on with, by what is in it: each row a run of its own, of as many new things as go together."""


@pytest.mark.parametrize("words", COMBINATIONS.values(), ids=COMBINATIONS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, interrupt, words):
    words = [word.replace("FOLDER", str(tmp_path)) for word in words]
    torch.manual_seed(1)
    network = build_model(Model(block="basic", layers=[1, 1, 1]), IMAGES)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "first.safetensors")
    assert attempt(tmp_path, "straight", *words, "epochs=2") == [0]
    for step, code in ((3, -9), (7, 85), (None, 0)):
        interrupt |= {"step": step, "signal": signal.SIGKILL if code == -9 else signal.SIGTERM}
        assert attempt(tmp_path, "r", *words, "epochs=2") == [code], output(tmp_path, "r")
    assert compare_runs(tmp_path / "straight", tmp_path / "r") == []


# Code of one's own


def test_the_example_of_several_labels_goes_on_as_if_nothing_had_happened(tmp_path, interrupt, monkeypatch):
    """With a source, a loss, metrics and a callback that keeps something, all of the user's own."""
    monkeypatch.syspath_prepend(PROGRAM / "examples" / "multilabel")
    importlib.import_module("make_data").make(tmp_path / "data", 64)
    recipe = [
        *("recipe=examples/multilabel/multilabel.yaml", f"data.plugin.args.folder={tmp_path}/data", "batch_size=16"),
        *("model={name: null, block: basic, layers: [1, 1], widths: [8, 16]}", "augment.mixup=0.2", *OFF),
        *("plugins.loss=torch.nn.functional:binary_cross_entropy_with_logits", "data.num_workers=1", "log_every=1"),
        *("checkpoint.every=2 steps", "progress=off", "epochs=2"),
    ]
    assert attempt(tmp_path, "straight", recipe=recipe) == [0], output(tmp_path, "straight")
    for step, code in ((5, -9), (None, 0)):
        interrupt["step"] = step
        assert attempt(tmp_path, "r", recipe=recipe) == [code], output(tmp_path, "r")
    assert compare_runs(tmp_path / "straight", tmp_path / "r") == []
    states = [read_rest(newest_first(tmp_path / run / "checkpoints")[0])["callbacks"] for run in ("straight", "r")]
    assert states[0] == states[1]
    assert states[0]["several_labels.py:LargestNorm"]["largest"] > 0
    found = evaluate([find_trained(str(tmp_path / "r@last"))])[0]
    logged = [row for row in read_metrics(tmp_path / "r") if "val/map" in row][-1]
    assert found.metrics == {"map": logged["val/map"], "auroc": logged["val/auroc"]}


# A teacher; code of one's own on two ranks

KEPT = """\
class Kept:
    def __init__(self):
        self.of_steps, self.shares = [], []
    def on_step(self, step, model):
        self.of_steps.append(model.fc.bias.detach().sum())
    def on_evaluation(self, step, result):
        self.shares.append(result["share"])
    def state_dict(self):
        return vars(self)
    def load_state_dict(self, state):
        vars(self).update(state)

def share(logits, targets):
    return (logits.argmax(1) == targets).double().mean()
"""


def test_a_run_that_learns_from_another_goes_on_with_that_one_alone(tmp_path, interrupt):
    assert attempt(tmp_path, "teacher", "epochs=1", "model.layers=[1,1,1,1]") == [0]
    (tmp_path / "own.py").write_text(KEPT)
    own = [f"plugins.callbacks=[{tmp_path}/own.py:Kept]", f"plugins.metrics={{share: {tmp_path}/own.py:share}}"]
    words = ["distill.teacher=teacher", "epochs=2", *own]
    assert attempt(tmp_path, "straight", *words, ranks=2) == [0, 0]
    interrupt |= {"step": 5, "rank": 1, "signal": signal.SIGKILL}
    assert -9 in attempt(tmp_path, "r", *words, ranks=2)
    interrupt["step"] = None
    final = tmp_path / "teacher" / "final.safetensors"
    kept = final.read_bytes()
    final.write_bytes(b"".join([kept[:-1], bytes([kept[-1] ^ 1])]))
    assert attempt(tmp_path, "r", *words, ranks=2) == [2, 2]
    assert f"{final} is not the file that {tmp_path / 'r'} has learnt from until now: put " in output(tmp_path, "r")
    final.unlink()
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(kept)
    assert attempt(tmp_path, "r", f"distill.teacher={moved}", "epochs=2", *own, ranks=2) == [0, 0]
    assert compare_runs(tmp_path / "straight", tmp_path / "r") == []
    rows = [row for row in read_metrics(tmp_path / "r") if "val/share" in row]
    assert [row["val/share"] * 100 for row in rows] == pytest.approx([row["val/top1"] for row in rows])
    kept = read_rest(newest_first(tmp_path / "r" / "checkpoints")[0])["callbacks"]["own.py:Kept"]
    assert (len(kept["of_steps"]), kept["shares"]) == (rows[-1]["step"], [row["val/share"] for row in rows[:-1]])


# Other numbers of ranks


def test_one_two_and_one_ranks_train_as_one_does(tmp_path, interrupt):
    assert attempt(tmp_path, "one") == [0]
    for ranks, step, codes in [(1, 3, [85]), (2, 9, [85, 85]), (1, None, [0])]:
        interrupt |= {"step": step, "rank": ranks - 1, "signal": signal.SIGTERM}
        assert attempt(tmp_path, "changing", ranks=ranks) == codes
    one, changing = tmp_path / "one", tmp_path / "changing"
    attempts = read_provenance(changing)["attempts"]
    assert [entry["world_size"] for entry in attempts] == [1, 2, 1]
    assert 0 < attempts[1]["first_step"] < attempts[2]["first_step"] < 20
    assert images_of_steps(one) == images_of_steps(changing)
    assert len(images_of_steps(one)) == 20

    # Two ranks add up the gradients of micro-batches (a + b) + (c + d) and one ((a + b) + c) + d: the same but for
    # rounding, of which these steps make less than 1e-5 of the weights.
    rows = list(zip(log_of(one), log_of(changing), strict=True))
    for straight, other in rows:
        assert straight.keys() == other.keys()
        assert straight.get("lr") == other.get("lr"), "of the very same schedule"
        for key in straight:
            assert other[key] == pytest.approx(straight[key], rel=1e-3), (straight["step"], key)
    weights = [newest_first(run / "checkpoints")[0] for run in (one, changing)]
    for name in ("model", "ema"):
        pair = [safetensors.torch.load_file(checkpoint / f"{name}.safetensors") for checkpoint in weights]
        for key, tensor in pair[0].items():
            torch.testing.assert_close(pair[1][key], tensor, rtol=1e-4, atol=1e-5)


def test_a_micro_batch_that_does_not_fit_the_ranks_is_refused(tmp_path, interrupt):
    interrupt |= {"step": 3, "signal": signal.SIGTERM}
    assert attempt(tmp_path, "r", "max_batch_per_device=16") == [85]
    assert attempt(tmp_path, "r", "max_batch_per_device=16", ranks=2) == [2, 2]
    assert "batch_size 16 does not divide over 2 devices in micro-batches of 16" in output(tmp_path, "r")


# Changed recipes


@pytest.fixture
def stopped(tmp_path, interrupt) -> Path:
    """A run stopped after step 4 of 20, which is within its first epoch."""
    interrupt |= {"step": 3, "signal": signal.SIGTERM}
    assert attempt(tmp_path, "r") == [85]
    interrupt["step"] = None
    assert read_status(tmp_path / "r")["step"] == 4
    return tmp_path / "r"


def test_keys_that_cannot_change_are_refused_all_at_once(stopped, tmp_path):
    before = {file: file.read_bytes() for file in stopped.iterdir() if file.is_file()}
    assert attempt(tmp_path, "r", "batch_size=32", "seed=1", "model.stem=cifar", "optimizer.lr=0.02") == [2]
    error = output(tmp_path, "r").rpartition("train.py: ")[2]
    for line in ("batch_size: 16 -> 32", "seed: 0 -> 1", "model.stem: null -> cifar"):
        assert f"\n  {line}\n" in error
    assert "optimizer.lr" not in error
    assert error.endswith("put them back, or choose another run.name\n")
    assert {file: file.read_bytes() for file in stopped.iterdir() if file.is_file()} == before


def test_what_is_advised_for_another_batch_size_works(stopped, tmp_path):
    assert attempt(tmp_path, "r", "batch_size=32") == [2]
    assert f"to start a new run from its checkpoint: resume={stopped} run.name=NEW" in output(tmp_path, "r")
    assert attempt(tmp_path, "NEW", "batch_size=32", f"resume={stopped}") == [0]


def test_other_keys_are_applied_told_and_recorded(stopped, tmp_path):
    assert attempt(tmp_path, "r", "optimizer.lr=0.02", "label_smoothing=0.1") == [0]
    assert "changed: optimizer.lr 0.01 -> 0.02\n" in output(tmp_path, "r")
    assert attempt(tmp_path, "r", "optimizer.lr=0.02", "label_smoothing=0.1", "epochs=5") == [0]
    attempts = read_provenance(stopped)["attempts"]
    changed = {"optimizer.lr": [0.01, 0.02], "label_smoothing": [0.0, 0.1]}
    assert [entry["changed"] for entry in attempts] == [{}, changed, {"epochs": [4.0, 5.0]}]
    assert load_file(stopped / "recipe.yaml").recipe.optimizer.lr == 0.02
    rates = {row["step"]: row["lr"] for row in read_metrics(stopped) if "lr" in row}
    assert max(rates[step] for step in rates if step > 4) > 0.0101 > rates[4]


def test_a_new_run_starts_from_another_ones_checkpoint(stopped, tmp_path, interrupt):
    words = [f"resume={stopped}", "batch_size=8", "seed=5"]
    # Killed before its first checkpoint, it starts from there once more, also where it is not said again.
    interrupt |= {"step": 9, "signal": signal.SIGKILL}
    assert attempt(tmp_path, "new", *words) == [-9]
    new = tmp_path / "new"
    assert newest_first(new / "checkpoints") == []
    interrupt |= {"step": 13, "signal": signal.SIGTERM}
    assert attempt(tmp_path, "new", "batch_size=8", "seed=5", "checkpoint.every=20 steps") == [85]
    interrupt["step"] = None
    assert attempt(tmp_path, "new", *words) == [0]
    attempts = read_provenance(new)["attempts"]
    assert [entry["first_step"] for entry in attempts] == [8, 8, 14], "4 of 5 steps of 16 are 8 of 10 of 8"
    assert min(images_of_steps(new)) == 8
    text = output(tmp_path, "new")
    assert text.count(f"continues from {stopped}/checkpoints/{name_of(4)} (step 8)") == 2
    assert attempt(tmp_path, "new", f"resume={tmp_path / 'other'}", "batch_size=8", "seed=5") == [2]
    assert f"{new} exists: resume={tmp_path / 'other'} starts a new run" in output(tmp_path, "new")


def test_the_weights_of_a_new_run_are_those_it_starts_from(stopped, tmp_path, monkeypatch):
    def compared(trainer):
        checkpoint = newest_first(stopped / "checkpoints")[0]
        before = {name: tensor.clone() for name, tensor in trainer.state.model.state_dict().items()}
        load_weights(trainer.state.model, checkpoint / "model.safetensors")
        assert all(torch.equal(before[name], t) for name, t in trainer.state.model.state_dict().items())
        os._exit(55)

    monkeypatch.setattr(resnet.ending, "fit", compared)
    assert attempt(tmp_path, "new", f"resume={stopped}") == [55]


def test_never_resume(stopped, tmp_path):
    assert attempt(tmp_path, "r", "resume=never") == [2]
    assert f"{stopped} exists and resume=never: choose another run.name" in output(tmp_path, "r")


def test_other_data_is_refused(stopped, tmp_path):
    other = f"data={{source: synthetic, samples: {IMAGES}, classes: 40, size: 24}}"
    assert attempt(tmp_path, "r", other) == [2]
    assert f"is not the data {stopped} was trained on so far" in output(tmp_path, "r")
    assert not (stopped / "lease.json").exists()


# Damage


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(stopped, tmp_path, interrupt):
    interrupt |= {"step": 7, "signal": signal.SIGTERM}
    assert attempt(tmp_path, "r", "checkpoint.keep=2") == [85]
    interrupt["step"] = None
    newest, before, *_ = newest_first(stopped / "checkpoints")
    file = newest / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    assert attempt(tmp_path, "r") == [0]
    text = output(tmp_path, "r")
    assert f"checkpoint {newest} is damaged and not used: model.safetensors has changed since it was written" in text
    assert f"continues from {before}" in text
    assert attempt(tmp_path, "straight") == [0]
    assert compare_runs(tmp_path / "straight", stopped) == []


def test_nothing_but_damage_is_an_error(stopped, tmp_path):
    for checkpoint in newest_first(stopped / "checkpoints"):
        (checkpoint / REST).write_bytes(b"")
    assert attempt(tmp_path, "r") == [2]
    assert f"no checkpoint of {stopped} can be used: choose another run.name" in output(tmp_path, "r")


# Where a run continues in an epoch


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_the_first_batch_comes_without_reading_those_before(tmp_path, monkeypatch, interrupt, share):
    words = [f"data={{source: synthetic, samples: {100 * 16 * 40}, classes: 10, size: 24, num_workers: 0}}"]
    words += ["data.max_val=4", "checkpoint.every=1 epoch", "epochs=1"]
    interrupt |= {"step": 0, "signal": signal.SIGTERM}
    assert attempt(tmp_path, "r", *words) == [85]
    run, step = tmp_path / "r", round(4000 * share)
    checkpoint = newest_first(run / "checkpoints")[0]
    files = {name: (checkpoint / name).read_bytes() for name in read_manifest(checkpoint)["files"]}
    rest = read_rest(checkpoint)
    rest["counters"]["step"] = step
    torch.save(rest, tmp_path / "rest")
    commit(run / "checkpoints", step, files | {REST: (tmp_path / "rest").read_bytes()}, {})
    read = Synthetic.read

    def counted(self, index):
        with open(run / "reads", "a") as file:
            file.write(".")
        return read(self, index)

    monkeypatch.setattr(Synthetic, "read", counted)
    interrupt |= {"step": step, "signal": signal.SIGKILL}
    assert attempt(tmp_path, "r", *words) == [-9]
    assert len((run / "reads").read_text()) == 4, "the images of one micro-batch"


# When checkpoints are taken


def test_checkpoints_by_the_clock(tmp_path):
    words = ["checkpoint.keep=100", "epochs=2"]
    assert attempt(tmp_path, "r", "checkpoint.every=0.001 minutes", *words, ranks=2) == [0, 0]
    steps = [int(path.name.removeprefix("step-")) for path in newest_first(tmp_path / "r" / "checkpoints")]
    assert {5, 10} < set(steps)
    assert attempt(tmp_path, "rare", "checkpoint.every=10 minutes", *words) == [0]
    names = [path.name for path in newest_first(tmp_path / "rare" / "checkpoints")]
    assert names == [name_of(10), name_of(5)], "always before an evaluation"


def test_checkpoints_as_often_as_pays(tmp_path):
    """The first two as soon as can be, to see what they cost; then none in such a short run but before evaluations."""
    assert attempt(tmp_path, "r", "checkpoint.every=auto", "checkpoint.keep=100", "epochs=2", ranks=2) == [0, 0]
    steps = [int(path.name.removeprefix("step-")) for path in newest_first(tmp_path / "r" / "checkpoints")]
    assert {5, 10} <= set(steps)
    assert steps[-1] <= 2
    assert len(steps) <= 4
    told = re.search(r"checkpoint.every=auto: each (\d+) s \(a save holds training up for", output(tmp_path, "r"))
    assert told
    assert int(told[1]) >= 30


def test_a_finished_run_is_finished(tmp_path):
    assert attempt(tmp_path, "r", "epochs=1") == [0]
    files = {file: file.read_bytes() for file in (tmp_path / "r").rglob("*") if file.is_file()}
    assert attempt(tmp_path, "r", "epochs=1", ranks=2) == [0, 0]
    assert re.findall(r".*nothing to do.*", output(tmp_path, "r")) == [
        f"{tmp_path / 'r'} is finished: nothing to do (raise epochs= to continue it)"
    ]
    files.pop(tmp_path / "r" / "lease.lock", None)
    assert {file: file.read_bytes() for file in files} == files
