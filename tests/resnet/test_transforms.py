import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as reference
from torchvision.transforms import v2

from recipes.schema.augment import Augment
from resnet.data.draws import drawing
from resnet.data.operations import apply_to_one
from resnet.data.transforms import eval_transform, train_crop


def train_transform(augment: Augment, size: int):
    """A function from uint8 (3, H, W) to what training makes of it, as drawn at that moment."""
    draw, crop = drawing(augment, size), train_crop(augment, size)

    def apply(image: torch.Tensor) -> torch.Tensor:
        drawn = draw(*image.shape[-2:])
        return apply_to_one(crop(image, drawn), drawn.operations)

    return apply


def picture(height: int, width: int) -> torch.Tensor:
    """A smooth image with noise, as resampling meets it."""
    rows, columns = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 5, width), indexing="ij")
    waves = torch.stack([torch.sin(rows + columns), torch.cos(rows * 2), torch.sin(columns * 3)])
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    return ((waves + 1) * 110 + noise * 30).to(torch.uint8)


EVERYTHING = {"hflip": 0.5, "vflip": 0.5, "rotation": 20, "color_jitter": 0.4, "randaugment_std": 0.5}
AUGMENTS = [
    Augment(crop=crop, policy=policy, interpolation=interpolation, **EVERYTHING)
    for crop in ("random_resized", "pad", "resize")
    for policy, interpolation in (
        ("none", "bilinear"),
        ("trivial_augment_wide", "bicubic"),
        ("randaugment", "bilinear"),
        ("auto_augment", "bilinear"),
    )
]


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: f"{augment.crop}-{augment.policy}")
def test_training_images_have_the_size_asked_for(augment):
    transform = train_transform(augment, 40)
    for height, width in ((40, 40), (90, 60), (1, 1), (2, 300), (300, 2)):
        for _ in range(3):
            image = transform(picture(height, width))
            assert image.shape == (3, 40, 40)
            assert image.dtype == torch.uint8


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: f"{augment.crop}-{augment.policy}")
def test_the_seed_decides_everything(augment):
    image, results = picture(70, 90), []
    for other in (1, 2):
        random.seed(other)
        np.random.seed(other)
        torch.manual_seed(5)
        results.append(train_transform(augment, 48)(image.clone()))
    assert torch.equal(*results)
    torch.manual_seed(6)
    assert not torch.equal(results[0], train_transform(augment, 48)(image))


def test_the_image_itself_is_left_alone():
    image = picture(48, 48)
    before = image.clone()
    for augment in AUGMENTS:
        train_transform(augment, 48)(image)
        eval_transform(augment)(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 333), (100, 120)])
def test_evaluation_equals_the_reference_pipeline(interpolation, height, width):
    image = picture(height, width)
    ours = eval_transform(Augment(interpolation=interpolation))(image)
    resize = reference.Resize(256, reference.InterpolationMode(interpolation))
    pillow = reference.CenterCrop(224)(resize(Image.fromarray(image.permute(1, 2, 0).numpy())))
    difference = (ours.float() - torch.from_numpy(np.array(pillow)).permute(2, 0, 1)).abs()
    assert difference.max() <= 2
    assert difference.mean() < 0.5


def test_evaluation_crops_the_centre():
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    image[:, 40:60, 90:110] = 255
    cropped = eval_transform(Augment(val_resize=100, val_size=20))(image)
    assert torch.equal(cropped, torch.full((3, 20, 20), 255, dtype=torch.uint8))


@pytest.mark.parametrize("crop", ["pad", "resize"])
def test_evaluation_without_a_crop(crop):
    transform = eval_transform(Augment(crop=crop, val_size=32))
    image = picture(32, 32)
    assert torch.equal(transform(image), image)
    assert transform(picture(50, 20)).shape == (3, 32, 32)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 60_000), (60_000, 1)])
def test_evaluation_of_extreme_shapes(height, width):
    image = torch.full((3, height, width), 7, dtype=torch.uint8)
    assert torch.equal(eval_transform(Augment())(image), torch.full((3, 224, 224), 7, dtype=torch.uint8))


def test_flips():
    image, plain = picture(32, 32), {"crop": "resize", "train_size": 32}
    assert torch.equal(train_transform(Augment(**plain, hflip=1), 32)(image), image.flip(2))
    assert torch.equal(train_transform(Augment(**plain, hflip=0, vflip=1), 32)(image), image.flip(1))
    assert torch.equal(train_transform(Augment(**plain, hflip=0), 32)(image), image)


def test_pad_crops_a_window_of_the_padded_image():
    image = picture(32, 32)
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    windows = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    transform = train_transform(Augment(crop="pad", padding=4, hflip=0), 32)
    met = set()
    for _ in range(40):
        result = transform(image)
        met.update(number for number, window in enumerate(windows) if torch.equal(window, result))
    assert len(met) > 15


def test_random_resized_crop_keeps_to_its_ranges():
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200)
    transform = train_transform(Augment(scale=(0.25, 0.25), ratio=(1, 1), hflip=0), 50)
    spans = [int(image[0, 0, -1]) - int(image[0, 0, 0]) for image in (transform(ramp) for _ in range(20))]
    assert all(95 <= span <= 100 for span in spans)
    whole = train_transform(Augment(scale=(1, 1), ratio=(1, 1), hflip=0), 50)(ramp)
    assert torch.equal(whole, v2.functional.resize(ramp, [50, 50], antialias=True))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("seed", range(5))
def test_random_resized_crop_is_torchvisions(seed, interpolation):
    image = picture(90, 70)
    ours = train_transform(Augment(interpolation=interpolation, hflip=0), 48)
    theirs = v2.RandomResizedCrop(48, interpolation=v2.InterpolationMode(interpolation), antialias=True)
    torch.manual_seed(seed)
    got = ours(image)
    torch.manual_seed(seed)
    assert torch.equal(got, theirs(image))
    assert got[None].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.25, 1.0), (1.0, 1.0)), ((0.9, 1.0), (0.3, 3.0))]
)
def test_inception_crops_are_drawn_as_torchvision_does(scale, ratio):
    theirs, ours = v2.RandomResizedCrop(8, scale, ratio).make_params, drawing(Augment(scale=scale, ratio=ratio), 8)
    for seed in range(30):
        for height, width in ((375, 500), (224, 224), (1, 9), (3, 400), (90, 3), (1, 1)):
            torch.manual_seed(seed)
            box = theirs([torch.empty((3, height, width), device="meta")])
            mirrored = bool(torch.rand(1) < 0.5)
            torch.manual_seed(seed)
            drawn = ours(height, width)
            assert drawn.crop == (box["top"], box["left"], box["height"], box["width"])
            assert drawn.mirrored == mirrored


@pytest.mark.parametrize("policy", [v2.RandAugment(3, 27, 31), v2.TrivialAugmentWide(), v2.AutoAugment()])
def test_policies_draw_what_torchvisions_do(policy):
    """The same operations of the same magnitudes from the same random numbers, of which as many are used."""
    name = {"RandAugment": "randaugment", "AutoAugment": "auto_augment"}.get(type(policy).__name__)
    augment = Augment(policy=name or "trivial_augment_wide", randaugment_ops=3, crop="resize", hflip=0)
    draw, met = drawing(augment, 40), []
    policy._apply_image_or_video_transform = lambda image, name, magnitude, **_: met.append((name, magnitude)) or image
    for seed in range(200):
        met.clear()
        torch.manual_seed(seed)
        policy(picture(40, 40))
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        assert draw(40, 40).operations == met
        assert torch.equal(torch.get_rng_state(), after)


def test_rotation_and_colours_are_drawn_as_torchvision_does():
    draw = drawing(Augment(crop="resize", hflip=0, rotation=20, color_jitter=0.4), 40)
    rotation, jitter = v2.RandomRotation(20), v2.ColorJitter(0.4, 0.4, 0.4)
    for seed in range(50):
        torch.manual_seed(seed)
        angle, colours = rotation.make_params([])["angle"], jitter.make_params([])
        torch.manual_seed(seed)
        first, *others = draw(40, 40).operations
        assert first == ("Rotation", angle)
        factors = {"Brightness": "brightness", "Contrast": "contrast", "Color": "saturation"}
        assert {name: 1 + magnitude for name, magnitude in others} == pytest.approx(
            {name: colours[f"{factor}_factor"] for name, factor in factors.items()}
        )
        order = [("Brightness", "Contrast", "Color")[which] for which in colours["fn_idx"].tolist() if which < 3]
        assert [name for name, _ in others] == order


def test_flips_and_crops_are_drawn_as_torchvision_does():
    augment = Augment(crop="pad", padding=3, hflip=0.3, vflip=0.6)
    crop, draw = v2.RandomCrop(40, padding=3), drawing(augment, 40)
    for seed in range(100):
        torch.manual_seed(seed)
        box = crop.make_params([picture(40, 40)])
        mirrored, flipped = bool(torch.rand(1) < 0.3), bool(torch.rand(1) < 0.6)
        torch.manual_seed(seed)
        assert draw(40, 40) == ((box["top"], box["left"], 40, 40), mirrored, flipped, [])


@pytest.mark.parametrize(("magnitude", "std", "bins"), [(0, 0, {0}), (5, 0, {15}), (9, 0, {27}), (10, 0, {30})])
def test_randaugment_magnitude(magnitude, std, bins):
    assert drawn_bins(magnitude, std) == bins


def test_randaugment_draws_its_magnitude_for_each_operation():
    bins = drawn_bins(9, 0.5)
    assert len(bins) > 4
    assert bins <= set(range(31))
    assert 26 <= sum(bins) / len(bins) <= 29


def drawn_bins(magnitude: float, std: float) -> set[int]:
    """The torchvision magnitudes (of 31) that the rotations of 100 images meet."""
    augment = Augment(policy="randaugment", randaugment_magnitude=magnitude, randaugment_std=std, randaugment_ops=9)
    draw = drawing(augment, 32)
    drawn = [operation for _ in range(100) for operation in draw(32, 32).operations]
    assert len(drawn) == 900
    return {round(abs(angle)) for name, angle in drawn if name == "Rotate"}
