"""YAML with the plain scalars of version 1.2: 1e-4 is a number, off and no are words, 2:30 and dates are text."""

from __future__ import annotations

import re

import yaml

_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (_FLOAT, "-+.0123456789"),
}

UNREADABLE = (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError)
"""What reading may raise; ValueError and AttributeError come of a tag that its text does not fit, as in `!!int x`."""


class Loader(yaml.SafeLoader):
    """yaml.SafeLoader, reading plain scalars by YAML 1.2 (and 1_000 as a thousand)."""

    yaml_implicit_resolvers = {}


class Dumper(yaml.SafeDumper):
    """yaml.SafeDumper, quoting text that YAML 1.1 or 1.2 would read as something else."""


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    digits = loader.construct_scalar(node).replace("_", "")
    return int(digits, 16 if digits.startswith("0x") else 10)


Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
