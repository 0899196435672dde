"""README.md of a folder for huggingface.co: what its page shows of a network, and what its search finds it by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.schema.channels import COLOURS
from recipes.schema.model import Model
from recipes.schema.recipe import Recipe
from recipes.text import plural
from resnet.data import imagenet
from resnet.net import effective_model
from resnet.process.version import VERSION
from resnet.run_recipe import load_run_recipe
from resnet.run_weights import has_average
from resnet.rundir.artefacts import EXPORTS
from resnet.rundir.evaluation import read_evaluation
from resnet.tools.eval_data import EvalData
from resnet.tools.export.formats import SAFETENSORS, Given
from resnet.tools.export.measure import Measured
from resnet.tools.export.public import dataset_of
from resnet.tools.export.timm_config import is_timms
from resnet.tools.export.torchvision_source import builder_of
from resnet.tools.trained import Trained
from resnet.weights_file import read_info

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_KNOWN = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet-1k": "ImageNet-1k"}
"""Data sets that are known without their name on huggingface.co: their names there, and as people call them."""


def card(given: Given, measured: Measured, data: EvalData, curves: str | None) -> str:
    """The whole file.

    measured: of the weights, on some of `data`. curves: name of the picture beside it, where there is one.
    """
    figures = _figures(given.trained, measured, data)
    head = _front_matter(given, figures).to_yaml()
    return f"---\n{head}\n---\n\n{_body(given, measured, figures, curves)}"


class Figures(NamedTuple):
    """How good the weights are, in percent."""

    top1: float
    top5: float
    images: int
    all: int
    """Images that there are."""

    def __str__(self) -> str:
        of = "" if self.images == self.all else f" of {self.all:,}, evenly spread"
        return f"{self.images:,} images{of}"


def _figures(trained: Trained, measured: Measured, data: EvalData) -> Figures:
    """The run's own evaluation where it is of these weights and this recipe, else what was measured now."""
    after = measured.after
    if trained.run_dir is not None and data.own and (found := _evaluation_of(trained, trained.run_dir)):
        return Figures(found["top1"], found["top5"], found["samples"], found["samples"])
    return Figures(after.top1, after.top5, measured.images, len(data.source))


def _evaluation_of(trained: Trained, run_dir: Path) -> dict[str, Any] | None:
    """The run's own evaluation, where it is of these weights: it is of the average where the run keeps one."""
    if trained.recipe != load_run_recipe(run_dir).recipe or trained.averaged != has_average(run_dir):
        return None
    # What was made of the weights, as bf16, tells the same step.
    if trained.weights.absolute().is_relative_to(run_dir.absolute() / EXPORTS):
        return None
    found, info = read_evaluation(run_dir), read_info(trained.weights)
    return found if found and info and found.get("step") == info.step else None


def _dataset(given: Given) -> tuple[str | None, str]:
    """The training data's name, where it is known, and as people call it."""
    recipe = given.trained.recipe
    name = dataset_of(recipe) or (recipe.data.source if recipe.data.source in _KNOWN else None)
    if name is None and given.classes in (imagenet.wnids(), imagenet.names()):
        name = "imagenet-1k"
    return name, _KNOWN.get(name or "", name or "images of its own")


def _front_matter(given: Given, figures: Figures) -> ModelCardData:
    """What huggingface.co reads of a card. It has no licence, which nobody but the owner can give."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe = given.trained.recipe
    name, title = _dataset(given)
    metrics = {"accuracy": ("top-1 accuracy", figures.top1), "top_5_accuracy": ("top-5 accuracy", figures.top5)}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=name or recipe.data.source,
            dataset_name=title,
            dataset_split="validation",
            metric_type=kind,
            metric_name=f"{what} on {figures}",
            metric_value=round(value / 100, 6),
        )
        for kind, (what, value) in metrics.items()
    ]
    return ModelCardData(
        library_name="timm" if is_timms(recipe.model) else "pytorch",
        pipeline_tag="image-classification",
        tags=["image-classification", "resnet", "resnet-launch"],
        datasets=[name] if name else None,
        model_name=_title(given.trained),
        eval_results=results,
    )


def _title(trained: Trained) -> str:
    return trained.run_dir.absolute().name if trained.run_dir else trained.weights.stem


def _body(given: Given, measured: Measured, figures: Figures, curves: str | None) -> str:
    recipe, after = given.trained.recipe, measured.after
    size, teacher = recipe.augment.val_size, " distill.teacher=..." if recipe.distill else ""
    parts = [
        f"# {_title(given.trained)}",
        f"{_network(recipe)}, for {plural(len(given.classes), 'class')}; trained on {_dataset(given)[1]}.",
        f"| | |\n|---|---|\n| top-1 on {figures} | {figures.top1:.2f}% |\n| top-5 | {figures.top5:.2f}% |\n"
        f"| parameters | {after.parameters:,} |\n| GMACs of an image of {size} px | {after.macs / 1e9:.4g} |",
        "## Use",
        _use(recipe.model),
        _images(recipe),
        "The classes, in the order of the outputs, are `classes` in artefact.json.",
        "## Training",
        f"By resnet-launch {VERSION} and its recipe `{recipe.name}`. All settings are in recipe.yaml:",
        f"```sh\npython train.py recipe=recipe.yaml data.train=... data.val=...{teacher}\n```",
        f"![loss, accuracy, learning rate and throughput]({curves})" if curves else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_TIMM = """\
import timm

network = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # or local-dir:FOLDER
config = timm.data.resolve_data_config(model=network)
logits = network(timm.data.create_transform(**config)(image).unsqueeze(0))
"""
_TORCHVISION = f"""\
import sys
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

folder = snapshot_download("OWNER/NAME")
sys.path.insert(0, folder)
from model import build  # a few lines of torchvision

network = build().eval()
network.load_state_dict(load_file(f"{{folder}}/{SAFETENSORS}"))
"""


_OURS = f"""\
import resnet  # pip install resnet-launch
from huggingface_hub import hf_hub_download

network = resnet.load(hf_hub_download("OWNER/NAME", "{SAFETENSORS}"))
"""
_NO_SOURCE = "Neither torchvision nor timm builds this network under its names: there is no model.py here."


def _use(model: Model) -> str:
    if is_timms(model):
        return f"```python\n{_TIMM}```"
    if builder_of(model):
        return f"```python\n{_TORCHVISION}```"
    return f"{_NO_SOURCE}\n\n```python\n{_OURS}```"


def _network(recipe: Recipe) -> str:
    if recipe.model.plugin:
        return recipe.model.plugin.place
    net = effective_model(recipe.model)
    blocks = "" if net["name"] else plural(sum(net["layers"]), f"{net['block'].replace('_', ' ')} block")
    own = effective_model(Model(name=net["name"] or "resnet18"))
    others = {
        "pruned": bool(net["channels"]),
        f"the {net['stem']} stem": net["stem"] != own["stem"],
        f"downsample {net['downsample']}": net["downsample"] != own["downsample"],
        f"{net['shortcut']} shortcuts": net["shortcut"] != own["shortcut"],
        "squeeze-and-excitation": net["attention"] == "se" != own["attention"],
        f"{net['in_channels']} channels": net["in_channels"] != 3,
        f"{net['norm']} norm": net["norm"] != "batch",
        f"{net['activation']}": net["activation"] != "relu",
        "blurpool": net["blurpool"],
    }
    return ", ".join([net["name"] or f"A ResNet of {blocks}", *(what for what, so in others.items() if so)])


def _images(recipe: Recipe) -> str:
    augment = recipe.augment
    size, filter = augment.val_size, f"{augment.interpolation}, antialiased"
    if augment.crop == "random_resized":
        sized = f"the shorter side resized to {augment.val_resize} pixels ({filter}), the central {size}x{size} cut out"
    else:
        sized = f"resized to {size}x{size} ({filter})"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (augment.mean, augment.std))
    colours = COLOURS.get(augment.channels, f"of {augment.channels} bands")
    link = "sigmoid of each" if recipe.loss == "bce" else "softmax"
    return (
        f"Images are {colours}, {sized}, scaled to 0..1, less the mean ({mean}), by the standard deviation ({std}). "
        f"The outputs are logits: their {link} is the probability."
    )
