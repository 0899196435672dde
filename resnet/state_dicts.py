"""State dicts as other trainers write them: where in a checkpoint they are, their names, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from recipes.schema.model import Model
from recipes.text import listed, near
from resnet.inert_pickle import Inert
from resnet.named_weights import named_net

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Keys of checkpoints that hold an average of the weights: timm's, torchvision's, and what others call it."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module", "state")
"""Keys that hold the weights themselves, or a mapping that does."""
HEAD = ("fc.weight", "fc.bias")
"""The classifier."""
_DEEPEST = 6
"""Mappings within each other, the outermost with them, that are searched for weights; Composer's have four."""
_IN_BETWEEN = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names that torch.compile, FSDP and activation checkpointing put in, at any depth."""
_LONGEST_NAME = 250
_ANCHOR = "layer1.0.conv1.weight"
"""A tensor that every ResNet has: what stands before it is the name of the network within a larger one."""
_TIMMS_ANCHOR = "stages.0.blocks.0.norm1.weight"
"""The like in timm's pre-activation ResNets (resnetv2_*)."""
_TIMMS_NAMES = (
    (r"stages\.(\d)\.blocks\.(\d+)\.(conv|downsample|norm)", lambda f: f"layer{int(f[1]) + 1}.{f[2]}.{f[3]}"),
    (r"(layer\d\.\d+\.)norm(\d)\.", r"\1bn\2."),
    (r"stem\.conv\.", "conv1."),
    (r"stem\.(conv|norm)([123])\.", lambda f: f"conv1.{3 * int(f[2]) - 3 + (f[1] == 'norm')}."),
    (r"head\.fc\.", "fc."),
)
"""Patterns of their names, and what stands for each here; a projection's place is told by the stem."""
_OTHER_KINDS = {
    r"layer1\.0\.(attn|se\.conv)\b": "a ResNet with attention of another kind (ECA ...)",
    r"(patch_embed|pos_embed|cls_token)": "a transformer",
    r"(resnet\.)?(embedder|encoder\.stages)\.": "a network of the transformers package, which names it in its own way",
    r"(stem|stages|blocks|features)\.": "another network than a ResNet",
}
"""What a tensor's name tells of a network that cannot be built here."""


class Found(NamedTuple):
    """Weights under torchvision's names, and what the user should know of how they were found."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    blurred: bool = False
    """Whether the file holds filters of convolutions that blur (FFCV's BlurPool)."""


def find_state_dict(content: Any) -> Found:
    """The weights in a checkpoint. Raises ValueError where there are none, or of several networks."""
    path, state = _innermost(content)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    notes = [f"its averaged weights ({'.'.join(path)}) are taken"] if {*path} & {*AVERAGES} else []
    found = renamed(tensors)
    return found._replace(notes=(*notes, *found.notes))


def _innermost(content: Any) -> tuple[list[str], Mapping[Any, Any]]:
    """The mapping of names to tensors, and the keys that lead to it."""
    path: list[str] = []
    while isinstance(content, Mapping) and len(path) < _DEEPEST:
        inner = _inner(content)
        if inner is None or content[inner] is content:
            break
        path.append(inner)
        content = content[inner]
    if isinstance(content, Mapping) and _within(content, _has_tensors):
        return path, content
    whole = content if isinstance(content, Inert) else None
    if isinstance(content, Mapping):
        whole = next((value for key in WRAPPERS if isinstance(value := content.get(key), Inert)), None)
    if whole is not None:
        raise ValueError(f"holds a whole object ({whole.kind}), no state dict: save its state_dict() there")
    raise ValueError("holds no state dict (names and tensors)")


def _inner(content: Mapping[Any, Any]) -> str | None:
    """The key below which the weights are; None: they are in this mapping, or there are none.

    An average has to be of a network: what is called so can also be a table of its decays.
    """
    if average := next((key for key in AVERAGES if _within(content.get(key), _is_network)), None):
        return average
    others = WRAPPERS if _is_network(content) else (*WRAPPERS, *AVERAGES)
    return next((key for key in others if _within(content.get(key), _has_tensors)), None)


def _within(value: Any, has: Callable[[Mapping[Any, Any]], bool]) -> bool:
    """Whether a mapping, or one within it as checkpoints nest them, has something; each is asked once."""
    seen: set[int] = set()
    level = [value]
    for _ in range(_DEEPEST - 1):
        mappings = {id(one): one for one in level if isinstance(one, Mapping) and id(one) not in seen}
        if any(has(mapping) for mapping in mappings.values()):
            return True
        seen.update(mappings)
        level = [mapping.get(key) for mapping in mappings.values() for key in (*AVERAGES, *WRAPPERS)]
    return False


def _has_tensors(mapping: Mapping[Any, Any]) -> bool:
    return any(isinstance(item, Tensor) and item.dim() for item in mapping.values())


def _is_network(mapping: Mapping[Any, Any]) -> bool:
    """Whether it holds the weights of a ResNet, under whatever prefix."""
    return any(
        isinstance(item, Tensor) and f".{_IN_BETWEEN.sub('', str(name))}".endswith((f".{_ANCHOR}", f".{_TIMMS_ANCHOR}"))
        for name, item in mapping.items()
    )


def renamed(tensors: Mapping[str, Tensor]) -> Found:
    """The tensors under the names they have in the network alone.

    Left out, and noted, is what is beside the network where it is a part of a larger one. Raises ValueError where
    there are several networks.
    """
    if odd := next((name for name in tensors if len(name) > _LONGEST_NAME or not name.isprintable()), None):
        raise ValueError(f"has a tensor of a strange name: {odd[:_LONGEST_NAME]!r}")
    plain = _from_timms_names({_IN_BETWEEN.sub("", name): tensor for name, tensor in tensors.items()})
    places = sorted(name.removesuffix(_ANCHOR) for name in plain if f".{name}".endswith(f".{_ANCHOR}"))
    if len(places) > 1 and "" not in places:
        raise ValueError(
            f"holds several networks ({listed([place + '*' for place in places])}): save one of them alone"
        )
    place = "" if not places or "" in places else places[0]
    inside = {name.removeprefix(place): tensor for name, tensor in plain.items() if name.startswith(place)}
    beside = [name for name in plain if not name.startswith(place)]
    notes = [f"{listed(beside, 3)} beside {place}* left out"] if beside and beside != ["n_averaged"] else []
    unblurred = {name: tensor for name, tensor in inside.items() if not re.fullmatch(r"layer.*\.blur_filter", name)}
    blurred = len(unblurred) < len(inside)
    if blurred:
        unblurred = {re.sub(r"(\.conv\d|\.downsample\.0)\.conv\.", r"\1.", n): t for n, t in unblurred.items()}
    return Found(unblurred, tuple(notes), blurred)


def _from_timms_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of pre-activation ResNets under our names, others as they are, both below any prefix."""
    if not any(f".{name}".endswith(f".{_TIMMS_ANCHOR}") for name in tensors):
        return tensors
    # BiT's and plain ones have the same names and shapes, and compute otherwise.
    if not any(name.endswith("norm.running_mean") for name in tensors):
        raise ValueError(
            "is of a pre-activation ResNet with GroupNorm: whether its convolutions are standardised (BiT) or plain "
            "cannot be told from its tensors, and it is not read"
        )
    pooled = any(re.search(r"(?<![^.])stem\.conv1\.", name) for name in tensors)
    patterns = (*_TIMMS_NAMES, (r"downsample\.conv\.", f"downsample.{pooled:d}."))
    found = {}
    for name, tensor in tensors.items():
        for pattern, ours in patterns:
            name = re.sub(rf"(?<![^.]){pattern}", ours, name)
        # The classifier is a convolution there.
        found[name] = tensor.flatten(1) if re.search(r"(?<![^.])fc\.weight$", name) else tensor
    return found


def mismatches(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], counts: bool = True, here: Model | None = None
) -> str:
    """How a state dict does not fit a network's, with the nearest name there; empty where it does.

    counts: whether BatchNorm's counts of batches have to be there. They are not before torch 0.4.1, and it trains and
    predicts the same without. here: the keys of the network, for what to set.
    """
    missing = [name for name in own if name not in given and (counts or not name.endswith("num_batches_tracked"))]
    unknown = [name for name in given if name not in own]
    misshaped = [
        f"{name} is {list(given[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    of_other_numbers = [
        f"{name} is {str(given[name].dtype).removeprefix('torch.')}"
        for name, tensor in own.items()
        if name in given and tensor.is_floating_point() and not given[name].is_floating_point()
    ]
    named = named_net(given)
    if named and named != named_net(own) and (keys := named.keys_to(here)):
        return f"it is of another network, which {keys} builds"
    if kind := next(_kinds(unknown), None):
        return f"it is of {kind}, which cannot be built here"
    lists = (
        *(("without", _with_nearest(missing, unknown)), ("with unknown", unknown)),
        *(("in another shape:", misshaped), ("not in floating point:", of_other_numbers)),
    )
    return "; ".join(f"{what} {listed(names, 3)}" for what, names in lists if names)


def _kinds(names: list[str]) -> Iterator[str]:
    return (kind for pattern, kind in _OTHER_KINDS.items() if any(re.match(pattern, name) for name in names))


def _with_nearest(missing: list[str], unknown: list[str]) -> list[str]:
    close = near(missing[0], unknown, 1, cutoff=0.8) if missing else []
    return [f"{missing[0]} (nearest there: {close[0]})", *missing[1:]] if close else missing
