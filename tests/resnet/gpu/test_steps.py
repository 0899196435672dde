"""What a step must not do on a GPU: wait for it, keep memory, give up channels_last, or end in a riddle."""

import contextlib
import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet.replicas import checksums
from resnet.rundir.status import read_status
from resnet.trainer import Trainer
from tests.helpers import column
from tests.resnet.gpu.support import CUDA, before_each_step, run

LONG = "data={source: synthetic, samples: 256, classes: 10, size: 24, num_workers: 1}"
"""16 steps an epoch, from a process that makes batches ahead."""
MIXED = ["augment.mixup=0.2", "augment.cutmix=1.0", "augment.random_erasing=0.5", "model.stochastic_depth=0.2"]


# Waiting


class _NoLook(TorchDispatchMode):
    """Makes it an error to ask the host for a tensor's value, which would wait for it if it were on a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "asks for a value"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Make it an error to wait for the device."""
    if device == "cpu":
        with _NoLook():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


VARIANTS = {
    "plain": [],
    "mixed": MIXED,
    "bce": ["loss=bce", "bce_target_threshold=0.2", "augment.cutmix=1.0"],
    "average": ["ema.decay=0.9"],
    "clipped": ["grad_clip_norm=1", "grad_clip_value=0.1"],
    "accumulating": ["max_batch_per_device=8", *MIXED],
    "lamb": ["optimizer={name: lamb, lr: 0.01, weight_decay: 0.01}"],
    "lars": ["optimizer={name: lars, lr: 0.1, weight_decay: 0.01}"],
}
ONLY_CUDA = {
    "fp16": ["precision=fp16", "grad_clip_norm=1", "ema.decay=0.9"],
    "adamw": ["optimizer={name: adamw, lr: 0.002}"],
    "deterministic": ["deterministic=true", *MIXED],
}
"""On a CPU they look at values: where the scaler has found an overflow, and at the step."""


@pytest.mark.parametrize(
    ("where", "variant"),
    [
        *(("cpu", variant) for variant in ("accumulating", "lamb")),
        *(pytest.param("cuda", variant, marks=CUDA) for variant in VARIANTS | ONLY_CUDA),
    ],
)
def test_nothing_waits_for_the_device_between_two_lines_of_the_log(tmp_path, monkeypatch, where, variant):
    watching, watched = contextlib.ExitStack(), []

    def look(trainer: Trainer) -> None:
        if trainer.state.step == 4:
            watching.enter_context(no_waiting(where))
        elif trainer.state.step == 12:
            watching.close()
            watched.append(trainer.state.step)

    before_each_step(monkeypatch, look)
    with watching:
        run(tmp_path, "r", f"device={where}", LONG, "log_every=50", *(VARIANTS | ONLY_CUDA)[variant])
    assert watched == [12]


# Memory


def in_use(device: str) -> int:
    """Bytes of all tensors there are, once what was queued is done."""
    gc.collect()
    if device == "cpu":
        alive = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
        return sum(tensor.numel() * tensor.element_size() for tensor in alive)
    torch.cuda.synchronize()
    # A new tensor lets the allocator see which streams are done with what was given back.
    torch.empty(1, device=device)
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


SIZES = "augment.progressive=[{epoch: 0, size: 32}, {epoch: 1, size: 64}, {epoch: 2, size: 96}, {epoch: 3, size: 32}]"


@pytest.mark.parametrize(
    ("where", "steps", "words"),
    [
        ("cpu", (10, 30), ["epochs=4", "max_steps=31"]),
        pytest.param("cuda", (20, 200), ["epochs=25", "max_steps=201"], marks=CUDA),
        # The same size of images at both steps, and larger ones between them.
        pytest.param("cuda", (5, 35), ["epochs=4", "log_every=5", SIZES], marks=CUDA),
    ],
)
def test_memory_does_not_grow(tmp_path, monkeypatch, where, steps, words):
    found, sizes = {}, set()

    def look(trainer: Trainer) -> None:
        sizes.add(trainer.plan.image_size(trainer.state.step))
        if trainer.state.step in steps:
            found[trainer.state.step] = in_use(where)

    before_each_step(monkeypatch, look)
    run(tmp_path, "r", f"device={where}", "log_every=10", "eval.every=100", "ema.decay=0.9", *MIXED, *words)
    assert sizes == ({32, 64, 96} if SIZES in words else {24})
    assert found[steps[0]] == found[steps[1]] > 10_000


# channels_last


@pytest.mark.parametrize("words", [[], MIXED], ids=["plain", "mixed"])
def test_all_convolutions_compute_in_channels_last(tmp_path, monkeypatch, device, words):
    kept: dict[str, list[bool]] = {"input": [], "output": [], "gradient": [], "weight": []}

    def note(what: str, tensor: torch.Tensor) -> None:
        kept[what].append(tensor.is_contiguous(memory_format=torch.channels_last))

    def watch(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        note("input", inputs[0])
        note("output", output)
        if output.requires_grad:
            output.register_hook(lambda gradient: note("gradient", gradient))

    def look(trainer: Trainer) -> None:
        if trainer.state.step == 0:
            for module in trainer.state.model.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(watch)
                    module.weight.register_post_accumulate_grad_hook(lambda weight: note("weight", weight.grad))

    before_each_step(monkeypatch, look)
    run(tmp_path, "r", f"device={device}", "max_steps=3", *words)
    assert {what: all(flags) for what, flags in kept.items()} == dict.fromkeys(kept, True)
    # The stem, two convolutions in each of the three blocks and two on the way past them, in 3 steps.
    assert len(kept["gradient"]) == len(kept["weight"]) == 9 * 3
    assert len(kept["input"]) > 9 * 3, "evaluation counts too"


# Out of memory


@contextlib.contextmanager
def little_memory(megabytes: int) -> Iterator[None]:
    """Leave so much of the GPU's memory to this process."""
    gc.collect()
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + megabytes * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_out_of_memory_ends_in_one_message(tmp_path, monkeypatch, capsys, device):
    if device == "cuda":
        # A batch is 77 MB as it comes, of which two are there, and 308 MB as float.
        words = ["data={source: synthetic, samples: 512, classes: 10, size: 224, num_workers: 0}", "batch_size=512"]
        words += ["augment.train_size=224", "epochs=3"]
        context, advice = little_memory(300), "max_batch_per_device=256"
    else:
        words, context, advice = [], contextlib.nullcontext(), "max_batch_per_device=8"
        error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")

        def fail(trainer: Trainer) -> None:
            if trainer.state.step == 3:
                raise error

        before_each_step(monkeypatch, fail)
    with context:
        found = run(tmp_path, "r", f"device={device}", *words, code=1)
    told = capsys.readouterr().err
    assert told.count("max_batch_per_device") == told.count(f"try {advice} ") == 1, told
    assert "out of GPU memory (CUDA out of memory)" in told
    assert "Traceback" not in told
    status = read_status(found)
    assert (status["state"], status["failure"]) == ("failed", "oom")
    assert advice in status["reason"]
    if device == "cuda":
        after = run(tmp_path, "after", "device=cuda", "max_steps=2")
        assert len(column(after, "train/loss")) == 2, "with all the memory again"


def test_checksums_of_replicas_are_those_of_a_cpu_and_wait_for_nothing(device):
    tensors = [torch.randn(64, 3, 7, 7).to(memory_format=torch.channels_last), torch.randn(5).half(), torch.ones(1)]
    there = [tensor.to(device) for tensor in tensors]
    with no_waiting(device):
        found = checksums(there)
    assert found.tolist() == checksums(tensors).tolist()
