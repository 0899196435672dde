"""`launch completion`: how a shell completes commands, options, keys, values and names of runs."""

from __future__ import annotations

import argparse

LINES = {
    "bash": 'eval "$(register-python-argcomplete launch resnet)"',
    "zsh": 'autoload -U bashcompinit && bashcompinit && eval "$(register-python-argcomplete launch resnet)"',
    "fish": "register-python-argcomplete --shell fish launch | source\n"
    "register-python-argcomplete --shell fish resnet | source",
}
FILES = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/config.fish"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=LINES, nargs="?", default="bash", help="the shell (bash)")


def run(arguments: argparse.Namespace) -> None:
    print(f"# in {FILES[arguments.shell]}:\n{LINES[arguments.shell]}")
