"""Whether subcommands of `resnet` would take their words, and what they name: for a program that is to run them later.

    python -m resnet.tools.check_words JSON

JSON: a list of command lines, each a list of words. Prints a list of objects: `problem` (null: none) and `name`, the
value of the option --name where the subcommand has one.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from recipes.text import suggestion
from resnet.process.commands import parse
from resnet.tools.cli import COMMANDS


def main(text: str) -> None:
    print(json.dumps([_check(*words) for words in json.loads(text)]))


def _check(command: str, *words: str) -> dict[str, str | None]:
    if command not in COMMANDS:
        return {"problem": f"this version has no such command: {suggestion(command, COMMANDS)}", "name": None}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            arguments = parse("resnet", command, COMMANDS[command].what, COMMANDS[command].module(), list(words))
    except ValueError as error:
        return {"problem": str(error), "name": None}
    except SystemExit:
        # argparse's own: the usage, then the message.
        return {"problem": said.getvalue().rpartition("error: ")[2].strip() or "--help does nothing", "name": None}
    return {"problem": None, "name": getattr(arguments, "name", None)}


if __name__ == "__main__":
    main(sys.argv[1])
