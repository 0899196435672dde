"""How long a save holds up training: ours against torch.save and accelerator.save_state, taking turns in one process.

    python -m tests.bench.checkpoint [--rounds N] [--device cuda]

ResNet-50 with SGD's momentum and an average of the weights (307 MB). Ours is timed until `Saver.save` returns; the
writing that goes on behind it is awaited between rounds and told apart. torch.save writes the same state and fsyncs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from recipes.plan import make_plan
from recipes.schema.recipe import Recipe
from resnet.checkpoint.saver import Saver
from resnet.ema import Ema
from resnet.metrics import Window
from resnet.net import build_model
from resnet.optim import build_optimizer
from resnet.state import TrainState

TARGET = 0.2
"""Most that our stall may be of torch.save's."""


RESNET50 = {"name": "resnet50"}


def build(
    device: torch.device, network: Mapping[str, Any] = RESNET50, classes: int = 1000
) -> tuple[Recipe, TrainState]:
    """The state after a step, with every moment there. network: keys of `model`."""
    recipe = Recipe.model_validate(
        {
            "model": network,
            "data": {"source": "synthetic"},
            "epochs": 10_000,
            "batch_size": 8,
            "checkpoint": {"every": "1 step", "keep": 1},
        }
    )
    torch.manual_seed(0)
    model = build_model(recipe.model, classes).to(device)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = build_optimizer(model, recipe.optimizer, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    return recipe, TrainState(model, optimizer, scaler, Ema(model, 0.999), Window(device))


def timed(act: Callable[[], object], device: torch.device) -> float:
    """Seconds until `act` returns and the device is done with what it was given."""
    _synchronize(device)
    start = time.perf_counter()
    act()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def save_with_torch(state: TrainState, path: Path) -> None:
    assert state.ema is not None
    content = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "ema": state.ema.module.state_dict(),
        "step": state.step,
    }
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.checkpoint", description="time saves")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary folder)")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    recipe, state = build(device)
    assert state.ema is not None
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        saver = Saver(folder / "ours", make_plan(recipe, 80, 1), [], {"digest": ""}, None, writes=True)
        model, _ = accelerator.prepare(state.model, state.optimizer)
        accelerator.register_for_checkpointing(state.ema)
        assert model is state.model

        def peer() -> None:
            accelerator.save_state(str(folder / "accelerate"))

        seconds: dict[str, list[float]] = {"ours": [], "write": [], "torch.save": [], "save_state": []}
        # The first round, in which ours allocates its memory, is not counted.
        for count in range(given.rounds + 1):
            state.step += 1
            ours = timed(lambda: saver.save(state, 0), device)
            start = time.perf_counter()
            saver.wait()
            written = time.perf_counter() - start
            if saver.failures:
                raise RuntimeError(saver.problem)
            plain = timed(lambda: save_with_torch(state, folder / "plain.pt"), device)
            accelerated = timed(peer, device)
            if count == 0:
                print(f"{device}, {torch.get_num_threads()} threads; first save of ours: {1000 * ours:.0f} ms")
                continue
            for name, value in zip(seconds, (ours, written, plain, accelerated), strict=True):
                seconds[name].append(value)
            shutil.rmtree(folder / "accelerate")
        size = sum(file.stat().st_size for file in (folder / "ours").rglob("*") if file.is_file())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        told = f"{1000 * medians[name]:7.0f} ms  ({1000 * min(values):.0f} to {1000 * max(values):.0f})"
        print(f"{'  written behind it' if name == 'write' else name:20} {told}")
    ratio = medians["ours"] / medians["torch.save"]
    print(
        f"{size / 1e6:.0f} MB, {given.rounds} rounds: ours / torch.save = {ratio:.3f} (target: at most {TARGET}), "
        f"ours / save_state = {medians['ours'] / medians['save_state']:.3f}"
    )
    return int(ratio > TARGET)


if __name__ == "__main__":
    raise SystemExit(main())
