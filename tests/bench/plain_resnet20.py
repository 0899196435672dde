"""ResNet-20 on CIFAR-10 as its paper trains it, by plain PyTorch alone: what `cifar_resnet20` holds ours against.

    python tests/bench/plain_resnet20.py FOLDER [--epochs 164] [--milestones 82 123] [--seed 0]

Written from He et al. 2015 (arXiv:1512.03385), section 4.2. Nothing of this project is imported, so that a mistake is
not made twice. Prints a JSON object an epoch. FOLDER: train-*.parquet and test-*.parquet with columns of an image
(bytes of a file) and of its label.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PADDING = 4


class Block(nn.Module):
    """Two 3x3 convolutions; the shortcut is the identity, subsampled and filled up with zero channels (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, outputs - inputs
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.first_norm(self.first(x)))
        branch = self.second_norm(self.second(branch))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.more // 2
        return F.relu(branch + F.pad(shortcut, (0, 0, 0, 0, before, self.more - before)))


def resnet20() -> nn.Sequential:
    """1 + 3 x 3 x 2 convolutions and a classifier; He initialisation. Input: float (N, 3, 32, 32)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for width in (16, 32, 64):
        for index in range(3):
            layers.append(Block(inputs, width, 2 if width > 16 and index == 0 else 1))
            inputs = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def read(files: list[Path]) -> tuple[Tensor, Tensor]:
    """Images as uint8 (N, 3, 32, 32), and labels."""
    images, labels = [], []
    for file in files:
        for row in pyarrow.parquet.read_table(file).to_pylist():
            image, label = (row[name] for name in sorted(row, key=lambda name: isinstance(row[name], int)))
            images.append(np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augmented(images: Tensor) -> Tensor:
    """Each padded with zeros, cropped back at a random place, and flipped or not. uint8 in and out."""
    padded, out = F.pad(images, [PADDING] * 4), torch.empty_like(images)
    tops, lefts = torch.randint(0, 2 * PADDING + 1, (2, len(images))).tolist()
    flips = (torch.rand(len(images)) < 0.5).tolist()
    for i, (top, left, flip) in enumerate(zip(tops, lefts, flips, strict=True)):
        crop = padded[i, :, top : top + images.shape[2], left : left + images.shape[3]]
        out[i] = crop.flip(2) if flip else crop
    return out


@torch.no_grad()
def right(net: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> float:
    """Percent of the images whose class is found."""
    net.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        parts = zip(images.split(500), labels.split(500), strict=True)
        found = sum(int((net(normalised(part)).argmax(1) == truth).sum()) for part, truth in parts)
    net.train()
    return 100 * found / len(labels)


def train(
    folder: Path, epochs: int, milestones: list[int], batch_size: int, lr: float, decay: float, bf16: bool, seed: int
) -> Iterator[dict[str, float]]:
    """Yields, after each epoch, the mean loss of its training images and the percentage of test images found."""
    images, labels = read(sorted(folder.glob("train-*.parquet")))
    test_images, test_labels = read(sorted(folder.glob("test-*.parquet")))
    torch.manual_seed(seed)
    net = resnet20()
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(labels)).split(batch_size):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(net(normalised(augmented(images[chosen]))), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        schedule.step()
        yield {"epoch": epoch, "loss": total / len(labels), "top1": right(net, test_images, test_labels, bf16)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=164)
    parser.add_argument("--milestones", type=int, nargs="*", default=[82, 123])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=1e-4)
    parser.add_argument("--bf16", action="store_true", help="convolutions in bf16, by autocast")
    parser.add_argument("--seed", type=int, default=0)
    for row in train(**vars(parser.parse_args())):
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
