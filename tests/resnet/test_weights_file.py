"""What weights files say of themselves, and what does not fit them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import resnet
from launch.runs.checks import check_paths
from recipes.load import digest, load
from recipes.schema.model import Model
from resnet.net import build_model, effective_model
from resnet.pretrained import find_file
from resnet.process.version import VERSION
from resnet.tools.cli import main
from resnet.weights_file import KEY, check_fits, metadata_of, read_info
from tests.helpers import PROGRAM, TINY, newest, same, train, weights

SILU = ["model.activation=silu", "model.stem=cifar", "augment.mean=[0.5,0.5,0.5]"]


class Finished(NamedTuple):
    run: Path
    words: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shapes) -> Finished:
    """A run with an average, whose weights are kept each epoch."""
    root = tmp_path_factory.mktemp("runs")
    words = [*TINY, *SILU, f"data.train={shapes}", "ema.decay=0.9", "checkpoint.weights_every=1", f"run.root={root}"]
    assert train(*words, "run.name=first", "epochs=1") == 0
    return Finished(root / "first", words)


def test_every_weights_file_of_a_run_says_what_it_is(finished):
    files = sorted(finished.run.rglob("*.safetensors"))
    assert {file.name for file in files} == {
        *("ema.safetensors", "epoch-0001.safetensors", "final.safetensors", "model.safetensors"),
    }
    recipe = resnet.Run(finished.run).recipe
    for file in files:
        info = resnet.weights_info(file)
        assert info is not None
        assert info.model == Model(block="basic", layers=[1, 1, 1], stem="cifar", activation="silu")
        assert info.classes == resnet.Run(finished.run).classes
        assert (info.mean, info.std) == ((0.5, 0.5, 0.5), (0.229, 0.224, 0.225))
        assert (info.train_size, info.val_resize, info.val_size) == (32, 36, 32)
        assert (info.crop, info.interpolation, info.loss) == ("random_resized", "bilinear", "cross_entropy")
        assert (info.recipe, info.digest, info.step) == ("quickstart", digest(recipe), 10)
        assert (info.version, info.format) == (VERSION, 1)


def test_a_file_has_one_key_so_that_its_bytes_are_always_the_same(finished):
    file = finished.run / newest(finished.run) / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert list(metadata) == [KEY]
    again = safetensors.torch.save(safetensors.torch.load_file(file), dict(metadata))
    assert again == file.read_bytes()
    assert metadata == metadata_of(resnet.Run(finished.run).recipe, resnet.Run(finished.run).classes, 10)


def test_a_network_is_built_from_its_file_alone(finished, tmp_path):
    file = finished.run / "final.safetensors"
    alone = (tmp_path / "elsewhere.safetensors").resolve()
    alone.write_bytes(file.read_bytes())
    network = resnet.load(alone)
    assert not network.training
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        # Its weights are in channels_last, which rounds otherwise.
        torch.testing.assert_close(network(images), resnet.Run(finished.run).load()(images))
    with pytest.raises(ValueError, match="activation silu; here: resnet18, stem imagenet"):
        resnet.load(alone, "quickstart")


def test_the_examples_of_the_page_on_weights(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(finished.run.parent)
    blocks = re.findall(r"```python\n(.*?)```", (PROGRAM / "docs" / "weights.md").read_text(), flags=re.DOTALL)
    ours, without_us, _ = blocks
    names: dict = {}
    exec(ours, names)
    assert (names["info"].model.activation, names["network"].fc.out_features) == ("silu", 10)
    exec(without_us, names)
    assert names["content"]["classes"] == names["info"].classes


def test_a_file_that_says_nothing_needs_a_recipe(tmp_path):
    donor = torchvision.models.resnet18(num_classes=3).eval()
    torch.save({"model": donor.state_dict()}, tmp_path / "theirs.pth")
    assert resnet.weights_info(tmp_path / "theirs.pth") is None
    for wrong in (tmp_path, tmp_path / "gone.pth", tmp_path / "gone.safetensors"):
        for ask in (resnet.weights_info, resnet.load):
            with pytest.raises(ValueError, match=r"there is no file .*: give a file of weights"):
                ask(wrong)
    with pytest.raises(ValueError, match="does not say which network it is of: give recipe="):
        resnet.load(tmp_path / "theirs.pth")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(resnet.load(tmp_path / "theirs.pth", "quickstart")(images), donor(images))
    with pytest.raises(ValueError, match="there is no file"):
        resnet.load(tmp_path / "nowhere.pth")


def test_a_run_is_not_evaluated_as_another_network(finished, capsys):
    with pytest.raises(SystemExit):
        main(["eval", str(finished.run), "model.activation=relu", "model.blurpool=true"])
    said = capsys.readouterr().err
    assert (
        "activation silu, blurpool false; here: activation relu, blurpool true. It needs model.activation=silu" in said
    )


# Which networks are the same

MODELS = st.fixed_dictionaries(
    {
        "net": st.sampled_from(
            [
                {"name": "resnet18"},
                {"block": "basic", "layers": [2, 2, 2, 2]},
                {"block": "basic", "layers": [1, 1, 1]},
                {"block": "bottleneck", "layers": [1, 1, 1]},
                {"block": "bottleneck", "layers": [1, 1, 1], "groups": 2, "width_per_group": 32},
                {"block": "basic", "layers": [1, 1, 1], "widths": [8, 12, 16], "width_multiplier": 2},
                {"block": "basic", "layers": [1, 1, 1], "widths": [16, 24, 32], "stem_width": 8},
                {"name": "seresnet18", "norm": "group", "norm_groups": 2},
                {"name": "resnet18", "width_multiplier": 2},
                {"name": "wide_resnet16_8", "se_ratio": 0.5, "attention": "se"},
            ]
        ),
        "stem": st.sampled_from([None, "imagenet", "cifar", "deep"]),
        "maxpool": st.sampled_from([None, True, False]),
        "activation": st.sampled_from(
            [
                {"activation": "relu"},
                {"activation": "silu"},
                {"activation": "leaky_relu"},
                {"activation": "leaky_relu", "activation_args": {"negative_slope": 0.01}},
                {"activation": "leaky_relu", "activation_args": {"negative_slope": 0.2}},
            ]
        ),
        "blurpool": st.booleans(),
        "shape": st.sampled_from([{}, {"channels": {"layer2.0.conv1": 8, "layer2": 24}}]),
        "irrelevant": st.sampled_from([{}, {"stochastic_depth": 0.2, "zero_init_residual": True}]),
    }
).filter(lambda values: not values["shape"] or (values["stem"] != "deep" and "se" not in str(values["net"])))


def words_of(values: dict) -> list[str]:
    keys = {key: value for key, value in values.items() if not isinstance(value, dict)}
    for group in ("net", "activation", "shape", "irrelevant"):
        keys |= values.get(group, {})
    return [
        "recipe=quickstart",
        "model.name=null",
        *(f"model.{key}={json.dumps(value)}" for key, value in keys.items()),
    ]


def described(model: Model) -> str:
    with torch.device("meta"):
        network = build_model(model.model_copy(update={"stochastic_depth": 0.0}), 3)
    return str(network)


def test_a_named_net_and_the_same_one_by_hand_are_equal():
    by_hand = {"block": "bottleneck", "layers": [3, 4, 6, 3]}
    for one, other in (
        ({"name": "resnet50", "groups": 32, "width_per_group": 4}, {"name": "resnext50_32x4d"}),
        (by_hand, {"name": "resnet50"}),
        (by_hand | {"width_per_group": 128}, {"name": "wide_resnet50_2"}),
    ):
        assert effective_model(Model(**one)) == effective_model(Model(**other))


PLAIN = {"net": {"name": "resnet18"}, "maxpool": None, "activation": {}, "blurpool": False, "irrelevant": {}}


@settings(max_examples=25, deadline=None)
@given(MODELS, MODELS)
@example(PLAIN | {"stem": "imagenet", "maxpool": False}, PLAIN | {"stem": "cifar"})
@example(PLAIN | {"stem": None}, PLAIN | {"stem": "cifar", "net": {"name": "wide_resnet16_8"}})
def test_what_does_not_fit_is_told_with_the_keys_that_make_it_fit(there, here):
    recipe = load(words_of(there)).recipe
    info = resnet.WeightsInfo(**{**dict.fromkeys(resnet.WeightsInfo._fields), "model": recipe.model})
    words = words_of(here)
    model = load(words).recipe.model
    if described(recipe.model) == described(model):
        check_fits(info, model, "FILE")
        return
    with pytest.raises(ValueError, match="FILE is of another network") as raised:
        check_fits(info, model, "FILE")
    needed = str(raised.value).partition("It needs ")[2]
    keys = [f"model.{word}".replace("'", "").rstrip() for word in needed.split("model.")[1:]]
    check_fits(info, load([*words, *keys]).recipe.model, "FILE")


# What is damaged or of another version


def rewrite(file: Path, **changes: object) -> Path:
    with safe_open(file, "pt") as opened:
        content = json.loads(opened.metadata()[KEY])
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file(tensors, file, {KEY: json.dumps(content | changes), "format": "pt"})
    return file


@pytest.fixture
def file(finished, tmp_path) -> Path:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((finished.run / "final.safetensors").read_bytes())
    return copy


def test_a_newer_versions_file_is_read_where_its_new_keys_are_off(file):
    before = read_info(file)
    assert before is not None
    model = before.model.model_dump() | {"mixer": False, "token_drop": 0.0}
    assert read_info(rewrite(file, model=model, format=2, licence="MIT")) == before._replace(format=2)
    with pytest.raises(ValueError, match=r"what this version cannot read.*mixer"):
        read_info(rewrite(file, model=model | {"mixer": "some"}))


@pytest.mark.parametrize(
    "changes", [{"model": {"name": "resnet19"}}, {"model": 3}, {"classes": None}, {"mean": [1, 2]}, {"step": "many"}]
)
def test_damaged_metadata_is_told(file, changes):
    with pytest.raises(ValueError, match=r"copy.safetensors says of its weights what this version cannot read"):
        read_info(rewrite(file, **changes))


def test_what_a_stranger_says_of_its_weights_is_told_in_a_few_words(file):
    info = read_info(file)
    assert info is not None
    net = info.model.model_dump()
    places = ("a" * 5000, f"layer1.{'1' * 5000}.conv1", "layer1.١.conv1")
    for channels in ({f"layer1.{i}.conv1": -i for i in range(2000)}, *({place: 8} for place in places)):
        with pytest.raises(ValueError, match=r"cannot read \(model") as told:
            read_info(rewrite(file, model=net | {"channels": channels}))
        assert len(str(told.value)) < 1000
    deep = {"layers": [999] * 3, "channels": {f"layer2.{i}.conv1": 8 for i in range(900)}}
    said = read_info(rewrite(file, model=net | deep))
    assert said is not None
    with pytest.raises(ValueError, match=r"is of another network: layers \[999,999,999\]") as told:
        check_fits(said, info.model, str(file))
    assert len(str(told.value)) < 6000
    with pytest.raises(ValueError, match=r"a number of 4000 digits"):
        read_info(rewrite(file, step=10**3999))


def test_damaged_files_are_told(file):
    content = file.read_bytes()
    for damaged in (b"", content[:5], content[:300], b"\xff" * 100):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read the weights .*copy.safetensors"):
            read_info(file)


# Starting from a run


def test_a_run_starts_from_another_ones_weights_by_its_name(finished, capsys):
    run, last = finished.run, f"{newest(finished.run)}/ema.safetensors"
    words = [
        *finished.words,
        "epochs=1",
        "max_steps=1",
        "optimizer.lr=1e-9",
        "ema=off",
        "checkpoint.weights_every=null",
    ]
    assert train(*words, "model.pretrained=first@last", "run.name=second") == 0
    assert "tensors from first@last; the classifier is kept" in capsys.readouterr().out
    begun = weights(run.parent / "second")["layer1.0.conv1.weight"]
    torch.testing.assert_close(begun, weights(run, last)["layer1.0.conv1.weight"], rtol=1e-4, atol=1e-5)
    for source, file in {
        "first": "final.safetensors",
        "first@step-10": last,
        str(run): "final.safetensors",
        f"{run}@10": last,
        f"{run}/{last}": last,
    }.items():
        assert find_file(source, run.parent) == run / file
    for source, message in {
        "frist": "did you mean first",
        "first@step-7": r"no weights 'step-7'.* \(10\)",
        "gone/first.pth": "no such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_file(source, run.parent)


def test_the_launcher_knows_runs_by_their_names(finished):
    def check(source: object) -> None:
        check_paths(load([*finished.words, f"model.pretrained={source}"]).recipe, None)

    for source in ("first", "first@best", f"{finished.run}@last", finished.run, finished.run / "final.safetensors"):
        check(source)
    for source in ("frist", "frist@best", finished.run / "gone.pth"):
        with pytest.raises(ValueError, match=f"model.pretrained={source}"):
            check(source)


def test_a_run_that_goes_on_needs_no_longer_what_it_began_with(finished, file, capsys):
    words = [*finished.words, f"model.pretrained={file}", "run.name=goes-on", "optimizer.backbone_lr_scale=0.1"]
    assert train(*words, "max_steps=2", "epochs=1") == 0
    file.unlink()
    assert train(*words, "max_steps=4", "epochs=1") == 0
    assert "continues from" in capsys.readouterr().out


def test_another_network_and_other_images_are_told(finished, capsys):
    words = [*finished.words, "epochs=1", "max_steps=1", "model.pretrained=first"]
    assert train(*words, "run.name=relu", "model.activation=relu") == 2
    said = capsys.readouterr().err
    assert "model.pretrained=first: " in said
    assert "It needs model.activation=silu" in said
    assert train(*words, "run.name=mean", "augment.mean=[0.4,0.4,0.4]", "augment.val_size=24") == 0
    said = capsys.readouterr().out
    assert (
        "first: trained with augment.mean=[0.5,0.5,0.5] augment.val_size=32, here it is augment.mean=[0.4,0.4," in said
    )
    assert same(weights(finished.run), weights(finished.run, f"{newest(finished.run)}/ema.safetensors"))
