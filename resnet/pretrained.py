"""Weights to start from: files of any trainer, runs and torchvision's, and whether they fit the network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torchvision
from torch import Tensor

from recipes.nets import TORCHVISIONS
from recipes.schema.augment import Augment
from recipes.schema.model import HUB, Model, is_tag, net_of
from recipes.schema.recipe import Recipe
from recipes.text import listed, plural, shown
from resnet.hub_weights import commit_note, fetched
from resnet.named_weights import STEMS
from resnet.net import ResNet
from resnet.run_weights import ENDINGS, FINAL, weights_of
from resnet.rundir.find import ROOT, find_run, is_sweep
from resnet.state_dicts import HEAD, mismatches
from resnet.trained_network import unfit
from resnet.weights_file import PREPARED, WeightsInfo, find_weights, read_info, read_weights

_RGB = 3


def shaped_as_weights(recipe: Recipe, checkpoint: Path | None = None) -> tuple[Recipe, str]:
    """The recipe with the channels of the weights that training begins with where it names none, and a note of that.

    checkpoint: weights that are taken in place of the pretrained ones.
    Raises ValueError for pretrained weights that are not there, say what cannot be read or have other channels.
    """
    model, source = recipe.model, recipe.model.pretrained
    if model.channels or not (checkpoint or source):
        return recipe, ""
    try:
        file = checkpoint or find_file(source, recipe.run.root)  # pyright: ignore[reportArgumentType]
        channels = {} if file is None else _channels_of(file, model)
    except ValueError as error:
        raise error if checkpoint else ValueError(f"model.pretrained={source}: {error}") from error
    if not channels:
        return recipe, ""
    note = "" if checkpoint else f"{source} is pruned: the network takes its channels (model.channels)"
    return recipe.model_copy(update={"model": model.model_copy(update={"channels": channels})}), note


def _channels_of(file: Path, model: Model) -> dict[str, int]:
    """The channels of weights of the same net that were pruned; of another they are refused when they are loaded."""
    info = read_info(file)
    if info is None or not info.model.channels or net_of(info.model) != net_of(model):
        return {}
    # A network is built of them, which could be of any size.
    if wrong := unfit(read_weights(file), info.model, None):
        raise ValueError(f"{file} does not match the network that it names: {wrong}")
    return info.model.channels


def load_pretrained(
    model: ResNet,
    source: str,
    root: str | Path = ROOT,
    classes: Sequence[str] = (),
    augment: Augment | None = None,
) -> str:
    """Load weights into the network and say, a sentence a line, what was loaded.

    source: a file of weights, a run as RUN, RUN@best, RUN@last or RUN@step-N (a directory, or a name under `root`), a
    tag of torchvision's weights for the named net, or hf_hub:OWNER/REPO. classes: names in the order of the network's
    outputs; a classifier for others is left new, one for these in another order is put in order. augment: what the
    file's is compared with.
    Raises ValueError, with the network unchanged, where anything else does not fit or cannot be read or fetched.
    """
    try:
        info, given, notes = _read(model, source, root)
    except ValueError as error:
        raise ValueError(f"model.pretrained={source}: {error}") from error
    own = model.state_dict()
    given, adapted = _for_channels(given, own, source)
    head, said = _head(given, own, info, classes)
    given = {name: tensor for name, tensor in given.items() if name not in HEAD} | head
    expected = {name: tensor for name, tensor in own.items() if name in head or name not in HEAD}
    if problem := mismatches(given, expected, counts=False, here=model.config):
        raise ValueError(f"model.pretrained={source} does not fit the model: {problem}")
    model.load_state_dict(given, strict=False)
    if info is not None and augment is not None:
        notes = [*notes, *prepared_otherwise(info, augment)]
    notes = [*notes, adapted] if adapted else notes
    loaded = f"loaded {len(given)} tensors from {source}"
    return "\n".join([f"{loaded}; {said}" if said else loaded, *(f"{source}: {note}" for note in notes)])


def _read(model: ResNet, source: str, root: str | Path) -> tuple[WeightsInfo | None, dict[str, Tensor], Sequence[str]]:
    """What the weights say of themselves, the weights, and notes on how they were found."""
    path = find_file(source, root)
    if path is None:
        return None, _fetch_weights(model.config.name, source), ()
    info, config = read_info(path), model.config
    if info is not None and info.model.in_channels == _RGB:
        # What the stem lacks is made of it.
        config = config.model_copy(update={"in_channels": _RGB})
    found = find_weights(path, config)
    return info, found.tensors, [*(commit_note(source, path) if source.startswith(HUB) else ()), *found.notes]


def _for_channels(given: dict[str, Tensor], own: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], str]:
    """The weights with a stem for as many channels as the network's, and what to say of it.

    Of weights for RGB it is made as timm makes it (adapt_input_conv): the sum over the three for one channel, else
    theirs in turn, scaled so that the sum over all keeps its size. Raises ValueError where they are for other channels.
    """
    name = next(name for name in STEMS if name in own)
    here = own[name].shape[1]
    if name not in given or given[name].dim() != own[name].dim() or (there := given[name].shape[1]) == here:
        return given, ""
    if there != _RGB:
        raise ValueError(
            f"model.pretrained={source} is for images of {plural(there, 'channel')}, and these have {here}: only those "
            f"for {_RGB} can be adapted (model.in_channels={there} takes them as they are)"
        )
    weights = given[name].float()
    if here == 1:
        adapted, how = weights.sum(1, keepdim=True), "summed over them"
    else:
        adapted, how = (
            weights.repeat(1, -(-here // _RGB), 1, 1)[:, :here] * (_RGB / here),
            f"repeated, by {_RGB}/{here}",
        )
    note = f"the stem's weights for {_RGB} channels are adapted to {here} ({how})"
    return {**given, name: adapted.to(given[name].dtype)}, note


def find_file(source: str, root: str | Path = ROOT) -> Path | None:
    """The file that `model.pretrained` or `distill.teacher` means; None for a tag of torchvision's."""
    if source.startswith(HUB):
        return fetched(source)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and not (path / "recipe.yaml").is_file() and (path / FINAL).is_file():
        return path / FINAL
    if is_tag(source):
        return None
    if path.suffix in ENDINGS:
        raise ValueError("there is no such file")
    name, at, which = source.rpartition("@")
    # Only where the run itself is to be: what this machine remembers of other folders a node may not know.
    where = Path(root).expanduser().absolute()
    where = where.parent if is_sweep(where) else where
    try:
        return weights_of(find_run(source, where), "best")
    except ValueError:
        if not at:
            raise
    return weights_of(find_run(name, where), which)


def word_of_weights(key: str, source: str, root: str | Path) -> str:
    """`key=FILE` for a run that lives elsewhere than in `root`, where a run's name stands for other weights or none."""
    try:
        file = find_file(source, root)
    except ValueError as error:
        raise ValueError(f"{key}={source}: {error}") from error
    return f"{key}={json.dumps(str((file or Path(source)).absolute()))}"


def _head(
    given: dict[str, Tensor], own: dict[str, Tensor], info: WeightsInfo | None, classes: Sequence[str]
) -> tuple[dict[str, Tensor], str]:
    """What of the classifier is taken, and what to say of it."""
    head = {name: given[name] for name in HEAD if name in given}
    if not head:
        return {}, "the classifier is new (the file has none)"
    there, here = info.classes if info else [], list(classes)
    if head.keys() != {*HEAD} or head["fc.weight"].shape[1:] != own["fc.weight"].shape[1:]:
        return head, ""
    if len(head["fc.weight"]) != len(own["fc.weight"]):
        counts = f"{plural(len(head['fc.weight']), 'class')} there, {len(own['fc.weight'])} here"
        return {}, f"the classifier is new ({counts})"
    if not there or not here:
        return head, ""
    if there == here:
        return head, "the classifier is kept (the same classes)"
    if order := order_of(there, here):
        turned = {name: tensor[order] for name, tensor in head.items()}
        return turned, "the classifier is kept, its classes put in this order"
    others = [name for name in there if name not in here]
    return {}, f"the classifier is new (as many classes there, of other names: {listed(others, 3)})"


def order_of(there: Sequence[str], here: Sequence[str]) -> list[int]:
    """For each class here its place there; empty where they are not the same classes, each once."""
    if sorted(there) != sorted(here) or len({*here}) != len(here):
        return []
    places = {name: place for place, name in enumerate(there)}
    return [places[name] for name in here]


def prepared_otherwise(info: WeightsInfo, augment: Augment, keys: Sequence[str] = PREPARED) -> list[str]:
    """A note where the images that the weights were trained on were prepared in another way, as far as `keys` say."""
    differing = [key for key in keys if getattr(info, key) != getattr(augment, key)]
    if not differing:
        return []
    there, here = (
        " ".join(f"augment.{key}={shown(getattr(where, key))}" for key in differing) for where in (info, augment)
    )
    return [f"trained with {there}, here it is {here}"]


def _fetch_weights(architecture: str | None, tag: str) -> dict[str, Tensor]:
    if architecture is None:
        raise ValueError("no such file, and torchvision has weights for named nets only")
    if architecture not in TORCHVISIONS:
        raise ValueError(f"no such file, and torchvision has no {architecture}")
    known = torchvision.models.get_model_weights(architecture)
    if tag not in known.__members__:
        raise ValueError(f"neither a file nor one of {architecture}'s weights: {', '.join(known.__members__)}")
    weights = known[tag]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"it could not be fetched ({error}): download {weights.url} and give the file's path"
        ) from error
