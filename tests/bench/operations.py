"""What each operation of RandAugment costs: torchvision's v2 kernels, Pillow and ours, taking turns in one process.

    python -m tests.bench.operations [--image FILE] [--size 224] [--rounds 9] [--device cuda]

Microseconds of one thread's time for one image as each likes it best: uint8 in NHWC order, a Pillow image; the mean of
three magnitudes, the median of all rounds. `off` is the largest difference from v2 in levels, and what share of the
values differs. With --device also the time by the clock of a batch of 64 there, by image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from resnet.data.draws import Operation
from resnet.data.operations import Operations, apply_to_batch, apply_to_one

REPEATS = 5
BATCH = 64
POLICY = v2.RandAugment(interpolation=InterpolationMode.BILINEAR)


def strengths(size: int) -> dict[str, list[Operation]]:
    """By name an operation of RandAugment with three of its magnitudes."""
    space = {name: magnitudes(31, size, size) for name, (magnitudes, _) in POLICY._AUGMENTATION_SPACE.items()}
    bins = (6, 15, 27)
    return {name: [(name, 0.0 if found is None else float(found[at])) for at in bins] for name, found in space.items()}


def torchvisions(image: Tensor | Image.Image, operation: Operation) -> Tensor | Image.Image:
    fill = {type(image): None}
    return POLICY._apply_image_or_video_transform(image, *operation, POLICY.interpolation, fill)  # pyright: ignore


def picture(file: str | None, size: int) -> Image.Image:
    if file:
        return Image.open(file).convert("RGB").resize((size, size))
    rough = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(rough[None], (size, size), mode="bicubic")[0].clamp(0, 1)
    return Image.fromarray((smooth * 255).byte().permute(1, 2, 0).contiguous().numpy())


def microseconds(act: Callable[[Operation], object], operations: list[Operation]) -> float:
    start = time.thread_time()
    for _ in range(REPEATS):
        for operation in operations:
            act(operation)
    return (time.thread_time() - start) / REPEATS / len(operations) * 1e6


def microseconds_on_device(images: Tensor, operations: list[Operation]) -> float:
    found = Operations.of([[operations[place % len(operations)]] for place in range(len(images))])
    begin = 0.0
    for repeat in range(REPEATS + 1):
        apply_to_batch(images, found)
        if repeat in (0, REPEATS) and images.is_cuda:
            torch.cuda.synchronize()
        begin = begin or time.perf_counter()
    return (time.perf_counter() - begin) / REPEATS / len(images) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="a photograph, instead of a smooth picture")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", help="where to time batches, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pillow = picture(args.image, args.size)
    image = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
    acts: dict[str, Callable[[Operation], object]] = {
        "v2": lambda operation: torchvisions(image, operation),
        "Pillow": lambda operation: torchvisions(pillow, operation),
        "ours": lambda operation: apply_to_one(image, [operation]),
    }
    operations = strengths(args.size)
    times = {name: {who: [] for who in acts} for name in operations}
    for _ in range(args.rounds + 1):
        for name, found in operations.items():
            for who, act in acts.items():
                times[name][who].append(microseconds(act, found))
    print(f"{'':14s}{'v2':>7s}{'Pillow':>8s}{'ours':>7s}{'v2/ours':>9s}   off")
    means = {name: {who: statistics.median(each[1:]) for who, each in found.items()} for name, found in times.items()}
    means["mean"] = {who: statistics.mean(each[who] for each in means.values()) for who in acts}
    for name, cost in means.items():
        off = ""
        if name in operations:
            pairs = [(torchvisions(image, each), apply_to_one(image, [each])) for each in operations[name]]
            difference = torch.stack([(ours.int() - theirs.int()).abs() for theirs, ours in pairs])  # pyright: ignore
            off = f"{difference.max()}  {(difference > 0).float().mean():.1e}"
            if args.device:
                batch = image.expand(BATCH, -1, -1, -1).contiguous(memory_format=torch.channels_last).to(args.device)
                off += f"  {args.device}: {microseconds_on_device(batch, operations[name]):.1f}"
        v2_, pillow_, ours_ = cost["v2"], cost["Pillow"], cost["ours"]
        print(f"{name:14s}{v2_:7.0f}{pillow_:8.0f}{ours_:7.0f}{v2_ / ours_:9.1f}   {off}")


if __name__ == "__main__":
    main()
