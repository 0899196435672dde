"""What the order of the data costs a worker: computed at each position, against the table of a whole epoch before it.

    python -m tests.bench.order [--images N ...] [--rounds N]

Batches of both kinds are drawn in turns in one process; memory is what Python and NumPy hold at most. Tables beyond
`MOST` images are not drawn. "of classes": as with data.balance=oversample, a thousand classes of all sizes, mixed; what
is made for that once a run comes before the batches.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from resnet.data.bijection import mix
from resnet.data.order import Order, balanced_counts

IMAGES = (1_281_167, 14_000_000, 2**33)
BATCHES = (256, 1024)
MOST = 20_000_000
CLASSES = 1000


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def memory(act: Callable[[], object]) -> float:
    """MB held at most while `act` runs."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def drawing(order: Order, batch: int, epoch: int = 0) -> Callable[[], object]:
    """Draws a batch from the middle of an epoch."""
    middle = len(order) // 2
    return lambda: order.at(epoch, np.arange(middle, middle + batch))


def row(order: Order, rounds: int) -> str:
    """Seconds and memory of an epoch's first batch, and milliseconds of further ones by their size."""
    first, held = seconds(drawing(order, BATCHES[0])), memory(drawing(order, BATCHES[0], epoch=1))
    times = {batch: [seconds(drawing(order, batch)) for _ in range(rounds)] for batch in BATCHES}
    each = "".join(f"{1e3 * statistics.median(times[batch]):12.3f}" for batch in BATCHES)
    return f"{first:12.4f}{held:12.2f}{each}"


def of_classes(images: int) -> tuple[Order, float]:
    """And the seconds that it took, without making up the labels."""
    shares = mix(0, np.arange(images, dtype=np.uint64)) / 2.0**64
    labels = (CLASSES * shares**2).astype(np.int64)
    drawn = balanced_counts("oversample", np.bincount(labels, minlength=CLASSES))
    start = time.perf_counter()
    order = Order(labels, 0, BATCHES[-1], drawn=drawn)
    return order, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    head = "".join(f"{f'ms of {batch}':>12}" for batch in BATCHES)
    print(f"{'images':>14}  {'order':22}{'first, s':>12}{'MB':>12}{head}")
    for images in arguments.images:
        labels = np.broadcast_to(np.int64(0), images)
        for kind in ("table", "bijection") if images <= MOST else ("bijection",):
            order = Order(labels, 0, BATCHES[-1], kind=kind)
            print(f"{images:14,}  {kind:22}{row(order, arguments.rounds)}", flush=True)
        if images <= MOST:
            order, spent = of_classes(images)
            classes = f"{'bijection, of classes':22}{row(order, arguments.rounds)}   made once in {spent:.2f} s"
            print(f"{images:14,}  {classes}", flush=True)


if __name__ == "__main__":
    main()
