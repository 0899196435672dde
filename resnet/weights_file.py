"""Weights files: what ours say of themselves, and what is read from anybody's."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from recipes.errors import wording
from recipes.load import digest
from recipes.nets import NET_KEYS, SHAPE_KEYS, keys_to
from recipes.schema.model import Model, keys_given, net_of
from recipes.schema.plugins import PluginFields, with_paths
from recipes.schema.recipe import Recipe
from recipes.text import cut, show, shown
from recipes.versions import lifted
from resnet.net import effective_model
from resnet.process.version import VERSION
from resnet.state_dicts import Found, find_state_dict, renamed
from resnet.torch_file import read_inertly

KEY = "resnet_launch"
"""The one key of ours in a file's metadata: safetensors keeps no order of several."""
FORMAT = 1
_OURS = f'{{"__metadata__":{{"{KEY}":'
"""What the header of a file of ours begins with, as safetensors writes it."""
MOST_HEADER = 1 << 22
"""Bytes that name a safetensors file's tensors, some 100 for each, and its metadata; of ours what it says of itself is
not among them."""
MOST_SAID = 1 << 25
"""Bytes of a header with that, which names the classes: a million of 25 letters, or of 3 of another alphabet."""
_MOST_DIGITS = 30
"""Of a whole number; Python reads some thousands at most."""
_MOST_BESIDE = 1 << 16
"""Characters of what a file says of itself beside the names of its classes; ours have some 1,000."""
_LONGEST_KEY, _LONGEST_REASON, _LONGEST_SETTINGS = 60, 400, 5000
"""Characters of what a file says, in a message."""
_ADDED = ("pixel_max",)
"""What older files do not say."""
_NOT_ARCHITECTURE = {"num_classes", "pretrained", "freeze_backbone", "unfreeze", "sync_batchnorm"}


class WeightsInfo(NamedTuple):
    """What a weights file says of itself."""

    model: Model
    """The architecture alone: nothing of how it was initialised or frozen, and no number of classes."""
    classes: list[str]
    """Names in the order of the network's outputs."""
    mean: tuple[float, ...]
    """Of each channel on a scale of 0 to 1; with `std` what images are normalised by."""
    std: tuple[float, ...]
    crop: str
    """As the recipe's augment.crop; the sizes, in pixels, and the filter likewise."""
    train_size: int
    val_resize: int
    val_size: int
    interpolation: str
    loss: str
    """cross_entropy: the outputs are for a softmax; bce: for a sigmoid each."""
    recipe: str
    digest: str
    step: int
    version: str
    format: int
    pixel_max: int | None = None
    """As the recipe's data.pixel_max."""


PREPARED = ("mean", "std", "crop", "train_size", "val_resize", "val_size", "interpolation")
"""Keys of `augment` that say how images are prepared."""


def metadata_of(recipe: Recipe, classes: Sequence[str], step: int) -> dict[str, str]:
    """What the weights of a step of a recipe's training say of themselves, as safetensors takes it."""
    augment, placed = recipe.augment.model_dump(mode="json"), with_paths(recipe, lambda plugin: plugin.place)
    content = {
        "model": placed.model.model_dump(mode="json", exclude=_NOT_ARCHITECTURE),
        "classes": list(classes),
        **{key: augment[key] for key in PREPARED},
        "loss": recipe.loss,
        "recipe": recipe.name,
        "digest": digest(recipe),
        "step": step,
        "version": VERSION,
        "format": FORMAT,
    }
    if recipe.data.pixel_max is not None:
        content["pixel_max"] = recipe.data.pixel_max
    return {KEY: json.dumps(content, sort_keys=True)}


def read_info(path: Path) -> WeightsInfo | None:
    """What a file says of itself; None: nothing, as it is of another program or of version 0.1.0.

    Raises ValueError where the file is damaged, or says what this version does not know.
    """
    if path.suffix in (".onnx", ".pt2"):
        raise ValueError(
            f"{path} is a program of a network, no file of weights: what it reaches is told in artefact.json"
        )
    if path.suffix != ".safetensors":
        return None
    try:
        _check_header(path)
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the weights {path}: {error}") from error
    if text is None:
        return None
    try:
        return _info(json.loads(text, parse_int=_whole_number))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = _reason(error)
        raise ValueError(f"{path} says of its weights what this version cannot read ({reason})") from error


def _check_header(path: Path) -> None:
    """Raise ValueError where a safetensors file would take much time and memory beside its tensors' elements."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length <= MOST_HEADER:
            return
        # A character a byte, as what ours say is in ASCII.
        header = file.read(length).decode("latin-1") if length <= MOST_SAID else ""
    said = 0
    if header.startswith(f'{_OURS}"'):
        with contextlib.suppress(ValueError):
            said = json.JSONDecoder().raw_decode(header, len(_OURS))[1] - len(_OURS)
    if length - said > MOST_HEADER:
        raise ValueError(f"cannot read the weights {path}: it is damaged, or holds too much beside its tensors")


def _info(content: Mapping[str, Any]) -> WeightsInfo:
    """Checked for the types of all values; keys that a newer version has added are left out."""
    known = {key: content[key] for key in WeightsInfo._fields if key in content or key not in _ADDED}
    # Each value that is wrong becomes a line of the error.
    if not all(isinstance(name, str) for name in known["classes"]):
        raise ValueError("classes: must be a list of text")
    if len(json.dumps({**known, "classes": []})) > _MOST_BESIDE:
        raise ValueError("too long")
    model = {key: value for key, value in lifted({"model": known["model"]})["model"].items() if _matters(key, value)}
    info = TypeAdapter(WeightsInfo).validate_python({**known, "model": model})
    if not len(info.mean) == len(info.std) == info.model.in_channels:
        raise ValueError(f"mean and std: must be one for each of {info.model.in_channels} channels")
    return info


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _matters(key: str, value: Any) -> bool:
    """Whether a key of the architecture is known here, or changes something: a newer version's that is off does not."""
    return key in Model.model_fields or value not in (None, False, 0, "none", [], {})


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False)
        keys = [cut(".".join(map(str, one["loc"])), _LONGEST_KEY) for one in problems]
        told = [cut(f"{key}: {wording(one)}", _LONGEST_REASON) for key, one in zip(keys, problems, strict=True)]
        return "; ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")
    return cut(f"{type(error).__name__}: {error}", _LONGEST_REASON)


def check_fits(info: WeightsInfo, model: Model, where: str) -> None:
    """Raise ValueError, naming both values and the keys to set, where weights are of another network.

    where: the file, for the message.
    """
    if info.model.plugin or model.plugin:
        _check_own(info.model.plugin, model.plugin, where)
        return
    there, here = effective_model(info.model), effective_model(model)
    if wrong := [key for key in there if there[key] != here[key]]:
        settings = " ".join(f"model.{key}={shown(value)}" for key, value in _to_set(model, info.model).items())
        both = f"{_described(there, wrong)}; here: {_described(here, wrong)}"
        # A pruned ResNet-152 takes half of it.
        raise ValueError(f"{where} is of another network: {both}. It needs {cut(settings, _LONGEST_SETTINGS)}")


def _check_own(there: PluginFields | None, here: PluginFields | None, where: str) -> None:
    told = [plugin and f"{plugin.place} {show(plugin.args)}" for plugin in (there, here)]
    if told[0] != told[1]:
        raise ValueError(f"{where} is of {told[0] or 'a ResNet'}, and model.plugin is {told[1] or 'not given'}")


def refuse_own_code(info: WeightsInfo, file: Path) -> None:
    """Raise ValueError where a network is code that its file of weights only names: weights make no code run."""
    if info.model.plugin:
        raise ValueError(
            f"{file} is of a network that its user wrote ({info.model.plugin.place}), and weights alone make no code "
            "run: name the run, which keeps a copy of that code, or give recipe= with model.plugin"
        )


def _described(effective: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The values of keys of the architecture, those of the net as one where it has a name."""
    name = [effective["name"]] if effective["name"] and {*keys} & {*SHAPE_KEYS} else []
    others = [key for key in keys if not (name and key in SHAPE_KEYS) and effective[key] not in (None, {})]
    pruned = ["no model.channels"] if "channels" in keys and not effective["channels"] else []
    values = (show(effective[key]) if key == "channels" else shown(effective[key]) for key in others)
    return ", ".join([*name, *pruned, *(f"{key} {value}" for key, value in zip(others, values, strict=True))])


def _to_set(here: Model, there: Model) -> dict[str, Any]:
    """The keys that the command line has to name."""
    keys = keys_to(net_of(there), keys_given(here))
    before, after = effective_model(here.model_copy(update=keys)), effective_model(there)
    others = {key: value for key, value in after.items() if key not in ("name", *NET_KEYS) and before[key] != value}
    if not there.activation_args and not here.activation_args:
        others.pop("activation_args", None)
    return keys | others


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file of any trainer under torchvision's names, on the CPU; see `find_weights`."""
    return find_weights(path).tensors


def find_weights(path: Path, model: Model | None = None) -> Found:
    """The weights in a file of ours or of another trainer, on the CPU. What a stranger wrote is never run.

    path: a .safetensors file, or one of torch.save with a state dict somewhere in it. model: what they are for, to be
    compared with what the file says. Raises ValueError where there are none, or they are of another network.
    """
    info = read_info(path)
    if info is not None and model is not None:
        check_fits(info, model, str(path))
    try:
        if info is not None and info.model.plugin:
            found = Found(load_file(path), (), False)
        elif path.suffix == ".safetensors":
            found = renamed(load_file(path))
        else:
            found = find_state_dict(read_inertly(path))
    except pickle.UnpicklingError as error:
        reason = f"it is damaged, or no file of torch.save ({error})"
        raise ValueError(f"cannot read the weights {path}: {reason}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read the weights {path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    if found.blurred and model is not None and not model.blurpool:
        raise ValueError(f"{path} holds convolutions that blur first (FFCV's BlurPool): it needs model.blurpool=true")
    return found
