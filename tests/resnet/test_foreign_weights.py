"""Weights that other trainers have written, and files of strangers."""

from __future__ import annotations

import argparse
import collections
import contextlib
import enum
import hashlib
import io
import json
import os
import pathlib
import pickle
import time
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from recipes.load import load
from recipes.schema.augment import Augment
from recipes.schema.model import Model
from resnet.inert_pickle import MOST_STEPS, Inert
from resnet.named_weights import named_net
from resnet.net import build_model, effective_model
from resnet.pretrained import load_pretrained, shaped_as_weights
from resnet.state_dicts import AVERAGES, WRAPPERS, find_state_dict, mismatches
from resnet.tools.cli import main
from resnet.tools.weights import load_alone
from resnet.torch_file import MOST_PICKLED, read_inertly
from resnet.weights_file import KEY, MOST_HEADER, MOST_SAID, metadata_of, read_info, read_weights

NET = {"block": "basic", "layers": [1, 1, 1], "stem": "cifar"}


def tiny(num_classes=5, **keys):
    return build_model(Model(**{**NET, **keys}), num_classes)


class Phase(enum.Enum):
    TRAIN = 1


class Options(dict):
    """As Lightning's AttributeDict."""


def options() -> argparse.Namespace:
    return argparse.Namespace(
        data=pathlib.Path("/data"), lr=np.float64(0.1), phase=Phase.TRAIN, mean=np.arange(3), classes={"a", "b"},
        groups=collections.defaultdict(list, {"a": [1]}), more=Options(depth=3), last=collections.deque([1, 2]),
        call=partial(print), shape=torch.Size([3]), dtype=torch.float16, device=torch.device("cpu"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def donor():
    torch.manual_seed(5)
    return tiny()


@pytest.fixture(scope="module")
def state(donor):
    return donor.state_dict()


def under(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: dict) -> dict:
    """Other weights, that are not to be taken."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


KINDS = {
    "plain": lambda s: (s, ""),
    "torch.compile": lambda s: (under("_orig_mod.", s), ""),
    "DDP around torch.compile": lambda s: ({"model": under("module._orig_mod.", s)}, ""),
    "a compiled stage": lambda s: ({n.replace("layer1.", "layer1._orig_mod."): t for n, t in s.items()}, ""),
    "torchvision's references": lambda s: (
        {"model": s, "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 3, "args": options()}, "",
    ),
    "torchvision's references with an average": lambda s: (
        {"model": other(s), "model_ema": {"n_averaged": torch.tensor(9), **under("module.", s)}, "args": options()},
        "averaged weights (model_ema)",
    ),
    "timm": lambda s: ({"arch": "resnet50", "state_dict": s, "args": options(), "metric": 1.0}, ""),
    "timm with an average": lambda s: (
        {"state_dict": other(s), "state_dict_ema": s, "args": options()}, "averaged weights (state_dict_ema)",
    ),
    "Lightning": lambda s: (
        {
            "state_dict": {**under("model.", s), "criterion.weight": torch.ones(5), "metric.total": torch.ones(1)},
            "hyper_parameters": Options(model=options()), "callbacks": {"ModelCheckpoint": {"best": torch.tensor(0.5)}},
        },
        "criterion.weight, metric.total beside model.* left out",
    ),
    "Lightning, nested": lambda s: ({"state_dict": under("net.backbone.", s)}, ""),
    "Composer": lambda s: ({"state": {"model": under("module.", s), "timestamp": options()}, "rng": [options()]}, ""),
    "an average of torch's": lambda s: ({"n_averaged": torch.tensor(3), **under("module.", s)}, ""),
    "a checkpoint of pytorch's examples": lambda s: (
        {"epoch": 3, "best_acc1": torch.tensor(70.0), "state_dict": under("module.", s), "optimizer": {}}, "",
    ),
    "a Sequential": lambda s: (under("1.", s), ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_other_trainers_write(kind, state, tmp_path):
    content, note = KINDS[kind](state)
    torch.save(content, tmp_path / "checkpoint.pth")
    assert set(read_weights(tmp_path / "checkpoint.pth")) - {"n_averaged"} == set(state)
    model = tiny()
    said = load_pretrained(model, str(tmp_path / "checkpoint.pth"))
    assert said.startswith(f"loaded {len(state)} tensors from ")
    assert note in said
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_torchs_own_average(donor, tmp_path):
    torch.save({"ema": AveragedModel(donor).state_dict()}, tmp_path / "swa.pt")
    model = tiny()
    assert "averaged weights (ema)" in load_pretrained(model, str(tmp_path / "swa.pt"))
    assert torch.equal(model.conv1.weight, donor.conv1.weight)


def test_tensors_with_attributes(state, tmp_path):
    raw = {name: nn.Buffer(tensor) for name, tensor in state.items()}
    raw["fc.bias"] = state["fc.bias"].clone()
    raw["fc.bias"].tag = "mine"
    torch.save({"state_dict": raw}, tmp_path / "raw.pth")
    read = read_weights(tmp_path / "raw.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())
    assert set(read) == set(state)


def test_the_losses_of_a_long_run_beside_the_weights(state, tmp_path):
    torch.save({"model": state, "losses": [0.5] * MOST_STEPS, "epochs": [1, 300, 70_000] * 100}, tmp_path / "w.pth")
    content = read_inertly(tmp_path / "w.pth")
    assert (len(content["losses"]), content["epochs"][:3]) == (MOST_STEPS, [1, 300, 70_000])
    assert set(read_weights(tmp_path / "w.pth")) == set(state)


def test_safetensors_with_metadata_of_others(state, tmp_path):
    save_file(under("module.", state), tmp_path / "timm.safetensors", {"format": "pt", "architecture": "resnet18"})
    assert set(read_weights(tmp_path / "timm.safetensors")) == set(state)


def test_a_backbone_without_a_classifier(state, tmp_path):
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    torch.save({**under("encoder.", backbone), "head.weight": torch.ones(3)}, tmp_path / "ssl.pth")
    model = tiny()
    head = model.fc.weight.clone()
    said = load_pretrained(model, str(tmp_path / "ssl.pth"))
    assert "the classifier is new (the file has none)" in said
    assert "head.weight beside encoder.* left out" in said
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_ffcvs_blurred_convolutions_need_blurpool(state, tmp_path):
    blurred = {}
    for name, tensor in under("module.", state).items():
        strided = any(part in name for part in ("layer2.0.conv1.", "layer3.0.conv1.", ".downsample.0."))
        blurred[name.replace(".weight", ".conv.weight") if strided else name] = tensor
        if strided:
            blurred[name.replace(".weight", ".blur_filter")] = torch.ones(1, 1, 3, 3)
    torch.save(blurred, tmp_path / "rn.pt")
    with pytest.raises(ValueError, match=r"it needs model\.blurpool=true"):
        load_pretrained(tiny(), str(tmp_path / "rn.pt"))
    model = tiny(blurpool=True)
    load_pretrained(model, str(tmp_path / "rn.pt"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


REFUSED = {
    "efficient channel attention": (
        lambda s: {**s, "layer1.0.se.conv.weight": torch.ones(1, 1, 3)}, "attention of another kind",
    ),
    "two networks": (
        lambda s: under("encoder_q.", s) | under("encoder_k.", s), r"several networks \(encoder_k\.\*, encoder_q\.\*\)",
    ),
    "renamed": (
        lambda s: {n.replace("layer1.0.conv1", "layer1.0.conv_1"): t for n, t in s.items()},
        r"without layer1\.0\.conv1\.weight \(nearest there: layer1\.0\.conv_1\.weight\)",
    ),
    "a vision transformer": (lambda s: {"cls_token": torch.ones(1, 1, 8), "pos_embed": torch.ones(1)}, "transformer"),
    "a whole network": (lambda s: {"model": tiny()}, r"whole object \(resnet\.net\.ResNet\).*state_dict\(\)"),
    "no weights": (lambda s: {"epoch": 3, "args": options()}, "no state dict"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_told(kind, state, tmp_path):
    content, message = REFUSED[kind]
    torch.save(content(state), tmp_path / "other.pth")
    model = tiny()
    before = model.conv1.weight.clone()
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, str(tmp_path / "other.pth"))
    assert torch.equal(model.conv1.weight, before)


# timm's nets


TIMMS = {
    "resnetv2_50": {"block": "preact_bottleneck"},
    "resnetv2_18d": {"block": "preact_basic", "stem": "deep", "downsample": "avgpool"},
    "resnetrs50": {"block": "bottleneck", "stem": "deep", "downsample": "avgpool", "maxpool": "conv", "attention": "se",
                   "se_ratio": 0.25},
}  # fmt: skip


@pytest.mark.parametrize("name", TIMMS)
def test_weights_of_timms_nets_give_its_logits(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, layers=[1, 1, 1, 1], num_classes=5).eval()
    for tensor in theirs.state_dict().values():
        # As trained, not as begun: nothing is 1 or 0.
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    torch.save({"state_dict": under("module.", theirs.state_dict())}, tmp_path / "w.pth")
    ours = build_model(Model(layers=[1, 1, 1, 1], **TIMMS[name]), 5).eval()
    load_pretrained(ours, str(tmp_path / "w.pth"))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_the_net_of_a_file_is_told():
    with torch.device("meta"):
        nets = {
            "model.name=resnet18d": build_model(Model(name="resnet18d"), 10),
            "model.name=resnet20_cifar model.in_channels=1": build_model(
                Model(name="resnet20_cifar", in_channels=1), 10
            ),
            "model.name=seresnet18 model.norm=group": build_model(Model(name="seresnet18", norm="group"), 10),
            "model.name=preactresnet18": build_model(Model(name="preactresnet18"), 10),
        }
        own = tiny().state_dict()
    for keys, network in nets.items():
        assert mismatches(network.state_dict(), own) == f"it is of another network, which {keys} builds"
    assert named_net(own) is None
    net18 = nets["model.name=resnet18d"].state_dict()
    words = ["recipe=quickstart", "model.name=seresnet18", "model.stem=cifar", "model.norm=group"]
    told = mismatches(net18, own, here=load(words).recipe.model)
    keys = told.removeprefix("it is of another network, which ").removesuffix(" builds").split()
    assert effective_model(load([*words, *keys]).recipe.model) == effective_model(Model(name="resnet18d"))


# huggingface.co


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Lays files into the cache that huggingface_hub keeps, as its download does: (repository, revision, files)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def lay(repo: str, revision: str, files: dict[str, dict]) -> None:
        folder, commit = (
            tmp_path / "hub" / f"models--{repo.replace('/', '--')}",
            hashlib.sha1(repo.encode()).hexdigest(),
        )
        for part in ("blobs", f"snapshots/{commit}", "refs"):
            (folder / part).mkdir(parents=True)
        (folder / "refs" / revision).write_text(commit)
        for name, content in files.items():
            blob = folder / "blobs" / hashlib.sha256(name.encode()).hexdigest()
            save_file(content, blob) if name.endswith("safetensors") else torch.save(content, blob)
            (folder / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob.name}")

    return lay


def test_weights_of_a_repository(hub, state):
    zeros = other(state)
    hub("timm/tiny.a1_in1k", "main", {"model.safetensors": state, "pytorch_model.bin": zeros, "config.json": {}})
    hub("me/tagged", "v1.0", {"net.pth": {"model": state}})
    hub("me/several", "main", {"a.pth": state, "b.pth": state})
    for source in ("hf_hub:timm/tiny.a1_in1k", "hf_hub:timm/tiny.a1_in1k@main", "hf_hub:me/tagged@v1.0"):
        model = tiny()
        told = load_pretrained(model, Model(**NET, pretrained=source).pretrained)
        assert torch.equal(model.conv1.weight, state["conv1.weight"])
        repo = source.partition("@")[0]
        pinned = f"{repo}@{hashlib.sha1(repo.removeprefix('hf_hub:').encode()).hexdigest()}"
        assert f"({pinned} keeps to it)" in told
        assert "keeps to it" not in load_pretrained(tiny(), pinned)
    for source, message in {
        "hf_hub:me/several": r"several files of weights \(a\.pth, b\.pth\)",
        "hf_hub:me/tagged": "could not be fetched .*run `hf download me/tagged` where",
        "hf_hub:me/gone@v2": "could not be fetched .*offline mode.*run `hf download me/gone --revision v2` where",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_pretrained(tiny(), source)
    outside = ("hf_hub:../..", "hf_hub:me/..", "hf_hub:me/-tiny", "hf_hub:me/tiny@../v1", "hf_hub:me/tiny@v1..2")
    for source in ("hf_hub:tiny", "hf_hub:me/tiny@", "hf-hub:me/tiny", *outside):
        with pytest.raises(ValueError, match="write hf_hub:OWNER/REPO"):
            Model(**NET, pretrained=source)


# Images of other channels


@pytest.mark.parametrize(
    ("channels", "how"), [(1, "summed over them"), (4, "repeated, by 3/4"), (7, "repeated, by 3/7")]
)
def test_a_stem_for_other_channels_is_made_of_that_for_rgb(channels, how, state, tmp_path):
    recipe = load(["recipe=quickstart", "model.name=null", *(f"model.{k}={v}" for k, v in NET.items())]).recipe
    save_file(state, tmp_path / "w.safetensors", metadata_of(recipe, CLASSES, 3))
    model = tiny(in_channels=channels)
    assert f"for 3 channels are adapted to {channels} ({how})" in load_pretrained(
        model, str(tmp_path / "w.safetensors")
    )
    adapt = pytest.importorskip("timm.models").adapt_input_conv
    assert torch.equal(model.conv1.weight, adapt(channels, state["conv1.weight"]))
    assert torch.equal(model.fc.weight, state["fc.weight"])
    torch.save(model.state_dict(), tmp_path / "banded.pth")
    for own in (3, 12):
        with pytest.raises(
            ValueError, match=rf"images of {channels} channels?, and these have {own}.*in_channels={channels}"
        ):
            load_pretrained(tiny(in_channels=own), str(tmp_path / "banded.pth"))


# The classifier, by the names of its classes

CLASSES = ["ant", "bee", "cat", "dog", "elk"]


def test_a_classifier_is_kept_by_the_names_of_its_classes(state, tmp_path):
    recipe = load(["recipe=quickstart", "model.name=null", *(f"model.{k}={v}" for k, v in NET.items())]).recipe
    save_file(state, tmp_path / "w.safetensors", metadata_of(recipe, CLASSES, 3))

    def head(classes: list[str]) -> tuple[torch.Tensor | None, str]:
        model = tiny(len(classes))
        new = model.fc.weight.clone()
        said = load_pretrained(model, str(tmp_path / "w.safetensors"), classes=classes, augment=recipe.augment)
        assert torch.equal(model.conv1.weight, state["conv1.weight"])
        return (None if torch.equal(model.fc.weight, new) else model.fc.weight), said

    kept, said = head(CLASSES)
    assert torch.equal(kept, state["fc.weight"])
    assert said.endswith("; the classifier is kept (the same classes)")
    turned, said = head(CLASSES[::-1])
    assert torch.equal(turned, state["fc.weight"].flip(0))
    assert "the classifier is kept, its classes put in this order" in said
    for classes, why in (
        (["ant", "bee", "cat", "dog", "emu"], "as many classes there, of other names: elk"),
        (["ant", "bee"], "5 classes there, 2 here"),
    ):
        new, said = head(classes)
        assert new is None
        assert f"the classifier is new ({why})" in said


def test_the_names_of_very_many_classes(state, tmp_path):
    recipe = load(["recipe=quickstart", "model.name=null", *(f"model.{k}={v}" for k, v in NET.items())]).recipe
    for classes in ([f"{i:042}" for i in range(100_000)], [f"中文名字中文名字{i}" for i in range(100_000)]):
        save_file(state, tmp_path / "w.safetensors", metadata_of(recipe, classes, 3))
        assert (tmp_path / "w.safetensors").stat().st_size > MOST_HEADER
        info = read_info(tmp_path / "w.safetensors")
        assert info is not None
        assert info.classes == classes
        assert set(read_weights(tmp_path / "w.safetensors")) == set(state)


@pytest.mark.parametrize("kind", ["of another", "tensors", "not text", "many values", "too many classes"])
def test_a_large_header_that_names_no_classes_is_refused(kind, state, tmp_path):
    recipe = load(["recipe=quickstart", "model.name=null", *(f"model.{k}={v}" for k, v in NET.items())]).recipe
    metadata = metadata_of(recipe, CLASSES, 3)
    said = json.loads(metadata[KEY])
    content, tensors = {
        "of another": ({"theirs": "a" * MOST_HEADER}, {}),
        "tensors": (metadata, {"a" * MOST_HEADER: torch.zeros(1)}),
        "not text": ({KEY: json.dumps({**said, "classes": [0] * MOST_HEADER})}, {}),
        "many values": ({KEY: json.dumps({**said, "mean": ["a"] * MOST_HEADER})}, {}),
        "too many classes": (metadata_of(recipe, ["a" * MOST_SAID], 3), {}),
    }[kind]
    save_file({**state, **tensors}, tmp_path / "w.safetensors", content)
    with pytest.raises(ValueError, match=r"too much beside|must be a list of text|too long") as raised:
        read_weights(tmp_path / "w.safetensors")
    assert len(str(raised.value)) < 1000


def test_channels_that_the_tensors_do_not_have_are_refused_before_a_network_is_built(state, tmp_path):
    words = ["recipe=quickstart", "model.name=null", *(f"model.{k}={v}" for k, v in NET.items())]
    pruned = load([*words, "model.channels={layer1.0.conv1: 65536}"]).recipe
    save_file(state, tmp_path / "w.safetensors", metadata_of(pruned, CLASSES, 3))
    recipe = load([*words, f"model.pretrained={tmp_path / 'w.safetensors'}"]).recipe
    with pytest.raises(ValueError, match=r"model.pretrained=.*does not match .*conv1.weight is .*, not \[65536, 64"):
        shaped_as_weights(recipe)


def test_images_prepared_otherwise_are_noted(state, tmp_path):
    recipe = load(["recipe=quickstart", "model.name=null", *(f"model.{k}={v}" for k, v in NET.items())]).recipe
    save_file(state, tmp_path / "w.safetensors", metadata_of(recipe, CLASSES, 3))
    said = load_pretrained(tiny(), str(tmp_path / "w.safetensors"), augment=Augment(mean=(0.5, 0.5, 0.5)))
    assert "trained with augment.mean=[0.485,0.456,0.406] augment.train_size=64" in said
    assert "here it is augment.mean=[0.5,0.5,0.5] augment.train_size=224" in said


# Strangers


class Payload:
    """Unpickled, it would call a function with arguments."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_pickle(path: pathlib.Path, content: bytes, **files: bytes) -> None:
    """A file of torch.save around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": content, "version": b"3\n", "byteorder": b"little", **files}.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", data)


def test_nothing_that_a_file_holds_is_run(tmp_path, state):
    marker = tmp_path / "marker"
    command = f"touch {marker}"
    torch.save(Payload(os.system, command), tmp_path / "hostile.pth")
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert marker.exists()
    marker.unlink()
    for payload in (
        Payload(os.system, command),
        Payload(eval, f"open({str(marker)!r}, 'w')"),
        Payload(exec, f"open({str(marker)!r}, 'w')"),
        Payload(partial, os.system, command),
        Payload(open, str(marker), "w"),
        Payload(torch.load, str(marker)),
        Payload(np.save, str(marker), 1),
    ):
        torch.save({"model": state, "args": payload}, tmp_path / "hostile.pth")
        read_weights(tmp_path / "hostile.pth")
        torch.save({"model": payload}, tmp_path / "hostile.pth")
        with pytest.raises(ValueError, match=r"whole object|no state dict"):
            read_weights(tmp_path / "hostile.pth")
        assert not list(tmp_path.glob("marker*"))


WRITTEN_BY_HAND = {
    "calls by INST": b"(S'touch MARKER'\nios\nsystem\n.",
    "calls by OBJ": b"(cos\nsystem\nS'touch MARKER'\no.",
    "builds on a class": b"cos\nsystem\n}S'__call__'\ncos\nsystem\nsb.",
    "writes on what rebuilds tensors": b"ctorch._utils\n_rebuild_tensor_v2\n}S'__call__'\ncos\nsystem\nsb.",
    "sets slots": b"ctorch._utils\n_rebuild_tensor_v2\n}}S'_call'\ncos\nsystem\ns\x86b(S'touch MARKER'\ntR.",
    "reaches for attributes": b"\x80\x04\x8c\x08builtins\x8c\x0e__import__.__call__\x93.",
    "a new object": b"cos\nsystem\n(S'touch MARKER'\nt\x81.",
    "a memo that is not there": b"h\x07.",
    "ends early": b"(S'a",
    "a reference to something": b"(S'storage'\nS'x'\nS'0'\nS'cpu'\nI4\ntQ.",
    "a persistent name": b"P0\n.",
}


@pytest.mark.parametrize("case", WRITTEN_BY_HAND)
def test_pickles_written_by_hand(case, tmp_path):
    write_pickle(tmp_path / "hostile.pth", WRITTEN_BY_HAND[case].replace(b"MARKER", str(tmp_path / "m").encode()))
    with pytest.raises(ValueError, match=r"hostile\.pth"):
        read_weights(tmp_path / "hostile.pth")
    assert not (tmp_path / "m").exists()


def tensor_pickle(offset: int, size: tuple, stride: tuple, count: int) -> bytes:
    class Storage(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", count) if obj == "STORAGE" else None

    stream = io.BytesIO()
    arguments = ("STORAGE", offset, size, stride, False, collections.OrderedDict())
    call = Payload(torch._utils._rebuild_tensor_v2, *arguments)
    Storage(stream, protocol=2).dump({"w": call, "args": argparse.Namespace()})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("offset", "size", "stride", "count"),
    [
        *((0, (5,), (1,), 4), (1, (4,), (1,), 4), (0, (2,), (9,), 4), (-1, (2,), (1,), 4)),
        *((0, (4,), (1,), 99), (0, (-1,), (1,), 4)),
    ],
)
def test_tensors_stay_within_their_elements(tmp_path, offset, size, stride, count):
    write_pickle(tmp_path / "w.pth", tensor_pickle(0, (4,), (1,), 4), data__0=bytes(16))
    assert torch.equal(read_inertly(tmp_path / "w.pth")["w"], torch.zeros(4))
    write_pickle(tmp_path / "w.pth", tensor_pickle(offset, size, stride, count), data__0=bytes(16))
    with pytest.raises(pickle.UnpicklingError):
        read_inertly(tmp_path / "w.pth")


def test_a_compressed_file_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(argparse.Namespace(a="a" * 10**6), protocol=2))
    with pytest.raises(pickle.UnpicklingError, match="compressed"):
        read_inertly(tmp_path / "bomb.pth")


@pytest.fixture
def small():
    """Fails where the test's own code allocates more than 64 MB in Python, or takes long."""
    began = time.process_time()
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    assert time.process_time() - began < 10


def test_what_is_compressed_or_too_large_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    pickled = zipfile.ZipFile(tmp_path / "w.pth").read("w/data.pkl")
    for files, message in (
        ({"data.pkl": (pickled, True)}, "compressed"),
        ({"data.pkl": (pickled, False), "data/0": (bytes(10**6), True)}, "compressed"),
        ({"data.pkl": (bytes(MOST_PICKLED + 1), False)}, "too much beside its tensors"),
    ):
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w") as archive:
            for name, (content, compressed) in files.items():
                archive.writestr(f"a/{name}", content, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / "bomb.pth")


def knot(names: tuple[str, ...]) -> dict:
    """A mapping that holds itself under all of these names."""
    tied: dict = {}
    tied.update(dict.fromkeys(names, tied))
    return tied


def test_a_mapping_that_holds_itself_has_an_end(tmp_path, state, small):
    names = (*AVERAGES, *WRAPPERS)
    for content in (knot(("model",)), knot(names), knot(tuple(map(str, range(30)))), knot((*names, "args"))):
        for more in ({}, {"options": argparse.Namespace()}):
            content.update(more)
            torch.save(content, tmp_path / "knot.pth")
            with pytest.raises(ValueError, match="no state dict"):
                read_weights(tmp_path / "knot.pth")
    other = {"state_dict": {}}
    other["state_dict"]["model"] = other
    with pytest.raises(ValueError, match="no state dict"):
        find_state_dict(other)
    content = {**knot(("model", "ema")), **state}
    content["model"] = content["ema"] = content
    torch.save({**content, "options": argparse.Namespace()}, tmp_path / "knot.pth")
    assert set(read_weights(tmp_path / "knot.pth")) == set(state)


LARGE = {
    "a class again and again": b"ca\nb\n" * 50_000 + b"N.",
    "many classes": b"".join(b"ca\n%d\n" % i for i in range(50_000)) + b"N.",
    "a reference far out": b"Nr" + (1 << 24).to_bytes(4, "little") + b".",
    "a long bytearray": b"\x80\x05\x96" + (1 << 28).to_bytes(8, "little") + b"abc.",
    "a long string": b"\x80\x04\x8d" + (1 << 28).to_bytes(8, "little") + b"abc.",
    "long bytes": b"\x80\x04\x8e" + (1 << 28).to_bytes(8, "little") + b"abc.",
    "a long number": b"\x8b" + (1 << 28).to_bytes(4, "little") + b"abc.",
    "a long frame": b"\x80\x04\x95" + (1 << 28).to_bytes(8, "little") + b"N.",
    "a key of nested tuples": b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",
    "a set of nested tuples": b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90.",
    "a class named by nested tuples": b"\x80\x04)" + b"2\x86" * 60 + b"2\x93.",
    "a long class name again and again": (
        b"\x80\x04X\0\0\x40\0" + b"a" * (1 << 22) + b"q\1" + b"h\1h\1\x930" * 20_000 + b"."
    ),
    "a long reference again and again": b"\x80\x02(" + b"N" * 99_999 + b"tq\1" + b"h\1Q0" * 20_000 + b".",
    "long arguments again and again": b"\x80\x02(" + b"N" * 99_999 + b"tq\1ca\nb\nq\2" + b"h\2h\1R0" * 20_000 + b".",
    "long pairs again and again": (
        b"\x80\x02(" + b"N)\x86" * 50_000 + b"l\x85q\1ccollections\nOrderedDict\nq\2" + b"h\2h\1R" * 20_000 + b"."
    ),
    "sets": b"\x80\x04" + b"\x8f" * 200_000 + b".",
    "numbers of a memo with the same hash": b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(60_000)) + b".",
}


@pytest.mark.parametrize("case", LARGE)
def test_a_small_file_takes_little_time_and_memory(case, tmp_path, small):
    write_pickle(tmp_path / "large.pth", LARGE[case])
    with pytest.raises(ValueError, match=r"large\.pth"):
        read_weights(tmp_path / "large.pth")


def test_weights_that_are_nan_predict_nothing(tmp_path, state, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / "i.png")
    words = ["recipe=quickstart", "model.name=null", *(f"model.{k}={v}" for k, v in NET.items()), "data.num_workers=0"]
    for bias, code in ((0.0, 0), (float("nan"), 2)):
        torch.save({**state, "fc.bias": torch.full((5,), bias)}, tmp_path / "w.pth")
        ended = contextlib.nullcontext() if code == 0 else pytest.raises(SystemExit, match="2")
        with ended:
            main(["predict", str(tmp_path / "w.pth"), str(tmp_path / "i.png"), *words, "--device", "cpu"])
    assert "w.pth is broken: some of its weights are nan or infinite" in capsys.readouterr().err


def test_a_pickle_of_too_many_steps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet.inert_pickle.MOST_STEPS", 1000)
    write_pickle(tmp_path / "long.pth", b"N" * 999 + b".")
    with pytest.raises(ValueError, match="no state dict"):
        read_weights(tmp_path / "long.pth")
    for content in (b"N" * 1000 + b".", b"ccollections\nOrderedDict\n(" + b"N)\x86" * 300 + b"l\x85R."):
        write_pickle(tmp_path / "long.pth", content)
        with pytest.raises(ValueError, match="more than 1,000 steps"):
            read_weights(tmp_path / "long.pth")


def test_a_classifier_as_large_as_a_file_says_is_not_built(tmp_path, state):
    recipe = load(["recipe=quickstart", "model.name=null", *(f"model.{k}={v}" for k, v in NET.items())]).recipe
    elements = torch.zeros(256)
    for fc, message in (
        (torch.as_strided(elements, (1 << 40, 256), (0, 1)), "which it repeats"),
        (torch.empty(1 << 40, 0), "no classifier"),
        (torch.zeros(()), "no classifier"),
        (torch.zeros(1 << 19, 1), r"fc.weight is \[524288, 1\]"),
        (torch.zeros(5, 256, dtype=torch.complex64), "not in floating point: fc.weight is complex64"),
        (torch.zeros(5, 256, dtype=torch.int8), "not in floating point: fc.weight is int8"),
    ):
        torch.save({**state, "fc.weight": fc}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=message):
            load_alone(tmp_path / "w.pth", recipe)


def test_what_a_file_calls_things_does_not_reach_the_terminal(tmp_path, state):
    torch.save({**state, "\x1b[2J": torch.zeros(1)}, tmp_path / "w.pth")
    save_file({**state, "\x1b[2J": torch.zeros(1)}, tmp_path / "w.safetensors")
    write_pickle(tmp_path / "kind.pth", b"c\x1b[2J\nroot\n)R.")
    for name in ("w.pth", "w.safetensors", "kind.pth"):
        with pytest.raises(ValueError, match=r"'\\x1b\[2J") as raised:
            read_weights(tmp_path / name)
        assert str(raised.value).isprintable()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_told_or_its_tensors_are_right(data, tmp_path_factory):
    """Of the older format only the first is true: it has no sums to check by."""
    weights, archive = {"layer1.0.conv1.weight": torch.arange(6.0), "fc.bias": torch.ones(2)}, data.draw(st.booleans())
    stream = io.BytesIO()
    torch.save({"model": weights, "args": options()}, stream, _use_new_zipfile_serialization=archive)
    content = bytearray(stream.getvalue())
    del content[data.draw(st.integers(0, len(content)) if data.draw(st.booleans()) else st.just(len(content))) :]
    for at, byte in data.draw(
        st.dictionaries(st.integers(0, len(stream.getvalue())), st.integers(0, 255), max_size=4)
    ).items():
        content[at : at + 1] = bytes([byte])
    file = tmp_path_factory.getbasetemp() / "damaged.pth"
    file.write_bytes(content)
    with contextlib.suppress(ValueError):
        read = read_weights(file)
        if archive:
            assert all(torch.equal(read[name], weights[name]) for name in weights if name in read)


def test_bytearrays_of_options_are_passed_over(tmp_path, state):
    content = {"model": state, "args": argparse.Namespace(), "more": bytearray(b"abc")}
    torch.save(content, tmp_path / "w.pth", pickle_protocol=5)
    assert read_inertly(tmp_path / "w.pth")["more"] == b"abc"
    assert set(read_weights(tmp_path / "w.pth")) == set(state)


def test_nested_metadata_is_refused(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors", {KEY: "[" * 10**6})
    with pytest.raises(ValueError, match="this version cannot read"):
        read_info(tmp_path / "w.safetensors")


def test_what_is_called_an_average_and_is_no_network_is_not_taken(tmp_path, state):
    decays = {"decay": torch.tensor([0.9, 0.99])}
    for content in ({"ema": decays, "state_dict": state}, {"ema": decays, "state": {"model": state}}):
        torch.save(content, tmp_path / "w.pth")
        assert set(read_weights(tmp_path / "w.pth")) == set(state)
    assert set(find_state_dict({"ema": decays, **state}).tensors) == set(state)
    assert set(find_state_dict({"ema": {"x": {}}, "model_ema": under("module._orig_mod.", state)}).tensors) == set(
        state
    )
    assert find_state_dict({"ema": decays}).notes == ("its averaged weights (ema) are taken",)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_tensors_are_read_as_torch_reads_them(data, tmp_path_factory):
    dtype = data.draw(
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
    )
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    tensor = tensor.permute(data.draw(st.permutations(range(tensor.dim()))))
    if tensor.dim() and data.draw(st.booleans()):
        tensor = tensor[::2]
    file = tmp_path_factory.getbasetemp() / "tensors.pth"
    content = {"a": tensor, "b": [tensor], "c": nn.Parameter(tensor) if dtype.is_floating_point else 1}
    torch.save(content, file, _use_new_zipfile_serialization=data.draw(st.booleans()))
    read, expected = read_inertly(file), torch.load(file, weights_only=True)
    assert torch.equal(read["a"], expected["a"])
    assert (read["a"].dtype, read["a"].stride()) == (expected["a"].dtype, expected["a"].stride())
    if dtype.is_floating_point:
        assert torch.equal(read["c"], tensor)


def test_what_is_not_a_tensor_is_inert(tmp_path):
    torch.save(options(), tmp_path / "options.pt")
    found = read_inertly(tmp_path / "options.pt")
    assert isinstance(found, Inert)
    assert found.kind == "argparse.Namespace"
    assert not hasattr(found, "data")
