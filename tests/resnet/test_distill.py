"""Learning from a trained network: what the loss is, what the teacher is shown, and what cannot teach."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import resnet
import resnet.loop
import resnet.losses
from launch.runs.checks import check_paths
from launch.runs.requests import Place
from launch.runs.send import prepare
from recipes.load import load
from recipes.schema.training import Distill
from resnet.distill import distillation_loss
from resnet.pretrained import find_file
from resnet.tools.replay import replay
from slurm.profile import Profile
from tests.helpers import PROGRAM, TINY, column, furthest, train, weights

LARGER = ["model.layers=[1,1,1,1]", "model.activation=silu"]


class Taught(NamedTuple):
    teacher: Path
    words: list[str]


@pytest.fixture(scope="module")
def taught(tmp_path_factory, shapes) -> Taught:
    """A teacher of another architecture and image size than its students, by its name among their runs."""
    root = tmp_path_factory.mktemp("runs")
    words = [*TINY, f"data.train={shapes}", f"run.root={root}"]
    assert train(*words, *LARGER, "augment.train_size=40", "ema.decay=0.5", "run.name=teacher", "epochs=2") == 0
    return Taught(root / "teacher", words)


def described(file: Path, tensors: dict[str, torch.Tensor], source: Path, **changes: object) -> Path:
    """Weights that say of themselves what a source's say, but for some changes."""
    with safe_open(source, "pt") as opened:
        said = json.loads(opened.metadata()["resnet_launch"])
    safetensors.torch.save_file(tensors, file, {"resnet_launch": json.dumps(said | changes)})
    return file


def test_the_loss_is_the_one_of_the_paper():
    own, logits, teacher = torch.tensor(1.5), torch.tensor([[1.0, 2.0], [0.0, -3.0]]), torch.tensor([[3.0, 0], [1, 1]])
    loss = distillation_loss(own, logits, teacher, Distill(teacher="r", weight=0.25, temperature=2))
    p, q = (np.exp(x.numpy() / 2) / np.exp(x.numpy() / 2).sum(1, keepdims=True) for x in (teacher, logits))
    divergence = (p * np.log(p / q)).sum(1).mean()
    assert loss.item() == pytest.approx(0.75 * 1.5 + 0.25 * 4 * divergence, rel=1e-6)


def test_a_step_learns_from_what_the_teacher_says_of_its_images(taught, monkeypatch):
    answers, losses, inputs = [], [], []
    compute, prepare_input = resnet.losses.distillation_loss, resnet.loop.training_input

    def noted(own, logits, teacher, settings):
        answers.append(teacher)
        losses.append(compute(own, logits, teacher, settings))
        return losses[-1]

    monkeypatch.setattr(resnet.losses, "distillation_loss", noted)
    monkeypatch.setattr(resnet.loop, "training_input", lambda *a: inputs.append(prepare_input(*a)) or inputs[-1])
    words = ["distill.teacher=teacher@best", "max_batch_per_device=8", "augment.mixup=0.5", "max_steps=2", "epochs=1"]
    assert train(*taught.words, *words, "run.name=hand") == 0
    # Two micro-batches a step: the log has the mean of what both were.
    by_hand = torch.stack(losses).view(2, 2).mean(1).tolist()
    assert column(taught.teacher.parent / "hand", "train/loss") == pytest.approx(by_hand)
    teacher = resnet.load(taught.teacher / "final.safetensors")
    for given, answer in zip(inputs, answers, strict=True):
        assert given.mixing is not None
        assert not answer.requires_grad
        torch.testing.assert_close(answer, teacher(given.images), rtol=1e-4, atol=1e-5)


def divergence(teacher: Path, student: Path, images: torch.Tensor) -> float:
    """KL(teacher || student) of what two runs left, the mean over images."""
    with torch.no_grad():
        told, learnt = (resnet.load(run / "final.safetensors")(images).log_softmax(1) for run in (teacher, student))
    return (told.exp() * (told - learnt)).sum(1).mean().item()


def test_a_student_of_nothing_but_the_teacher_answers_as_it_does(taught):
    root = taught.teacher.parent
    for name, words in {"alone": [], "student": ["distill.teacher=teacher", "distill.weight=1"]}.items():
        assert train(*taught.words, *words, f"run.name={name}", "epochs=2") == 0
    torch.manual_seed(0)
    images = torch.randn(64, 3, 32, 32)
    student, alone = (divergence(taught.teacher, root / name, images) for name in ("student", "alone"))
    assert student < 0.7 * alone
    files = {file.name for file in (root / "student").rglob("*.safetensors")}
    assert files == {"model.safetensors", "final.safetensors"}
    assert weights(root / "student").keys() == weights(root / "alone").keys()


def test_classes_in_another_order_are_put_in_order(taught, tmp_path, capsys):
    """A frozen copy of the teacher has nothing to learn from it, whatever the images: its loss is 0 in every step."""
    source = taught.teacher / "final.safetensors"
    tensors, order = weights(taught.teacher), [*range(3, 10), 1, 0, 2]
    names = resnet.Run(taught.teacher).classes
    tensors |= {name: tensors[name][order].clone() for name in ("fc.weight", "fc.bias")}
    file = described(tmp_path / "turned.safetensors", tensors, source, classes=[names[i] for i in order])
    copy = [*LARGER, "model.pretrained=teacher", "model.freeze_backbone=true"]
    words = [f"distill.teacher={file}", "distill.weight=1", "augment.mixup=0.5", "epochs=1", "max_steps=3"]
    assert train(*taught.words, *copy, *words, "run.name=copy") == 0
    assert ", its classes put in this order): weight 1, temperature 4\n" in capsys.readouterr().out
    assert column(taught.teacher.parent / "copy", "train/loss") == pytest.approx([0, 0, 0], abs=1e-4)


def test_what_cannot_teach_is_refused_before_anything_is_written(taught, tmp_path, capsys):
    source, tensors = taught.teacher / "final.safetensors", weights(taught.teacher)
    names = [*resnet.Run(taught.teacher).classes[:-1], "somewhat else"]
    plain = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(tensors, plain)
    for words, message in {
        ("distill.teacher=techer",): "distill.teacher=techer: no run 'techer' in .*: did you mean teacher",
        ("distill.teacher=DEFAULT",): "distill.teacher=DEFAULT .*: a tag of torchvision's names no network",
        ("distill.weight=0.3",): "distill.teacher is missing",
        ("distill.teacher=teacher", "distill.temperature=1000"): "distill.temperature=1000 .*must be 100 or less",
        ("distill.teacher=teacher", "loss=bce"): "distill compares softmaxes, and loss=bce trains none",
        (
            "distill.teacher=teacher",
            "augment.std=[0.5,0.5,0.5]",
        ): r"trained with augment.std=\[0.229,0.224,0.225\], here it is augment.std=\[0.5,0.5,0.5\]",
        (f"distill.teacher={plain}",): "plain.safetensors does not say which network it is of",
        (f"distill.teacher={described(tmp_path / 'other.safetensors', tensors, source, classes=names)}",): (
            r"other classes apart: 10 classes there \(.*\), 10 here"
        ),
        (f"distill.teacher={described(tmp_path / 'bce.safetensors', tensors, source, loss='bce')}",): (
            "trained with loss=bce: its outputs are not for a softmax"
        ),
    }.items():
        assert train(*taught.words, *words, "epochs=1", "run.name=refused") == 2
        assert re.search(f"train.py: .*{message}", capsys.readouterr().err)
    assert not (taught.teacher.parent / "refused").exists()


def test_the_launcher_looks_for_the_teacher_too(taught, monkeypatch):
    def check(teacher: object) -> None:
        check_paths(load([*taught.words, f"distill.teacher={teacher}"]).recipe, None)

    check("teacher@best")
    check(taught.teacher / "final.safetensors")
    with pytest.raises(ValueError, match=r"distill\.teacher=techer@best"):
        check("techer@best")
    monkeypatch.setattr("launch.runs.send.check_slurm", lambda: None)
    words = [word for word in taught.words if not word.startswith("run.root=")]
    cluster = Profile(run_root=str(taught.teacher.parent), gpus_per_node=0)
    assert prepare(load([*words, "distill.teacher=teacher"]), [Place("there", cluster)]).is_new, (
        "where the job will look"
    )
    sweep = taught.teacher.parent / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text("{}")
    assert find_file("teacher", sweep) == taught.teacher / "final.safetensors", "a trial's run.root is its sweep"


def test_steps_are_trained_again_in_another_folder(taught):
    words = ["distill.teacher=teacher", "checkpoint.every=2 steps", "checkpoint.keep=9", "max_steps=6", "epochs=1"]
    assert train(*taught.words, *words, "model.stochastic_depth=0.2", "run.name=again") == 0
    again = replay(taught.teacher.parent / "again", 2, 4)
    assert again.equal, again


def test_a_run_is_made_of_another_programs_weights_as_the_page_says(taught, tmp_path, monkeypatch):
    page = (PROGRAM / "docs" / "distill.md").read_text()
    made = next(line for line in page.splitlines() if "model.freeze_backbone=true" in line)
    words = [word for word in shlex.split(made)[3:] if not word.startswith(("recipe=", "data.", "model.pretrained="))]
    theirs = tmp_path / "theirs.pth"
    torch.save(weights(taught.teacher), theirs)
    assert train(*taught.words, *LARGER, f"model.pretrained={theirs}", *words, "epochs=1", "run.name=theirs") == 0
    assert furthest(weights(taught.teacher.parent / "theirs"), weights(taught.teacher)) < 1e-6
    assert train(*taught.words, "distill.teacher=theirs", "epochs=1", "max_steps=1", "run.name=of-theirs") == 0
