"""What `resnet doctor` says of what it measured: what the limit is, what would lift it, and the cheapest change."""

from __future__ import annotations

import math
from typing import Any

import torch

from recipes.text import plural
from resnet.data.cache import check_room
from resnet.opening import has_bf16
from resnet.process.environment import available_memory
from resnet.tools.doctor import Examined

_ENOUGH = 1.1
"""The loader should be so much faster than the model, as neither is even."""
_LARGE, _SMALL = 500, 200
"""Pixels of a longer side from which on smaller copies are worth making, and decoding a part in place of all."""


def limit_of(found: Examined) -> str:
    """model, or what a worker spends most on: read, decode, crop or policy."""
    if found.loader >= _ENOUGH * found.step:
        return "model"
    return max(found.stages._asdict().items(), key=lambda stage: stage[1])[0]


def told(found: Examined) -> list[str]:
    """Five lines of plain English."""
    return [_what(found), _worker(found), _rates(found), _limit(found), f"Cheapest change: {advice(found)}."]


def as_json(found: Examined) -> dict[str, Any]:
    facts = found._asdict()
    recipe = facts.pop("recipe")
    return {
        "recipe": recipe.name,
        **facts,
        "stages": found.stages._asdict(),
        "sampled": found.sampled._asdict(),
        "cores_wanted": found.cores_wanted,
        "limit": limit_of(found),
        "advice": advice(found),
    }


def _what(found: Examined) -> str:
    shared = f", one of {found.ranks} GPUs" if found.ranks > 1 else ""
    return (
        f"{found.recipe.name} on {found.device}{shared}: precision {found.precision}, micro-batches of "
        f"{found.micro_batch}; {plural(found.workers, 'worker')} on {plural(found.cores, 'core')}."
    )


def _worker(found: Examined) -> str:
    stages = found.stages
    words = stages._asdict()
    if found.recipe.data.decode == "region":
        words = {"decode and crop" if name == "crop" else name: value for name, value in words.items()}
        del words["decode"]
    parts = ", ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in words.items())
    files = f"{found.sampled.kilobytes:.0f} KB, " if found.sampled.kilobytes else ""
    cold = ", not in the system's cache" if found.sampled.cold else ""
    return (
        f"A worker alone takes {sum(stages):.2f} ms an image ({parts}), {stages.per_second:,.0f} images/s: "
        f"{plural(found.sampled.images, 'image')} of {files}{found.sampled.longer_side:.0f} px{cold}."
    )


def _rates(found: Examined) -> str:
    copied = "" if found.copy is None else f"the copy to the GPU {found.copy:,.0f}, "
    loader = "the loader, in the training process," if not found.workers else "the loader"
    loader += " (of images kept before)" if found.kept else ""
    uncompiled = " (uncompiled)" if found.recipe.compile else ""
    taught = " (without its teacher)" if found.recipe.distill else ""
    return f"Images/s: {loader} {_number(found.loader)}, {copied}the model {_number(found.step)}{uncompiled}{taught}."


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 20 else f"{rate:.1f}"


def _limit(found: Examined) -> str:
    cores = plural(math.ceil(_ENOUGH * found.cores_wanted), "core")
    limit = limit_of(found)
    if limit == "model":
        times = _number(found.loader / found.step)
        return f"The model is the limit: the input is {times} times as fast, and {cores} would feed it."
    share = getattr(found.stages, limit) / sum(found.stages)
    return (
        f"The input is the limit, at {found.loader / found.step:.0%} of what the model takes; most of it is {limit} "
        f"({share:.0%}). {cores[0].upper()}{cores[1:]} for each rank would feed the model (it has {found.cores})."
    )


def advice(found: Examined) -> str:
    """The cheapest change that would help, as a key or a command, and what it does."""
    if (limit := limit_of(found)) == "model":
        return _for_model(found)
    if found.workers < found.cores:
        return f"data.num_workers=null takes all {found.cores} cores ({plural(found.workers, 'worker')} now)"
    if _fits_device(found):
        return "data.cache=device decodes all images once, and crops them on the device from then on"
    if limit == "read":
        return _for_reading(found)
    if limit == "policy":
        return "more cores, or a GPU, on which policies are applied to whole batches"
    return _for_decoding(found)


def _for_model(found: Examined) -> str:
    on_cpu = found.copy is None
    if found.precision == "no" and (not on_cpu or has_bf16()):
        return "precision=bf16 makes the model faster; nothing on the input's side would"
    if not on_cpu and not found.recipe.compile:
        return "compile=true makes the model faster; nothing on the input's side would"
    return "none on the input's side; " + ("a GPU" if on_cpu else "more GPUs, or smaller images")


def _fits_device(found: Examined) -> bool:
    recipe = found.recipe
    if recipe.data.cache == "device" or recipe.augment.beyond_cache():
        return False
    try:
        device = torch.device("cpu" if found.copy is None else "cuda")
        check_room(found.training_images, 0, recipe.augment, device)
    except ValueError:
        return False
    return True


def _for_reading(found: Examined) -> str:
    free, size = available_memory(), 1000 * found.sampled.kilobytes * found.training_images
    if free is not None and size < free / 2 and found.recipe.data.cache != "memory":
        return f"data.cache=memory keeps the {size / 1e9:.1f} GB of files in memory as they are read"
    return "data.stage=FOLDER copies the files once to a disk of this machine's own; resnet prepare makes them few"


def _for_decoding(found: Examined) -> str:
    recipe, sampled = found.recipe, found.sampled
    if recipe.data.decode == "cpu" and recipe.augment.crop == "random_resized" and sampled.longer_side >= _SMALL:
        return "data.decode=region decodes of JPEGs what is cropped, to the same pixels (resnet-launch[fast])"
    if sampled.longer_side >= _LARGE:
        return _prepare("--max-side", found, "makes smaller copies once")
    if found.copy is not None and recipe.data.decode != "gpu":
        return "data.decode=gpu decodes JPEGs on the GPU"
    return _prepare("--raw", found, "stores pixels once, which need no decoding")


def _prepare(option: str, found: Examined, what: str) -> str:
    """A form of prepared data, with what it gave on a few of the images."""
    for options, rate in found.prepared.items():
        if options.startswith(option):
            faster = f", from which a worker is {rate / found.stages.per_second:.1f} times as fast"
            return f"resnet prepare {options} {what}{faster} (data.source=shards)"
    return "more cores: these images are no files that could be prepared"
