import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

import resnet
import resnet.loop
from recipes.load import load
from resnet.data.decode import decode
from resnet.tools.cli import main
from resnet.tools.look import look, look_at_run, viewable
from resnet.tools.picture_grid import SIDE, Tile, draw_grid
from tests.helpers import TINY, metrics, train
from tests.processes import start_ranks, wait_ranks

MIXED = [
    *("augment.policy=randaugment", "augment.random_erasing=0.5", "augment.mixup=0.4", "augment.cutmix=1"),
    *("augment.rotation=10", "augment.color_jitter=0.2", "max_batch_per_device=8", "label_smoothing=0.1"),
    *("augment.progressive=[{epoch: 0, size: 32}, {epoch: 1, size: 64}]", "augment.vflip=0.3"),
]
"""All that can be done to an image, in two micro-batches a step; images grow in the second epoch (of 10 steps)."""


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Makes ranks keep what their networks were given; returns a reader: (step, slot) -> images and targets."""
    prepare = resnet.loop.training_input

    def kept(batch, recipe, step, slot, *others):
        made = prepare(batch, recipe, step, slot, *others)
        torch.save((made.images, made.targets), tmp_path / f"given-{step}-{slot}.pt")
        return made

    monkeypatch.setattr(resnet.loop, "training_input", kept)
    return lambda step, slot: torch.load(tmp_path / f"given-{step}-{slot}.pt")


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes) -> Path:
    """A run with all that can be done to an image."""
    folder = tmp_path_factory.mktemp("look")
    assert train(*TINY, *MIXED, f"data.train={shapes}", "epochs=1", f"run.root={folder}", "run.name=r") == 0
    return folder / "r"


def is_given(seen, given) -> bool:
    assert len(seen.inputs) == seen.batch_size // seen.micro_batch
    pairs = [(*given(seen.step - 1, slot), seen.inputs[slot], seen.targets[slot]) for slot in range(len(seen.inputs))]
    return all(torch.equal(images, ours) and torch.equal(targets, also) for images, targets, ours, also in pairs)


def test_a_step_is_seen_as_the_network_got_it(given, tmp_path, shapes):
    words = [*TINY, *MIXED, f"data.train={shapes}", "epochs=2", "max_steps=12", f"run.root={tmp_path}", "run.name=r"]
    assert train(*words) == 0
    recipe = load([f"recipe={tmp_path}/r/recipe.yaml"]).recipe
    before = torch.get_rng_state()
    for step in (1, 8, 12):
        assert is_given(look_at_run(tmp_path / "r", recipe, step, 16), given), step
    assert torch.equal(torch.get_rng_state(), before)
    assert look(recipe, 12).images.shape == (16, 64, 64, 3)
    assert not is_given(look_at_run(tmp_path / "r", recipe.model_copy(update={"seed": 1}), 8, 16), given)


def test_a_step_of_two_ranks_is_seen_whole(given, tmp_path, tiny):
    words = [*tiny, "augment.mixup=0.4", "max_steps=2", f"run.root={tmp_path}", "run.name=r", "data.num_workers=1"]
    assert wait_ranks(start_ranks(words, 2, tmp_path / "out.txt"), 90) == [0, 0], (tmp_path / "out.txt").read_text()
    recipe = load([f"recipe={tmp_path}/r/recipe.yaml"]).recipe
    assert is_given(look_at_run(tmp_path / "r", recipe, 2, 16), given)


@pytest.mark.parametrize("crop", ["random_resized", "pad", "resize"])
def test_crops_and_flips_are_those_that_are_told(crop, tiny):
    recipe = load([*tiny, f"augment.crop={crop}", "augment.vflip=0.5", "augment.random_erasing=0.5"]).recipe
    seen = look(recipe, 4, 16, originals=True)
    assert 0 < sum(sample.mirrored for sample in seen.samples) < 16
    assert 0 < sum(sample.erased is not None for sample in seen.samples) < 16
    for sample, shown, original in zip(seen.samples, seen.images, seen.originals, strict=True):
        whole = decode(Path(sample.file).read_bytes())
        assert np.array_equal(original, whole.permute(1, 2, 0).numpy())
        assert sample.size == tuple(whole.shape[1:])
        assert sample.label == Path(sample.file).parent.name
        expected = torch.from_numpy(_applied(crop, whole, sample)).clone()
        if sample.erased:
            top, left, height, width = sample.erased
            mean = (torch.tensor(recipe.augment.mean) * 255).round().to(torch.uint8)
            expected[top : top + height, left : left + width] = mean
        assert np.array_equal(shown, expected.numpy()), sample


def _applied(crop: str, whole: torch.Tensor, sample) -> np.ndarray:
    """Crop and flips done anew, from what is told of them: uint8 (32, 32, 3)."""
    top, left, height, width = sample.crop
    if crop == "pad":
        scale = [side / 32 for side in sample.size]
        padded = functional.pad(functional.resize(whole, [32, 32], antialias=True), [4])
        image = functional.crop(padded, round(top / scale[0]) + 4, round(left / scale[1]) + 4, 32, 32)
    else:
        image = functional.resized_crop(whole, top, left, height, width, [32, 32], antialias=True)
    image = functional.horizontal_flip(image) if sample.mirrored else image
    image = functional.vertical_flip(image) if sample.flipped else image
    return image.permute(1, 2, 0).contiguous().numpy()


def test_normalised_images_come_back(tiny):
    augment = load(tiny).recipe.augment
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (augment.mean, augment.std))
    assert torch.equal(viewable((pixels / 255 - mean) / std, augment)[0].permute(2, 0, 1), pixels[0])


def test_the_command_draws_and_tells(run, tmp_path, capsys):
    picture = tmp_path / "step.png"
    main(["look", str(run), "--step", "5", "--count", "5", "--out", str(picture)])
    out = capsys.readouterr().out
    assert f"{run}, step 5 (epoch 0.50): the first 5 of 16 images in micro-batches of 8" in out
    assert out.count(".jpg") == 5
    assert "erased" in out
    assert Image.open(picture).width > 4 * SIDE
    main(["look", str(run), "--step", "step-5", "--count", "5", "--out", str(picture), "--json", "--original"])
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["micro_batch"], told["picture"], told["notes"]) == (5, 8, str(picture), [])
    first, second = told["images"][:2]
    assert second["mixed_with"] == first["position"] == 64
    assert second["other_label"] == first["label"]
    assert Path(first["file"]).is_file()


def test_a_recipe_is_looked_at_without_a_run(tiny, shapes, tmp_path, capsys):
    main(["look", *tiny, "--count", "3", "--out", str(tmp_path / "a.png")])
    assert "quickstart, step 1 (epoch 0.10): the first 3 of 16 images\n" in capsys.readouterr().out
    own = shutil.copy(tmp_path / "a.png", shapes)
    with pytest.raises(SystemExit, match="2"):
        main(["look", *tiny, "--count", "3", "--out", str(own)])
    assert f"--out {own} is read here, and would be written over" in capsys.readouterr().err
    Path(own).unlink()


def test_what_a_gpu_did_otherwise_is_told(run, tmp_path):
    own = shutil.copytree(run, tmp_path / "own")
    recipe = load([f"recipe={run}/recipe.yaml", "augment.policy=randaugment", "augment.rotation=0"]).recipe
    assert look_at_run(own, recipe, count=1).notes == []
    told = json.loads((own / "provenance.json").read_text()) | {"devices": ["NVIDIA H200"]}
    (own / "provenance.json").write_text(json.dumps(told))
    assert "were applied by a GPU" in look_at_run(own, recipe, count=1).notes[0]
    plain = {"policy": "none", "color_jitter": 0.0, "rotation": 0.0}
    recipe = recipe.model_copy(update={"augment": recipe.augment.model_copy(update=plain)})
    assert look_at_run(own, recipe, count=1).notes == []


def test_other_data_is_told(run, shapes, tmp_path, capsys):
    recipe = load([f"recipe={run}/recipe.yaml", "data.max_train=150"]).recipe
    assert "is not the data that" in look_at_run(run, recipe).notes[0]
    main(["look", str(run), "data.max_train=150", "--out", str(tmp_path / "a.png")])
    assert "these are not the images that it saw" in capsys.readouterr().err


def test_an_image_that_stands_in_is_told(shapes, tiny, tmp_path, capsys):
    (file,) = [sample.file for sample in look(load(tiny).recipe, 1, 1).samples]
    content = Path(file).read_bytes()
    try:
        Path(file).write_bytes(b"broken")
        main(["look", *tiny, "--count", "1", "--out", str(tmp_path / "a.png")])
    finally:
        Path(file).write_bytes(content)
    assert f"cannot read {file}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--step", "0"], "step 0: this training has the steps 1 to 10"),
        (["--step", "11"], "step 11: this training has the steps 1 to 10"),
        (["--step", "-1"], "step -1"),
        (["--count", "0"], "count=0"),
        (["--out", "nowhere/a.png"], "--out nowhere/a.png"),
        (["data.trian=x"], "did you mean data.train"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["look", str(run), *words])
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_looking_from_python(run):
    seen = resnet.Run(run).look(3, count=4)
    assert (seen.step, len(seen.samples), seen.images.shape) == (3, 4, (4, 32, 32, 3))
    assert (metrics(run)[2]["step"], metrics(run)[2]["epoch"]) == (seen.step, seen.epoch)


def test_a_grid_holds_any_number_of_pictures_of_any_shape(tmp_path):
    tall, grey = np.zeros((300, 20, 3), np.uint8), np.full((4, 4), 255, np.uint8)
    tiles = [Tile(tall, ["name " * 40, "second"], [("a class", 0.5), ("b", 0.0)], False), Tile(Image.fromarray(grey))]
    png = draw_grid(tiles * 20, tmp_path / "a.png", title="title")
    assert (tmp_path / "a.png").read_bytes() == png
    page = np.asarray(Image.open(io.BytesIO(png)))
    assert (page == np.array([0xCF, 0x22, 0x2E])).all(2).any(), "the red frame of what is wrong"
    assert page.shape[1] < page.shape[0] < 4 * page.shape[1]
    assert Image.open(io.BytesIO(draw_grid(tiles[:1]))).width < 2 * SIDE
    with pytest.raises(ValueError, match="a grid of 0 pictures"):
        draw_grid([])
