"""What is done to images by policies, colour jitter and rotation is what torchvision's v2 kernels do, to a level."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.functional import pil_to_tensor

from resnet.data import operations_on_cpu, operations_on_device
from resnet.data.operations import NAMES, Operations, apply_to_batch, apply_to_one

SIZES = [(37, 53), (32, 32), (1, 1), (2, 5), (3, 3), (1, 40)]
ROUNDED = {"ShearX", "ShearY", "Rotate", "Rotation", "Color", "Contrast", "Sharpness"}
"""Where a value lies half way between two levels, or at one, rounding in float32 decides."""
POLICY = v2.RandAugment(interpolation=InterpolationMode.BILINEAR)


def pictures(height: int, width: int) -> Tensor:
    """uint8 (N, 3, H, W): noise, dark noise, two values, one, a gradient and a drawing."""
    noise = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain = torch.tensor([93, 94, 90], dtype=torch.uint8).view(3, 1, 1).expand_as(noise)
    ramp, disc = (make("L").resize((width, height)) for make in (Image.linear_gradient, Image.radial_gradient))
    gradient = torch.cat([pil_to_tensor(plane) for plane in (ramp, disc, ramp.transpose(Image.Transpose.ROTATE_180))])
    drawing = Image.new("RGB", (width, height), (30, 90, 160))
    ImageDraw.Draw(drawing).ellipse((width // 4, height // 5, width, height), (230, 200, 40), (255, 255, 255))
    two = torch.where(noise > 127, 200, 17).to(torch.uint8)
    return torch.stack([noise, noise // 8, two, plain, gradient, pil_to_tensor(drawing)])


def magnitudes_of(name: str, height: int, width: int) -> list[float]:
    """Over all that is ever drawn, and some more, as float32 as torchvision draws them."""
    ends = {"Posterize": (0, 8), "Solarize": (0, 1), "Rotate": (-180, 180), "Rotation": (-180, 180)}
    ends |= {f"Translate{axis}": (-size - 2, size + 2) for axis, size in (("X", width), ("Y", height))}
    ends |= dict.fromkeys(("ShearX", "ShearY", "Sharpness"), (-0.99, 0.99))
    ends |= dict.fromkeys(("Brightness", "Color", "Contrast"), (-1, 2))
    return torch.linspace(*ends[name], 17).tolist() if name in ends else [0.0]


def torchvisions(image: Tensor, name: str, magnitude: float) -> Tensor:
    if name == "Rotation":
        return v2.functional.rotate(image, magnitude, InterpolationMode.BILINEAR, fill=[0.0])
    made = POLICY._apply_image_or_video_transform(image, name, magnitude, POLICY.interpolation, {torch.Tensor: None})
    assert isinstance(made, Tensor)
    return made


def one_by_one(images: Tensor, name: str, magnitudes: list[float]) -> Tensor:
    make = operations_on_cpu.BY_NAME[name]
    pairs = zip(images.permute(0, 2, 3, 1).contiguous().numpy(), magnitudes, strict=True)
    return torch.stack([torch.from_numpy(make(image, magnitude)).permute(2, 0, 1) for image, magnitude in pairs])


def together(images: Tensor, name: str, magnitudes: list[float]) -> Tensor:
    """As a GPU does it, here."""
    rows = images.permute(0, 2, 3, 1).contiguous()
    made = operations_on_device.BY_NAME[name](rows, torch.tensor(magnitudes, dtype=torch.float64))
    return made.permute(0, 3, 1, 2)


@pytest.mark.parametrize("apply", [one_by_one, together])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_torchvisions(name, apply):
    differing = pixels = 0
    for height, width in [*SIZES, (224, 224)]:
        magnitudes = magnitudes_of(name, height, width)[:: 8 if height == 224 else 1]
        for image in pictures(height, width):
            images = image.expand(len(magnitudes), -1, -1, -1)
            theirs = torch.stack([torchvisions(image, name, magnitude) for magnitude in magnitudes])
            ours = apply(images, name, magnitudes)
            difference = (ours.int() - theirs.int()).abs()
            assert difference.max() <= 1, (height, width)
            differing, pixels = differing + int(difference.sum()), pixels + difference.numel()
    assert differing <= (0.01 * pixels if name in ROUNDED else 0)


def drawn(images: int, seed: int = 0) -> list[list[tuple[str, float]]]:
    """For each image none to three operations."""
    generator = torch.Generator().manual_seed(seed)

    def chosen(values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    names = [[chosen(NAMES) for _ in range(chosen(range(4)))] for _ in range(images)]
    return [[(name, chosen(magnitudes_of(name, 37, 53))) for name in each] for each in names]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(37, 53), (53, 61)])
def test_a_batch_is_its_images_one_by_one(order, size):
    images = pictures(*size).repeat(12, 1, 1, 1).contiguous(memory_format=order)
    before, operations = images.clone(), drawn(len(images))
    # More of a kind than are taken together.
    operations[:40] = [[("Contrast", 0.01 * place)] for place in range(40)]
    made = apply_to_batch(images, Operations.of(operations))
    assert made.is_contiguous(memory_format=order)
    for image, each, found in zip(images, operations, made, strict=True):
        alone = apply_to_one(image, each)
        assert alone.stride() == image.stride()
        assert torch.equal(alone, found)
    assert torch.equal(images, before)
    assert not torch.equal(images, made)


@pytest.mark.parametrize("name", NAMES)
def test_the_others_of_a_batch_change_nothing(name):
    images = pictures(37, 53).repeat(3, 1, 1, 1)
    magnitudes = (magnitudes_of(name, 37, 53) * 18)[: len(images)]
    made = together(images, name, magnitudes)
    for place, magnitude in enumerate(magnitudes):
        assert torch.equal(together(images[place : place + 1], name, [magnitude])[0], made[place])
