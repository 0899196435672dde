"""Code of the user's own: checked as text, run as it was sent, and told of by file and line where it fails."""

import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from launch.cli import main as launch
from launch.runs import send
from launch.runs.checks import check_existing
from launch.sweep.directory import SweepDir
from launch.sweep.points import grid
from launch.sweep.trials import trials
from launch.sweep.words import from_words
from recipes.changes import differences
from recipes.load import digest, dump, load, load_file
from recipes.metric import is_better
from recipes.plugin_check import check_plugin_code
from recipes.plugin_files import with_own_copies
from recipes.schema.data import PluginData
from recipes.schema.plugins import PluginFields
from resnet import Run
from resnet.answers import Answers
from resnet.data.sources.registry import open_sources
from resnet.inference import count_logits
from resnet.plugins import Callbacks, PluginError, changed_states, check_logits, own_model
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import read_status
from resnet.tally import Tally
from resnet.tools.average import average
from resnet.tools.evaluate import evaluate
from resnet.tools.trained import find_trained
from tests.helpers import OFF, PROGRAM, train

if TYPE_CHECKING:
    pass

OWN = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, width: int = 4):
        super().__init__()
        self.conv1, self.head = nn.Conv2d(in_channels, width, 3), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(torch.nn.functional.dropout(self.conv1(x).mean((2, 3)), 0.5, self.training))

class Odd(Net):
    def forward(self, x):
        return super().forward(x), x

class Stateful(Net):
    def get_extra_state(self):
        return {}

def lazy(num_classes, in_channels):
    return nn.LazyLinear(num_classes)

def frozen(num_classes, in_channels):
    return nn.Flatten()

class Leaves:
    def on_step(self, step, model):
        raise SystemExit(0)

class Holds:
    def state_dict(self):
        state = {}
        return state | {"me": [state, state.setdefault("itself", state)]}

class Images:
    classes, labels = ["a", "b"], [0, 1]

    def __init__(self, train: bool, image=None):
        self.image = image

    def __len__(self):
        return 2

    def read(self, index):
        return self.image

    def describe(self, index):
        return f"row {index}"

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
        ("plugins.loss=own.py:Counter", "Counter is a class, and what is called with (logits, targets)"),
        ("plugins.callbacks=[own.py:Counter]", "Counter has none of on_step, on_evaluation"),
        ("plugins.loss=torch.nn.functional:cros_entropy", "did you mean cross_entropy"),
        ("plugins.loss=no_such_package.losses:f", "no module no_such_package.losses"),
        ("plugins.loss=beside.py:f", "beside.py imports own, beside it"),
        ("plugins.loss=wrong.py:f", "wrong.py, line 2"),
        ("plugins.loss=odd.py:later", "later is async"),
        ("plugins.loss=odd.py:number", "number is 3, which cannot be called"),
        ("plugins.callbacks=[odd.py:Short]", "Short.on_step is called with (step, model), and takes ()"),
        ("plugins.loss=deep.py:f", "deep.py is nested too deeply"),
    ],
)
def test_mistakes_show_before_anything_is_sent_and_nothing_is_run(own, monkeypatch, word, told):
    (own / "beside.py").write_text("from own import squared as f\n")
    (own / "wrong.py").write_text("def f(logits, targets):\n    return (\n")
    (own / "deep.py").write_text(f"f = {'-' * 20_000}1\n")
    (own / "odd.py").write_text(
        "async def later(logits, targets): ...\nnumber = 3\nclass Short:\n    def on_step(self): ...\n"
    )
    # Of other tests, some of which train in this process.
    for name in [name for name in sys.modules if name.startswith("resnet_plugin_own")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError) as error:
        check_plugin_code(load(["recipe=r.yaml", word]).recipe)
    assert told in str(error.value)
    assert not any(name.startswith("resnet_plugin_own") for name in sys.modules)


def test_what_is_right_passes_the_check(own, capsys):
    check_plugin_code(load(["recipe=r.yaml", "plugins.loss=torch.nn.functional:cross_entropy"]).recipe)
    (own / "bom.py").write_bytes(
        b"\xef\xbb\xbffor _ in range(1):\n    match 1:\n        case 1:\n            def f(logits, targets): ...\n"
        b"class Logs:\n    on_step = lambda self, step, model: None\n    def on_evaluation(self, *told): ...\n"
    )
    (own / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'Z\xfcrich'\nf = print\n".encode("latin-1"))
    check_plugin_code(load(["recipe=r.yaml", "plugins.loss=bom.py:f", "plugins.callbacks=[bom.py:Logs]"]).recipe)
    check_plugin_code(load(["recipe=r.yaml", "plugins.loss=latin.py:f"]).recipe)
    for words, code in {"seed=1": 0, "plugins.loss=own.py:sqared": 2}.items():
        with pytest.raises(SystemExit, match=str(code)):
            launch(["show", "recipe=r.yaml", words])
    assert "did you mean squared" in capsys.readouterr().err


def test_where_a_file_lies_is_no_part_of_what_is_trained(own):
    here = load(["recipe=r.yaml"]).recipe
    there = with_own_copies(here, own / "runs" / "a")
    assert (own / "runs" / "a" / "plugins" / "own.py").read_text() == OWN
    assert digest(here) == digest(there)
    assert differences(here, there) == {}
    assert "plugins.loss.path" in differences(here, load(["recipe=r.yaml", "plugins.loss=own.py:broken"]).recipe)


def test_a_run_keeps_its_good_copy_where_its_network_was_edited_or_sending_fails(own, monkeypatch):
    recipe, run_dir = load(["recipe=r.yaml", "run.name=a"]).recipe, own / "runs" / "a"
    kept, copy = with_own_copies(recipe, run_dir), run_dir / "plugins" / "own.py"
    (run_dir / "recipe.yaml").write_text(dump(kept))
    (run_dir / "checkpoints" / "step-1").mkdir(parents=True)
    (own / "own.py").write_text(OWN + "\n# edited\n")
    with pytest.raises(ValueError, match=r"own\.py was edited\)\nput the file back, as in .*/a/plugins/own\.py"):
        check_existing(run_dir, recipe)

    def refused(*_):
        raise ValueError(copy.read_text().splitlines()[-1])

    monkeypatch.setattr(send, "take_snapshot", lambda place: place)
    monkeypatch.setattr(send, "send", refused)
    with pytest.raises(ValueError, match="# edited"):
        send.submit(send.Prepared(run_dir, recipe, [], is_new=False), [])
    assert copy.read_text() == OWN
    (own / "own.py").unlink()
    with pytest.raises(ValueError, match=r"no file .*own\.py.*; the run has kept a copy, which recipe=runs/a takes"):
        check_plugin_code(recipe)


def test_a_sweep_refuses_two_files_of_one_name(own):
    for folder in ("a", "b"):
        (own / folder).mkdir()
        (own / folder / "p.py").write_text(OWN)
    with pytest.raises(ValueError, match=r"plugins in a/p\.py and b/p\.py"):
        trials(sweep := from_words(["recipe=r.yaml", "plugins.loss=a/p.py:squared,b/p.py:squared"]), grid(sweep))


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

    assert average(own / "runs" / "a").evaluation.metrics["share"] == pytest.approx(found.metrics["share"])
    with pytest.raises(ValueError, match=r"own\.py:Net is no ResNet of this program"):
        Run("a").features("val")

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

    moved = (own / "runs").rename(own / "elsewhere") / "a"
    for recipe in (Run(moved).recipe, load([f"recipe={moved}"]).recipe):
        assert {plugin.file and plugin.file.parent for plugin in recipe.plugins_named().values()} == {moved / "plugins"}
    assert Run(moved).load()(torch.zeros(2, 3, 16, 16)).shape == (2, 4)


def test_a_mistake_in_ones_own_code_is_told_by_file_and_line(own, capsys):
    line = OWN.splitlines().index('    return {}["nothing"]') + 1
    assert train("recipe=r.yaml", "run.name=b", "plugins.loss=own.py:broken", *SMALL) == 1
    assert f"plugin own.py, line {line}: KeyError: 'nothing'" in (told := capsys.readouterr().err)
    assert "Traceback" not in told
    assert train("recipe=r.yaml", "run.name=c", "model.plugin.args.width=-1", *SMALL) == 2
    assert "model.plugin=own.py:Net: plugin own.py, line 7: " in capsys.readouterr().err
    assert train("recipe=r.yaml", "run.name=d", "model.plugin.path=own.py:Odd", *SMALL) == 1
    assert "model.plugin=own.py:Odd has to give logits in floating point (16, 4), not tuple" in capsys.readouterr().err
    assert train("recipe=r.yaml", "run.name=e", "plugins.callbacks=[own.py:Leaves]", *SMALL) == 1
    assert re.search(r"plugin own\.py, line \d+: SystemExit: 0", capsys.readouterr().err)
    assert read_status(own / "runs" / "e")["state"] == "failed"
    (own / "leaves.py").write_text("import sys\nsys.exit()\n")
    assert train("recipe=r.yaml", "run.name=f", "plugins.loss=leaves.py:f", *SMALL) == 2
    assert "plugins.loss=leaves.py:f: plugin leaves.py, line 2: SystemExit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [("Stateful", "_extra_state, of get_extra_state, is no weight"), ("lazy", "weight has no shape before"),
     ("frozen", "without parameters that are trained")],
)  # fmt: skip
def test_a_network_that_no_checkpoint_holds_is_refused(own, name, told):
    with pytest.raises(ValueError, match=told):
        own_model(PluginFields(path=f"own.py:{name}"), 4, 3)


@pytest.mark.parametrize("output", [torch.zeros(2, 4, 1), torch.zeros(2, 5), torch.zeros(3, 4), torch.ones(2, 4).int()])
def test_what_is_no_logits_is_told(output):
    with pytest.raises(PluginError, match=r"model\.plugin=m\.py:N has to give logits in floating point \(2, 4\), not "):
        check_logits(PluginFields(path="m.py:N"), output, 2, 4)


@pytest.mark.parametrize("image", [None, torch.zeros(3, 4, 4), torch.zeros(4, 4, 3).byte(), np.zeros((3, 4, 4))])
def test_what_is_no_image_ends_the_run(own, image):
    plugin = PluginFields(path="own.py:Images", args={"image": image})
    source, _ = open_sources(PluginData(source="plugin", plugin=plugin))
    with pytest.raises(PluginError, match=r"own\.py:Images.*read\(1\) has to give .*uint8 \(3, height.*not .*row 1"):
        source.read(1)


def test_states_of_callbacks_that_come_and_go_are_told(own):
    callbacks = Callbacks([PluginFields(path="own.py:Holds")])
    assert changed_states(callbacks, {"gone.py:Counter": {}}) == [
        "plugins.callbacks: own.py:Holds was none before: its state begins anew",
        "plugins.callbacks: the state of gone.py:Counter is dropped",
    ]
    with pytest.raises(PluginError, match=r"own\.py:Holds holds a value that holds itself"):
        callbacks.state_dict()


def test_a_number_is_better_than_none_and_the_last_of_none_is_taken():
    nan = math.nan
    assert [is_better("share", *pair) for pair in ((nan, None), (nan, nan), (0.1, nan), (nan, 0.1))] == [True] * 3 + [
        False
    ]


def test_several_labels_count_as_they_should():
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3], [1, 3, 2], [5, 1, 0]])
    targets = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
    tally = Tally(3, torch.device("cpu"))
    recipe = load(["recipe=quickstart", "loss=bce"]).recipe
    count_logits(tally, logits, targets.argmax(1), torch.arange(4), recipe, targets)
    result = tally.read()
    assert result["top1"] == 50, "the second and third: the first's labels are second best, the last has none"
    assert (result["confusion"], result["ece"]) == (None, None), "no image is of one class"
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
