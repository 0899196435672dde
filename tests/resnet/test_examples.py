"""The notebook and the examples in docs/python.md do what they promise, as a user would run them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import PROGRAM, TINY, train

MANY, FEWER = '"data.train_samples": 1500', '"data.per_class": 16, "data.size": 40'


def run_script(code: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(PROGRAM), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_notebook(tmp_path):
    """Its cells as a script on fewer images, each one's last expression shown as a notebook shows it."""
    notebook = json.loads((PROGRAM / "examples" / "notebook.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells]
    assert sum(MANY in source for source in sources) == 1
    show = """
import ast
def run_cell(source):
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        body, last = [*body, last], None
    exec(compile(ast.Module(body, []), "cell", "exec"), globals())
    if last is not None:
        print(repr(eval(compile(ast.Expression(last.value), "cell", "eval"), globals())))
"""
    calls = [f"run_cell({source.replace(MANY, FEWER)!r})" for source in sources]
    said = run_script("\n".join([show, *calls]), tmp_path)
    assert "did you mean optimizer.lr" in said
    assert "Run('runs/notebook': finished, epoch 2/2, top-1 " in said
    assert "Evaluation(top1=" in said
    assert "Prediction(file=" in said
    assert "10 classes" in said


def test_the_examples_of_the_python_face(tmp_path):
    where = [f"data.train={tmp_path / 'shapes'}", f"run.root={tmp_path / 'runs'}", "run.name=first", "epochs=1"]
    assert train(*TINY, *where) == 0
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("cat.jpg", "photos/dog.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / name)
    text = (PROGRAM / "docs" / "python.md").read_text()
    said = run_script("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)), tmp_path)
    assert "unknown key optimizer.lrr (given here): did you mean optimizer.lr?" in said
    assert "Run('runs/first': finished, epoch 1/1, top-1 " in said
    assert "photos/dog.png" in said
