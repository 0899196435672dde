"""Shows how far a rank has come: run by Python at its start where this folder is on PYTHONPATH (tests.bench.start).

Each stage's end (resnet.process.stages) is a stat of a path that does not exist, which a trace of system calls shows;
after the first step the seconds are in a file of the folder START_MARKS, where it is set.
"""

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import sys


def show(stages):
    reached = stages.reached

    def reached_and_shown(stage):
        reached(stage)
        with contextlib.suppress(OSError):
            os.stat(f"/start-stage/{stage}")
        if stage == "step" and (folder := os.environ.get("START_MARKS")):
            with open(f"{folder}/rank-{os.environ['RANK']}.json", "w") as file:
                json.dump(stages.seconds(), file)

    stages.reached = reached_and_shown


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "resnet.process.stages":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def execute_and_show(module):
            execute(module)
            show(module)

        spec.loader.exec_module = execute_and_show
        return spec


sys.meta_path.insert(0, Finder())
