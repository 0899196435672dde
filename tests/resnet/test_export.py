"""`resnet export`: what it writes is loaded by other programs, and what it refuses leaves nothing."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

import resnet
from recipes.load import load
from resnet.data.sources.shapes import SHAPES
from resnet.net import build_model
from resnet.process.environment import PROGRAM
from resnet.tools import cli
from resnet.tools.eval_data import DataOptions, open_eval_data
from resnet.tools.export import card, export, extras, measure
from resnet.tools.export.formats import Given, Product, write_pt2, write_timm, write_torch
from resnet.tools.export.served import served
from resnet.tools.export.torchvision_source import builder_of, model_source
from resnet.tools.trained import find_trained
from resnet.tools.weights import load_alone
from resnet.weights_file import metadata_of
from tests.fabricated import make_run
from tests.helpers import OFF, TINY, train

pytestmark = pytest.mark.usefixtures("hardly_timed")


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory) -> Path:
    """A network that neither torchvision nor timm has as it is."""
    root = tmp_path_factory.mktemp("runs")
    words = [*TINY, f"data.train={shapes}", "model.activation=silu", "epochs=1"]
    assert train(*words, f"run.root={root}", "run.name=tiny") == 0
    return root / "tiny"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A ResNet-18 in a file of no run."""
    words = ["recipe=quickstart", *OFF, "augment.val_size=32", "augment.val_resize=37", "augment.mean=[0.5,0.4,0.3]"]
    recipe, names = load(words).recipe, sorted(SHAPES)
    torch.manual_seed(0)
    network = build_model(recipe.model, len(names))
    file = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    safetensors.torch.save_file(network.state_dict(), file, metadata_of(recipe, names, 7))
    return file


def exported(folder: Path, *words: object) -> dict:
    """`resnet export WORDS`, and the record it leaves in a folder."""
    cli.main(["export", *map(str, words)])
    return json.loads((folder / "artefact.json").read_text())


def image(size: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def logits(file: Path) -> torch.Tensor:
    with torch.inference_mode():
        return resnet.load(file)(image())


def tells_no_place(folder: Path, *places: Path) -> None:
    machine = (PROGRAM / "resnet", Path(torch.__file__).parent, *places)
    for file in folder.iterdir():
        content = file.read_bytes()
        assert not [place for place in machine if str(place).encode() in content], file


def test_onnx(run, shapes, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    record = exported(run / "exports/onnx", run, "--format", "onnx", "--samples", 25)
    out = capsys.readouterr().out
    assert "the same answer for 100.00% of 25 images" in out
    assert out.splitlines()[-1] == f"{run}/exports/onnx: artefact.json, model.onnx"
    assert record["kind"] == "export"
    assert record["measured"]["images"] == 25
    assert record["measured"]["largest_difference"] <= record["limit"] == 1e-4
    assert record["input"]["mean"] == [0.485, 0.456, 0.406]
    session = onnxruntime.InferenceSession(run / "exports/onnx/model.onnx", providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == record["classes"] == sorted(SHAPES)
    assert "activation: silu" in said["recipe_yaml"]
    tells_no_place(run / "exports/onnx", run.parent, shapes)
    assert record["weights"] == "final.safetensors"
    answer = session.run(["logits"], {"images": image().numpy()})[0]
    np.testing.assert_allclose(answer, logits(run / "final.safetensors"), atol=1e-4)


def elsewhere(product: Product) -> torch.Tensor:
    """What a process without our package says of the images."""
    with served(product.file.name, product.spec) as network:
        return torch.from_numpy(network.logits(image().numpy()))


@pytest.fixture
def given(weights) -> Given:
    trained = find_trained(str(weights))
    return Given(load_alone(weights), trained, trained.classes)


def test_pt2_where_no_compiler_is(given, weights, tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "/not/there"))
    (product,) = write_pt2(tmp_path, given, 32)
    torch.testing.assert_close(elsewhere(product), logits(weights), atol=1e-4, rtol=0)
    tells_no_place(tmp_path)
    said = {"resnet_launch": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=said)
    assert json.loads(said["resnet_launch"])["classes"] == sorted(SHAPES)


def test_torch(given, weights, tmp_path):
    (product,) = write_torch(tmp_path, given, 32)
    torch.testing.assert_close(elsewhere(product), logits(weights), atol=1e-4, rtol=0)
    network = torchvision.models.resnet18(num_classes=len(SHAPES))
    network.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert "resnet.resnet18(num_classes=10)" in (tmp_path / "model.py").read_text()


def test_timm(given, weights, tmp_path):
    timm = pytest.importorskip("timm")
    (product,) = write_timm(tmp_path, given, 32)
    torch.testing.assert_close(elsewhere(product), logits(weights), atol=1e-4, rtol=0)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert network.pretrained_cfg["label_names"] == sorted(SHAPES)
    config = timm.data.resolve_data_config(model=network)
    assert (config["input_size"], config["mean"]) == ([3, 32, 32], [0.5, 0.4, 0.3])
    assert timm.data.create_transform(**config).transforms[0].size == 37


def test_hub_folder_says_how_good_it_is_and_nothing_of_the_machine(run, shapes):
    from huggingface_hub import ModelCard

    folder = run / "exports/hub"
    record = exported(folder, run, "--format", "hub", "--samples", 8)
    card = ModelCard.load(folder / "README.md").data
    found = json.loads((run / "evaluation.json").read_text())
    assert [result.metric_value for result in card.eval_results] == [found["top1"] / 100, found["top5"] / 100]
    assert card.pipeline_tag == "image-classification"
    names = {"README.md", "artefact.json", "config.json", "curves.png", "model.py", "model.safetensors", "recipe.yaml"}
    assert {file.name for file in folder.iterdir()} == names
    tells_no_place(folder, run.parent, shapes)
    assert load([f"recipe={folder}/recipe.yaml", f"data.train={shapes}"]).recipe.model.activation == "silu"
    assert record["recipe"]["model"]["activation"] == "silu"
    assert resnet.weights_info(folder / "model.safetensors").classes == sorted(SHAPES)


def test_the_runs_evaluation_is_of_its_own_weights_alone(run):
    trained = find_trained(str(run))
    assert card._evaluation_of(trained, run) == json.loads((run / "evaluation.json").read_text())
    # As the plain weights of a run that keeps an average, and as what was made of these.
    assert card._evaluation_of(trained._replace(averaged=True), run) is None
    rounded = shutil.copytree(run, run.with_name("rounded")) / "exports/bf16/weights.safetensors"
    rounded.parent.mkdir(parents=True)
    shutil.copy(run / "final.safetensors", rounded)
    trained = find_trained(str(rounded))
    assert card._evaluation_of(trained, run.with_name("rounded")) is None


def test_weights_that_give_no_numbers_are_named(weights, shapes):
    class Diverged:
        def logits(self, images: np.ndarray) -> np.ndarray:
            return np.full((len(images), 10), np.nan, dtype=np.float32)

    trained = find_trained(str(weights))
    data = open_eval_data(trained, 10, DataOptions((f"{shapes}/val",)))
    with pytest.raises(ValueError, match=r"plain\.safetensors answers images with nan"):
        measure._compare(trained.recipe, data, Diverged(), Diverged(), str(weights))


@pytest.mark.parametrize(
    "words",
    [
        ["model.name=resnet18"],
        ["model.name=resnet18", "model.stem=cifar", "model.maxpool=true", "model.activation=prelu"],
        ["model.name=resnext50_32x4d", "model.blurpool=true"],
        ["model.block=basic", "model.layers=[1,1,1]", "model.blurpool=true", "model.channels={conv1: 14, layer3: 40}"],
        ["model.block=bottleneck", "model.layers=[1,2,1]", "model.groups=2", "model.width_per_group=32"],
        ["model.block=basic", "model.layers=[1,1,2,1]", "model.activation=elu", "model.activation_args={alpha: 0.5}"],
        [
            "model.block=bottleneck",
            "model.layers=[1,2]",
            "model.widths=[8,24]",
            "model.stem_width=9",
            "model.bn_eps=1e-2",
        ],
    ],
    ids=lambda words: words[-1],
)
def test_model_py_is_the_same_network(words):
    recipe = load(["recipe=quickstart", "model.name=null", *words]).recipe
    network = build_model(recipe.model, 3).eval()
    if builder_of(recipe.model) == "timm":
        pytest.importorskip("timm")
    found: dict = {}
    exec(model_source(recipe.model, 3, "model.pth"), found)
    other = found["build"]().eval()
    other.load_state_dict(network.state_dict())
    with torch.inference_mode():
        images = image(64)[:, : recipe.model.in_channels]
        torch.testing.assert_close(other(images), network(images), rtol=1e-4, atol=1e-4)


def test_a_network_that_neither_torchvision_nor_timm_builds(shapes, tmp_path, capsys):
    net = ["model.block=preact_basic", "model.layers=[1,1]", "model.attention=se", "model.in_channels=1"]
    words = ["recipe=quickstart", *OFF, "augment.val_size=32", "augment.val_resize=32", "model.name=null", *net]
    recipe = load(words).recipe
    tensors = build_model(recipe.model, len(SHAPES)).state_dict()
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors", metadata_of(recipe, sorted(SHAPES), 7))
    words = [tmp_path / "w.safetensors", f"--data={shapes}/val", "--samples=9", f"--out={tmp_path}/hub"]
    record = exported(tmp_path / "hub", *words, "--format=hub")
    assert record["input"]["shape"] == ["N", 1, 32, 32]
    assert record["measured"]["largest_difference"] <= 1e-4
    assert "there is no model.py here" in (tmp_path / "hub/README.md").read_text()
    assert not (tmp_path / "hub/model.py").exists()
    assert "neither torchvision nor timm builds" in fails(capsys, 2, *words, "--format=torch")
    assert "timm has no such network" in fails(capsys, 2, *words, "--format=torch", "--timm")


def fails(capsys, code: int, *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", *map(str, words)])
    assert ended.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("resnet export: "), lines
    return lines[-1]


def test_wrong_answers_are_not_kept(weights, shapes, tmp_path, capsys, monkeypatch):
    def write_another(folder, given, size):
        with torch.no_grad():
            given.network.fc.bias[0] += 1
        return write_torch(folder, given, size)

    monkeypatch.setitem(export.WRITERS, "torch", write_another)
    words = [weights, f"--data={shapes}/val", f"--out={tmp_path / 'new/out'}", "--samples=8"]
    assert "model.pth: logits differ by 1 at most (limit " in fails(capsys, 1, *words, "--format=torch")
    assert not [*tmp_path.iterdir()]


def test_nothing_is_left_where_the_disk_is_full(weights, shapes, tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        told = fails(capsys, 1, weights, f"--data={shapes}/val", f"--out={tmp_path}/new/out", "--format=safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in told
    assert not [*tmp_path.iterdir()]


def test_mistakes_are_told_before_any_work(run, weights, shapes, tmp_path, capsys, monkeypatch):
    data = f"--data={shapes}/val"
    assert "timm has no such network" in fails(capsys, 2, run, "--format=torch", "--timm")
    assert "hf auth login" in fails(capsys, 2, run, "--format=hub", "--push=owner/name")
    assert "--out FOLDER" in fails(capsys, 2, weights, data, "--format=onnx")
    for name in ("unknown", min(SHAPES)):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / name / "x.png")
    told = fails(capsys, 2, weights, f"--data={tmp_path}/data", f"--out={tmp_path}/new", "--format=torch")
    assert "unknown" in told
    assert "--known-only" not in told
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    assert "give another --out" in fails(capsys, 2, weights, data, f"--out={tmp_path}/mine", "--format=torch")
    (tmp_path / "mine/artefact.json").write_text('{"files": {"model.pth": 1}}')
    assert "thesis.tex" in fails(capsys, 2, weights, data, f"--out={tmp_path}/mine", "--format=torch")
    assert "no checkpoint yet" in fails(capsys, 2, make_run(tmp_path / "young"), "--format=torch")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert "pip install 'resnet-launch[export]'" in fails(capsys, 2, run, "--format=onnx")


@pytest.mark.parametrize("names", [["cat", *sorted(SHAPES)], sorted(SHAPES)[1:]])
def test_classes_have_to_be_as_many_as_the_outputs(names, weights, shapes, tmp_path, capsys):
    file = tmp_path / "wrong.safetensors"
    recipe = load(["recipe=quickstart", *OFF]).recipe
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file(tensors, file, metadata_of(recipe, names, 7))
    told = fails(capsys, 2, file, f"--data={shapes}/val", f"--out={tmp_path}/out", "--format=torch")
    assert f"for 10 classes, and {len(names)} are named" in told
