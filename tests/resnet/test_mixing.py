import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomErasing
from torchvision.transforms.v2 import functional as transforms

from recipes.schema.augment import Augment
from resnet.data.on_device import Mix, checksum, draw_erasing, draw_mix, erase, mix, normalise, soft_targets
from resnet.rundir.metrics_log import DIGEST_RANGE

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANNELS_LAST = torch.channels_last


def is_channels_last(images):
    return images.is_contiguous(memory_format=CHANNELS_LAST) and not images.is_contiguous()


def pixels(n=4, size=8):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
def test_normalise_equals_torchvisions(memory_format):
    images = pixels().contiguous(memory_format=memory_format)
    got = normalise(images, MEAN, STD, torch.float32)
    torch.testing.assert_close(got, transforms.normalize(images / 255, list(MEAN), list(STD)), rtol=0, atol=2e-6)
    assert got.is_contiguous(memory_format=memory_format)
    half = normalise(images, MEAN, STD, torch.bfloat16)
    assert torch.equal(half, got.bfloat16())
    assert half.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("size", [32, 7])
def test_a_checksum_tells_images_from_others_however_they_are_batched(size):
    images = torch.randint(256, (8, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    whole = checksum(images).item() % DIGEST_RANGE
    parts = [images[:3], images[3:]], [images.flip(0)], [images.contiguous()]
    assert [sum(checksum(part).item() for part in batches) % DIGEST_RANGE for batches in parts] == [whole] * 3
    others = [images.flip(2), images.flip(3), images.roll(8, 3), images.roll(1, 1), images.roll(1, 2)]
    for byte in range(24):
        changed = images.permute(0, 2, 3, 1).flatten().clone()
        changed[-1 - byte] += 1 + byte
        others.append(changed.view(8, size, size, 3).permute(0, 3, 1, 2))
    assert whole not in [checksum(other).item() % DIGEST_RANGE for other in others]


def test_erase_blanks_the_rectangles():
    images = torch.rand(3, 3, 8, 8).add(1).contiguous(memory_format=CHANNELS_LAST)
    before = images.clone()
    boxes = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0], [5, 0, 3, 8]])
    got, expected = erase(images, boxes), before
    for row, (top, left, height, width) in enumerate(boxes.tolist()):
        expected[row, :, top : top + height, left : left + width] = 0
    assert torch.equal(got, expected)
    assert got is images
    assert is_channels_last(got)


@pytest.mark.parametrize("seed", range(20))
def test_erasing_is_torchvisions(seed):
    torch.manual_seed(seed)
    theirs = RandomErasing(p=0.5)(torch.ones(3, 32, 32))
    torch.manual_seed(seed)
    ours = erase(torch.ones(1, 3, 32, 32), torch.tensor([draw_erasing(0.5, 32)]))[0]
    assert torch.equal(ours, theirs)


def test_erasing_happens_as_often_as_asked_and_fits():
    torch.manual_seed(0)
    boxes = [draw_erasing(0.25, 64) for _ in range(1000)]
    assert 200 < sum(height > 0 for _, _, height, _ in boxes) < 300
    for top, left, height, width in boxes:
        assert 0 <= top <= top + height <= 64
        assert 0 <= left <= left + width <= 64
    assert draw_erasing(0.0, 64) == (0, 0, 0, 0)
    assert draw_erasing(1.0, 64)[2] > 0


def test_erasing_without_a_rectangle_that_fits_leaves_the_image(monkeypatch):
    whole = staticmethod(lambda image, *_: (0, 0, *image.shape[1:], image))
    monkeypatch.setattr(RandomErasing, "get_params", whole)
    assert draw_erasing(1.0, 32) == (0, 0, 0, 0)


def test_draw_mix_is_a_function_of_seed_step_and_slot():
    both = Augment(mixup=0.2, cutmix=1.0)
    draws = {(seed, step, slot): draw_mix(both, seed, step, slot, 32, 32)
             for seed in (0, 1, 2**63 - 1) for step in range(8) for slot in range(8)}  # fmt: skip
    assert len(set(draws.values())) > 0.95 * len(draws)
    assert all(draw_mix(both, *key, 32, 32) == mixed for key, mixed in draws.items())


def test_draw_mix_draws_what_the_recipe_asks_for():
    assert draw_mix(Augment(), 0, 0, 0, 32, 32) is None
    draws = [draw_mix(Augment(mixup=0.2), 0, step, 0, 32, 32) for step in range(400)]
    assert all(mixed.box is None for mixed in draws)
    shares = torch.tensor([mixed.lam for mixed in draws])
    # Variance of Beta(a, a): 1 / (4 (2a + 1)).
    assert shares.mean().item() == pytest.approx(0.5, abs=0.08)
    assert shares.var().item() == pytest.approx(1 / (4 * 1.4), abs=0.03)
    assert all(draw_mix(Augment(cutmix=1.0), 0, step, 0, 32, 32).box for step in range(100))
    both = [draw_mix(Augment(mixup=0.2, cutmix=1.0), 0, step, 0, 32, 32).box is None for step in range(400)]
    assert 150 < sum(both) < 250


@settings(max_examples=200)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(1, 50), st.integers(1, 50), st.floats(0.05, 5))
def test_cutmix_boxes_fit_and_lam_is_their_area(seed, step, height, width, alpha):
    mixed = draw_mix(Augment(cutmix=alpha), seed, step, 3, height, width)
    top, left, box_height, box_width = mixed.box
    assert 0 <= top <= top + box_height <= height
    assert 0 <= left <= left + box_width <= width
    assert mixed.lam == pytest.approx(1 - box_height * box_width / (height * width))


def test_mixup():
    images = torch.rand(3, 3, 4, 4).contiguous(memory_format=CHANNELS_LAST)
    before, targets = images.clone(), soft_targets(torch.tensor([2, 0, 1]), 3)
    mixed_images, mixed_targets = mix(images, targets, Mix(0.7, None))
    torch.testing.assert_close(mixed_images, 0.7 * images + 0.3 * images.roll(1, 0))
    torch.testing.assert_close(mixed_targets, 0.7 * targets + 0.3 * targets.roll(1, 0))
    assert torch.equal(images, before)
    assert is_channels_last(mixed_images)


@pytest.mark.parametrize("box", [(1, 2, 3, 2), (0, 0, 4, 4), (2, 2, 0, 2)])
def test_cutmix(box):
    top, left, height, width = box
    images = torch.rand(3, 3, 4, 4).contiguous(memory_format=CHANNELS_LAST)
    before, targets = images.clone(), soft_targets(torch.tensor([2, 0, 1]), 3)
    lam = 1 - height * width / 16
    mixed_images, mixed_targets = mix(images, targets, Mix(lam, box))
    expected, window = images.clone(), (..., slice(top, top + height), slice(left, left + width))
    expected[window] = images.roll(1, 0)[window]
    assert torch.equal(mixed_images, expected)
    torch.testing.assert_close(mixed_targets, lam * targets + (1 - lam) * targets.roll(1, 0))
    assert torch.equal(images, before)
    assert is_channels_last(mixed_images)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_give_torchs_smoothed_loss(smoothing):
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    targets = soft_targets(labels, 5, smoothing)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    torch.testing.assert_close(
        F.cross_entropy(logits, targets), F.cross_entropy(logits, labels, label_smoothing=smoothing)
    )


def test_nothing_waits_for_the_device():
    # A meta tensor has no value: any look at one from the host raises.
    pixels = torch.empty((4, 3, 8, 8), dtype=torch.uint8, device="meta")
    assert checksum(pixels).shape == ()
    images = normalise(pixels, MEAN, STD, torch.bfloat16)
    images = erase(images, torch.empty((4, 4), dtype=torch.int64, device="meta"))
    targets = soft_targets(torch.empty(4, dtype=torch.int64, device="meta"), 5, 0.1)
    for mixed in (Mix(0.3, None), Mix(0.5, (1, 2, 3, 4))):
        images, targets = mix(images, targets, mixed)
    assert (images.shape, targets.shape) == ((4, 3, 8, 8), (4, 5))
    assert (images.dtype, targets.dtype) == (torch.bfloat16, torch.float32)
