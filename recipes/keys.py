"""The keys of a recipe as a table: walked for errors, for `launch keys`, and for values whose spelling is kept."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipes.schema.recipe import Recipe

ALIASES = {
    "learning_rate": "optimizer.lr",
    "learn_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "optimizer.learning_rate": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "weight_decay": "optimizer.weight_decay",
}
"""Names usual elsewhere that can mean one key only."""
SIMILAR = ALIASES | {
    "bs": "batch_size",
    "wd": "optimizer.weight_decay",
    "optim": "optimizer.name",
    "opt": "optimizer.name",
    "scheduler": "schedule.name",
    "lr_scheduler": "schedule.name",
    "warmup": "schedule.warmup_epochs",
    "arch": "model.name",
    "architecture": "model.name",
    "dataset": "data.source",
    "workers": "data.num_workers",
    "image_size": "augment.train_size",
    "img_size": "augment.train_size",
    "amp": "precision",
    "fp16": "precision",
    "clip_grad": "grad_clip_norm",
    "output_dir": "run.root",
    "plugins.model": "model.plugin",
    "plugins.data": "data.plugin",
}
"""Names usual elsewhere, and the key that whoever uses them may look for."""
SIMILAR_VALUES = {
    "gpu": "cuda",
    "fp32": "no",
    "float32": "no",
    "hf": "huggingface",
    "accuracy": "top1",
    "acc": "top1",
    "polynomial": "poly",
}
"""Words usual elsewhere, and what they are called here."""

_TEXT, _NUMBERS = "tag:yaml.org,2002:str", ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


@cache
def variants() -> dict[str, tuple[str, dict[str, type[BaseModel]]]]:
    """For each group with variants: the key that names one, and the variants by name."""
    found = {}
    for group, field in Recipe.model_fields.items():
        inner = (getattr(extra, "discriminator", None) for extra in field.metadata)
        tag = next((name for name in (field.discriminator, *inner) if isinstance(name, str)), None)
        if tag:
            classes = get_args(field.annotation)
            found[group] = (tag, {n: cls for cls in classes for n in get_args(cls.model_fields[tag].annotation)})
    return found


def groups_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The groups of keys that a field may hold, its variants among them."""
    return [kind for kind in kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def kinds(annotation: Any) -> list[Any]:
    """What a value may be: the members of a union, at any depth, without what is said of them."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for inner in get_args(annotation) for kind in kinds(inner)]
    return [annotation]


def fields_of(key: str) -> list[FieldInfo]:
    """The fields that a dotted key may mean: several where variants share its name; none where there is no such key."""
    fields, models = [], [Recipe]
    for part in key.split("."):
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [group for field in fields for group in groups_of(field)]
    return fields


def names_of(key: str) -> list[str]:
    """The words that a key may be, as sgd and adam for optimizer.name; empty where it is free."""
    found = [kind for field in fields_of(key) for kind in kinds(field.annotation) if get_origin(kind) is Literal]
    return list(dict.fromkeys(word for kind in found for word in get_args(kind)))


def takes_text(key: str) -> bool:
    """Whether a key is of text, as run.name, or of a list of texts, as wandb.tags."""
    found = [kind for field in fields_of(key) for kind in kinds(field.annotation)]
    return any(kind is str or (get_origin(kind) is list and str in get_args(kind)) for kind in found)


def keep_spelling(node: yaml.Node | None, annotations: list[Any]) -> None:
    """Let what looks like a number stay as it is written (1.10, 2024_01) where only text is taken.

    node: of YAML, changed in place. annotations: what its value may be.
    """
    found = [kind for annotation in annotations for kind in kinds(annotation)]
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _NUMBERS and str in found and not {int, float} & {*found}:
            node.tag = _TEXT
    elif isinstance(node, yaml.SequenceNode):
        inner = [get_args(kind)[0] for kind in found if get_origin(kind) in (list, tuple)]
        for item in node.value:
            keep_spelling(item, inner)
    elif isinstance(node, yaml.MappingNode):
        models = [kind for kind in found if isinstance(kind, type) and issubclass(kind, BaseModel)]
        values = [get_args(kind)[1] for kind in found if get_origin(kind) is dict]
        for key, value in node.value:
            fields = [model.model_fields.get(key.value) for model in models if isinstance(key.value, str)]
            keep_spelling(value, [*values, *(field.annotation for field in fields if field)])


def all_keys(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every dotted key a recipe with these values may have, with its meaning."""
    yield from _model_keys(Recipe, "", values)


def _model_keys(model: type[BaseModel], prefix: str, values: Any) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.description or ""
        inner = values.get(name) if isinstance(values, dict) else None
        groups = groups_of(field)
        if not prefix and name in variants():
            tag, by_name = variants()[name]
            named = variant_named(by_name, inner.get(tag)) if isinstance(inner, dict) else None
            groups = [named] if named else groups
        for group in groups:
            yield from _model_keys(group, f"{prefix}{name}.", inner)


def variant_named(by_name: dict[str, type[BaseModel]], name: Any) -> type[BaseModel] | None:
    return by_name.get(name) if isinstance(name, str) else None


def parents(key: str) -> Iterator[str]:
    """A dotted key itself, then the groups it lies in, the nearest first."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end])
