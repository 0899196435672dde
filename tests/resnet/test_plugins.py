"""Code of the user's own: checked as text, run as it was sent, and told of by file and line where it fails."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from launch.sweep.directory import SweepDir
from recipes.changes import differences
from recipes.load import digest, load, load_file
from recipes.plugin_check import check_plugin_code
from recipes.plugin_files import with_own_copies
from resnet.answers import Answers
from resnet.inference import count_logits
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import read_status
from resnet.tally import Tally
from resnet.tools.evaluate import evaluate
from resnet.tools.trained import find_trained
from tests.helpers import OFF, PROGRAM, train

OWN = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, width: int = 4):
        super().__init__()
        self.conv1, self.head = nn.Conv2d(in_channels, width, 3), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(torch.nn.functional.dropout(self.conv1(x).mean((2, 3)), 0.5, self.training))

def squared(logits, targets, scale: float = 1.0):
    return scale * (logits.softmax(1) - targets).square().sum(1)

def share(logits, targets) -> float:
    return (logits.argmax(1) == targets).double().mean().item()

def broken(logits, targets):
    return {}["nothing"]

class Counter:
    def onstep(self): ...
"""
SMALL = [
    *(*OFF, "data={source: synthetic, samples: 32, classes: 4, size: 20, num_workers: 0}", "batch_size=16", "epochs=1"),
    *("augment={train_size: 16, val_resize: 16, val_size: 16}", "optimizer={name: sgd, lr: 0.1}", "progress=off"),
]


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A folder that is worked in, with a recipe and plugins beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "r.yaml").write_text(
        "model: {plugin: {path: own.py:Net, args: {width: 8}}}\nplugins: {loss: own.py:squared, metrics: "
        "{share: own.py:share}}\neval: {metric: share}\n" + "data: {source: synthetic}\nepochs: 1\nbatch_size: 16\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("model.plugin.args.wdth=3", "Net has no parameter wdth: did you mean width?"),
        ("model.plugin.args.width=wide", "args.width=wide is no int"),
        ("model.plugin.args.in_channels=1", "the program gives in_channels itself"),
        ("plugins.loss=own.py:sqared", "own.py has no sqared: did you mean squared"),
        ("plugins.loss=owm.py:squared", "there is no file"),
        ("plugins.loss=own.py:Counter", "is called with (logits, targets), and takes none"),
        ("plugins.callbacks=[own.py:Counter]", "Counter has none of on_step, on_evaluation"),
        ("plugins.loss=torch.nn.functional:cros_entropy", "did you mean cross_entropy"),
        ("plugins.loss=no_such_package.losses:f", "no module no_such_package.losses"),
        ("plugins.loss=beside.py:f", "beside.py imports own, beside it"),
        ("plugins.loss=wrong.py:f", "wrong.py, line 2"),
    ],
)
def test_mistakes_show_before_anything_is_sent_and_nothing_is_run(own, word, told):
    (own / "beside.py").write_text("from own import squared as f\n")
    (own / "wrong.py").write_text("def f(logits, targets):\n    return (\n")
    with pytest.raises(ValueError) as error:
        check_plugin_code(load(["recipe=r.yaml", word]).recipe)
    assert told in str(error.value)
    assert not any(name.startswith("resnet_plugin_own") for name in sys.modules)


def test_what_is_right_passes_the_check(own):
    check_plugin_code(load(["recipe=r.yaml", "plugins.loss=torch.nn.functional:cross_entropy"]).recipe)


def test_where_a_file_lies_is_no_part_of_what_is_trained(own):
    here = load(["recipe=r.yaml"]).recipe
    there = with_own_copies(here, own / "runs" / "a")
    assert (own / "runs" / "a" / "plugins" / "own.py").read_text() == OWN
    assert digest(here) == digest(there)
    assert differences(here, there) == {}
    assert "plugins.loss.path" in differences(here, load(["recipe=r.yaml", "plugins.loss=own.py:broken"]).recipe)


def test_a_sweep_runs_the_code_that_it_began_with(own):
    recipe = load(["recipe=r.yaml"]).recipe
    directory = SweepDir(own / "s")
    directory.keep_plugins([recipe])
    directory.refuse_edited([recipe])
    (own / "own.py").write_text(OWN + "\n# edited\n")
    with pytest.raises(ValueError, match=r"own\.py is not the file that .*/s began with"):
        directory.refuse_edited([recipe])


def test_a_run_of_ones_own_trains_goes_on_edited_and_is_evaluated(own, capsys):
    words = ["recipe=r.yaml", "run.name=a", *SMALL]
    assert train(*words) == 0
    kept = load_file(own / "runs" / "a" / "recipe.yaml").recipe
    assert kept.model.plugin is not None
    assert kept.model.plugin.file == own / "runs" / "a" / "plugins" / "own.py"
    found = evaluate([find_trained("a")])[0]
    assert found.metrics["share"] == read_status(own / "runs" / "a")["best"] == pytest.approx(found.top1 / 100)

    (own / "f.safetensors").write_bytes((own / "runs" / "a" / "final.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"own\.py:Net\), and weights alone make no code run"):
        find_trained("f.safetensors")

    (own / "losses.py").write_text(OWN)
    assert train(*words, "epochs=2", "plugins.loss=losses.py:squared") == 0
    (own / "losses.py").write_text(OWN + "\n# edited\n")
    assert train(*words, "epochs=3", "plugins.loss=losses.py:squared") == 0
    assert "changed: plugins.loss (losses.py was edited)" in capsys.readouterr().err
    assert "plugins.loss (losses.py)" in read_provenance(own / "runs" / "a")["attempts"][-1]["changed"]
    (own / "own.py").write_text(OWN + "\n# edited\n")
    assert train(*words, "epochs=4") == 2
    assert "its network cannot change while it goes on: model.plugin (own.py was edited)" in capsys.readouterr().err


def test_a_mistake_in_ones_own_code_is_told_by_file_and_line(own, capsys):
    line = OWN.splitlines().index('    return {}["nothing"]') + 1
    assert train("recipe=r.yaml", "run.name=b", "plugins.loss=own.py:broken", *SMALL) == 1
    assert f"plugin own.py, line {line}: KeyError: 'nothing'" in (told := capsys.readouterr().err)
    assert "Traceback" not in told
    assert train("recipe=r.yaml", "run.name=c", "model.plugin.args.width=-1", *SMALL) == 2
    assert "model.plugin=own.py:Net: plugin own.py, line 7: " in capsys.readouterr().err


def test_several_labels_count_as_they_should():
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3], [1, 3, 2], [5, 1, 0]])
    targets = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
    tally = Tally(3, torch.device("cpu"))
    recipe = load(["recipe=quickstart", "loss=bce"]).recipe
    count_logits(tally, logits, targets.argmax(1), torch.arange(4), recipe, targets)
    result = tally.read()
    assert result["top1"] == 50, "the second and third: the first's labels are second best, the last has none"
    assert result["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets).item(), abs=1e-5)


def test_metrics_see_all_images_in_their_order():
    metrics = load(["recipe=quickstart", "plugins.metrics={first: torch:trace}"]).recipe.plugins.metrics
    answers = Answers(metrics)
    seen = {}

    def noted(logits, targets):
        seen.update(logits=logits, targets=targets)
        return math.pi

    for rows in ([2, 0], [1]):
        answers.add(torch.eye(3)[rows], torch.tensor(rows), torch.tensor(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "trace", noted)
        assert answers.read() == {"first": math.pi}
    assert seen["targets"].tolist() == [0, 1, 2]
    assert torch.equal(seen["logits"], torch.eye(3))


@pytest.mark.parametrize("seed", range(5))
def test_the_examples_metrics_are_as_they_are_defined(seed):
    sys.path.insert(0, str(PROGRAM / "examples" / "multilabel"))
    try:
        from several_labels import auroc, mean_average_precision  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, 3, generator=generator)
    targets = (torch.rand(30, 3, generator=generator) < 0.3).float()
    precisions, areas = [], []
    for scores, has in zip(logits.T.tolist(), (targets.T > 0).tolist(), strict=True):
        with_it, without = ([s for s, h in zip(scores, has, strict=True) if h is wanted] for wanted in (True, False))
        at = [sum(p >= s for p in with_it) / sum(other >= s for other in scores) for s in with_it]
        precisions.append(sum(at) / len(at))
        areas.append(sum(p > n for p in with_it for n in without) / len(with_it) / len(without))
    assert mean_average_precision(logits, targets) == pytest.approx(sum(precisions) / 3)
    assert auroc(logits, targets) == pytest.approx(sum(areas) / 3)
