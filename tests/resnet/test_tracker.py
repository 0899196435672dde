import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recipes.load import load
from resnet.rundir.metrics_log import MetricsLog
from resnet.tracking import wandb_client as tracker
from resnet.tracking.wandb_client import NullTracker, WandbTracker, open_wandb


def rows(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_metrics_log_writes_each_row_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.log({"step": 1, "train/loss": float("nan"), "lr": 1e-4, "grad_norm": float("inf")})
    assert rows(path) == [{"step": 1, "train/loss": None, "lr": 1e-4, "grad_norm": None}]
    length = log.sync()
    assert length == path.stat().st_size
    log.log({"step": 2})
    log.truncate(length)
    log.log({"step": 20})
    assert [row["step"] for row in rows(path)] == [1, 20]
    log.truncate(10**6)
    assert [row["step"] for row in rows(path)] == [1, 20]
    log.truncate(0)
    log.close()
    assert path.read_bytes() == b""


def test_metrics_log_drops_the_torn_line_of_a_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "x": "' + "y" * 100_000)
    log = MetricsLog(path)
    log.log({"step": 2})
    assert rows(path) == [{"step": 1}, {"step": 2}]


@pytest.fixture
def wandb_home(tmp_path, monkeypatch):
    """No key, no settings and no server but those a test sets."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    run = tmp_path / "my run"
    run.mkdir()
    return run


def open_quickstart(run, *overrides):
    return open_wandb(load(["recipe=quickstart", *overrides]).recipe, run, {"git": {"sha": "abc"}})


def test_disabled(wandb_home, monkeypatch):
    assert type(open_quickstart(wandb_home, "wandb.mode=disabled")) is NullTracker
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert type(open_quickstart(wandb_home)) is NullTracker
    assert os.listdir(wandb_home) == []


def test_offline_parts_of_a_run_share_an_id_and_a_sync_command(wandb_home, capfd):
    run = NullTracker()
    for attempt in range(2):
        run = open_quickstart(wandb_home)
        assert run.note == "W&B: offline (no API key: wandb login)"
        run.log({"step": 10 * attempt, "train/loss": float("nan")})
        run.summary({"best/top1": 91.5})
        run.finish(exit_code=0)
        run.log({"step": 99})
        time.sleep(1 - attempt)  # folders are named by the second
    assert capfd.readouterr() == ("", "")
    command = run.sync_command()
    assert command is not None
    done = subprocess.run(f"{shlex.quote(sys.executable)} -m {command} --dry-run", shell=True, capture_output=True)
    assert b"Would sync 2 run(s)" in done.stderr, done.stderr
    identity = (wandb_home / "wandb_id.txt").read_text().strip()
    written = b"".join(path.read_bytes() for path in wandb_home.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    for text in (b"train/loss", b"best/top1", b"git_sha", b"abc", b"label_smoothing"):
        assert text in written, text


class Server(BaseHTTPRequestHandler):
    """Answers the probe and then nothing any more."""

    def do_GET(self):
        self.send_response(404)
        self.end_headers()

    def do_POST(self):
        time.sleep(60)

    def log_message(self, format, *args):
        pass


def test_server_that_accepts_and_hangs_is_not_waited_for(wandb_home, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen(50)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{hanging.getsockname()[1]}")
        begin = time.monotonic()
        run = open_quickstart(wandb_home)
        assert time.monotonic() - begin < 10
    assert run.note.startswith("W&B: offline (http://127.0.0.1:")
    assert "does not answer" in run.note
    run.finish()
    assert run.sync_command() is not None
    assert capfd.readouterr() == ("", "")


def test_server_that_answers_the_probe_and_hangs(wandb_home, monkeypatch, capfd):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(tracker, "AUTO_TIMEOUT", 2.0)
    begin = time.monotonic()
    run = open_quickstart(wandb_home)
    assert time.monotonic() - begin < 15
    assert run.note.startswith("W&B: offline (")
    run.log({"step": 1})
    run.finish(timeout=5)
    assert len(list(wandb_home.glob("wandb/offline-run-*"))) == 1
    assert capfd.readouterr() == ("", "")
    server.shutdown()


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_process_that_dies_or_hangs_is_told_once_and_left(wandb_home, monkeypatch, capfd, kind):
    monkeypatch.setattr(tracker, "QUEUE_ROWS", 100)
    run = open_quickstart(wandb_home)
    assert isinstance(run, WandbTracker)
    os.kill(run._process.pid, kind)
    begin = time.monotonic()
    for step in range(5000):
        run.log({"step": step, "text": "x" * 100})
    run.finish(timeout=1)
    assert time.monotonic() - begin < 5
    time.sleep(0.2)
    told = capfd.readouterr().err
    assert told.startswith("W&B: ")
    assert told.count("continuing without it") == 1


def test_process_that_never_answers_is_told(wandb_home, monkeypatch, capfd):
    silent = wandb_home / "silent.py"
    silent.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(tracker, "ONLINE_TIMEOUT", -13.5)  # 15 s are given beside it
    monkeypatch.setattr(tracker, "_PROGRAM", silent)
    run = open_quickstart(wandb_home, "wandb.mode=online")
    assert not run.started
    time.sleep(1.6)
    assert run.started
    assert run.note == ""
    assert capfd.readouterr().err.startswith("W&B: no start within 1.5 s; continuing without it")
    run.finish(timeout=1)


def test_trouble_at_the_start_is_no_trouble_for_the_run(wandb_home, capfd):
    (wandb_home / "wandb").write_text("a file where a folder should be")
    run = open_quickstart(wandb_home)
    run.log({"step": 1})
    run.finish()
    told = capfd.readouterr().err
    assert told.startswith("W&B: [Errno 20] Not a directory")
    assert told.count("\n") == 1
    assert "Traceback" in (wandb_home / "logs" / "wandb.log").read_text()


def test_offline_data_survives_a_trainer_that_is_killed(wandb_home):
    code = (
        "import os, signal, sys, time; from pathlib import Path; from recipes.load import load\n"
        "from resnet.tracking.wandb_client import open_wandb\n"
        "run = open_wandb(load(['recipe=quickstart', 'wandb.mode=offline']).recipe, Path(sys.argv[1]), {})\n"
        "run.note; run.log({'step': 1, 'train/loss': 0.5}); time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(wandb_home)]).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if any(b"train/loss" in path.read_bytes() for path in wandb_home.glob("wandb/offline-run-*/*.wandb")):
            return
        time.sleep(0.1)
    pytest.fail("the row is not on the disk")
