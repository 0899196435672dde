"""A sweep's page at W&B: what registers it, with a server that answers as theirs does, and what its runs say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import yaml

from launch.commands.sweep import _wandb_sweep as page_of
from launch.sweep import wandb_register as wandb_page
from launch.sweep.directory import SweepDir
from launch.sweep.points import grid
from launch.sweep.sweep_json import sweep_json
from launch.sweep.text import lines
from launch.sweep.trials import trials
from launch.sweep.wandb_read import from_file
from launch.sweep.wandb_register import register
from launch.sweep.wandb_write import to_wandb
from launch.sweep.words import from_words
from recipes.schema.training import Wandb
from resnet.rundir.sweep.results import results, sweep_so_far
from tests.helpers import PROGRAM
from tests.resnet.test_tracker import open_quickstart, wandb_home

__all__ = ["wandb_home"]

BAYES = """
method: bayes
name: study
metric: {name: val/loss, goal: minimize}
run_cap: 5
parameters:
  recipe: {value: quickstart}
  optimizer.lr: {distribution: log_uniform_values, min: 0.0001, max: 1.0}
  optimizer.momentum: {distribution: q_uniform, min: 0.5, max: 0.95, q: 0.05}
  optimizer.weight_decay: {distribution: log_normal, mu: -8.5, sigma: 1.5}
  label_smoothing: {distribution: beta, a: 1.5, b: 8.0}
  epochs: {distribution: int_uniform, min: 2, max: 9}
  batch_size: {values: [16, 48], probabilities: [0.25, 0.75]}
  model.layers: {values: [[1, 1, 1], [2, 2, 2]]}
"""


class Server(BaseHTTPRequestHandler):
    """Knows a user, and makes every sweep `abcd1234`."""

    asked: ClassVar[list[dict]] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = {}
        if self.path == "/graphql":
            self.asked.append(json.loads(body))
            query = self.asked[-1]["query"]
            project = {"id": "1", "name": "resnet", "entity": {"id": "2", "name": "me"}}
            if "upsertSweep" in query:
                answer = {"upsertSweep": {"sweep": {"name": "abcd1234", "project": project}}}
                answer["upsertSweep"]["configValidationWarnings"] = []
            elif "upsertBucket" in query:
                bucket = {"id": "3", "name": self.asked[-1]["variables"]["name"], "project": project}
                answer = {"upsertBucket": {"bucket": bucket | {"sweepName": "abcd1234"}, "inserted": True}}
            elif "viewer" in query:
                user = {"id": "2", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
                answer = {"viewer": user}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"data": answer}).encode())

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(wandb_home, monkeypatch):
    Server.asked.clear()
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{running.server_port}")
    yield running
    running.shutdown()


def test_a_sweep_is_registered(server):
    sweep = from_words(["recipe=quickstart", "optimizer.lr=0.1,0.2", "wandb.tags=[a]"])
    made = register(sweep, Wandb(project="my project", entity="team"))
    assert made == {"id": "abcd1234", "url": f"http://127.0.0.1:{server.server_port}/me/resnet/sweeps/abcd1234"}
    [sent] = [asked["variables"] for asked in Server.asked if "upsertSweep" in asked["query"]]
    assert (sent["projectName"], sent["entityName"]) == ("my project", "team")
    config = yaml.safe_load(sent["config"])
    assert config["parameters"] == {"recipe": {"value": "quickstart"}, "optimizer.lr": {"values": [0.1, 0.2]}}


def test_without_a_key_nothing_is_registered(wandb_home):
    sweep = from_words(["recipe=quickstart", "seed=0,1"])
    with pytest.raises(ValueError, match=r"--wandb-sweep: W&B created no sweep: No API key configured"):
        register(sweep, Wandb())


def test_the_words_of_a_sweep_come_back_from_its_file(tmp_path):
    (tmp_path / "first.yaml").write_text(BAYES)
    sweep = from_file(tmp_path / "first.yaml")
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(to_wandb(sweep), sort_keys=False))
    again = from_file(tmp_path / "second.yaml")
    both = [{**sweep_json(one), "origins": None} for one in (sweep, again)]
    assert both[0] == both[1]


def test_a_sweep_that_cannot_be_registered_leaves_nothing(wandb_home):
    work = wandb_home.parent / "work"
    work.mkdir()
    command = [sys.executable, "-m", "launch", "sweep", "recipe=quickstart", "seed=0,1", "--wandb-sweep"]
    environment = os.environ | {"PYTHONPATH": str(PROGRAM)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert (done.returncode, "No API key configured" in done.stderr) == (2, True), done.stderr
    assert [path for path in work.rglob("*") if path.is_file()] == []


def test_the_page_is_made_once_and_its_trials_are_runs_of_it(tmp_path, monkeypatch):
    made = {"id": "abcd1234", "url": "https://wandb.ai/me/resnet/sweeps/abcd1234"}
    registered = []
    monkeypatch.setattr(wandb_page, "register", lambda *arguments: registered.append(arguments) or made)
    sweep = from_words(["recipe=quickstart", "optimizer.lr=0.1,0.2"])
    listed, _ = trials(sweep, grid(sweep))
    content = sweep_json(sweep) | {"metric": "top1", "goal": "maximize", "seed": 0}
    with SweepDir(tmp_path / "study") as directory:
        with pytest.raises(ValueError, match="belongs to one project"):
            page_of(directory, sweep, [Wandb(project="a"), Wandb(project="b")])
        for _ in range(2):
            page = page_of(directory, sweep, [trial.recipe.wandb for trial in listed])
            directory.update(content | {"wandb_sweep": page}, listed, None)
        # What it is comes from the first command, and stays.
        directory.update(content, listed, None)
        assert directory.recipe_of(directory.trials[0]).wandb.sweep == "abcd1234"
    assert len(registered) == 1
    assert made["url"] in "\n".join(lines(results(sweep_so_far(tmp_path / "study"), [])))
    with SweepDir(tmp_path / "other") as directory:
        directory.update(content, listed, None)
        with pytest.raises(ValueError, match="was begun without it"):
            page_of(directory, sweep, [Wandb()])


def test_an_online_run_keeps_its_id_in_a_sweep(server, wandb_home):
    """wandb drops the id of a run in a sweep that it reads from the environment: a resumed run would be another one."""
    run = open_quickstart(wandb_home, "wandb.mode=online", "wandb.sweep=abcd1234")
    run.finish(timeout=5)
    sent = [asked["variables"] for asked in Server.asked if "upsertBucket" in asked["query"]]
    identity = (wandb_home / "wandb_id.txt").read_text().strip()
    assert sent[0]["sweep"] == "abcd1234"
    assert {variables["name"] for variables in sent} == {identity}
