"""The process that holds the W&B run of a training: reads lines of JSON, calls wandb, answers in lines of JSON.

The first line is the request of `tracker.open_wandb`; then come {"do": "log" | "summary" | "finish", ...}. The
trainer's death shows as the end of the input and ends the run as failed, with all rows that were sent.
"""

from __future__ import annotations

import json
import netrc
import os
import ssl
import sys
import threading
import traceback
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROBE_TIMEOUT = 3.0
"""Seconds within which the server must answer."""
FINISH_TIMEOUT = 30.0
"""Seconds for uploads at the end."""


def serve() -> None:
    """Run the process; see the module."""
    # wandb may print, and may ask for a key: neither must reach the pipes to the trainer.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    try:
        run, started = _start(json.loads(requests.readline()))
        answer(started)
        exit_code = 1
        for line in requests:
            message = json.loads(line)
            if message["do"] == "finish":
                exit_code = message["exit_code"]
                break
            if run is not None:
                (run.log if message["do"] == "log" else run.summary.update)(message["values"])
        _leave_after(FINISH_TIMEOUT + 30)
        if run is not None:
            run.finish(exit_code=exit_code)
        answer({"finished": True})
    except BrokenPipeError:
        pass
    except Exception as error:
        traceback.print_exc()
        answer({"failed": _one_line(error)})
    # All is written; wandb's hooks at exit may wait long for a network that is not there.
    sys.stderr.flush()
    os._exit(0)


def _leave_after(seconds: float) -> None:
    """End the process then, whatever wandb waits for."""
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _start(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Begin the run; returns it (None: disabled) and what to tell the trainer."""
    import wandb

    sys.argv = request["argv"]
    settings = wandb.setup().settings
    mode, why = _choose_mode(request["mode"], settings)
    if mode == "disabled":
        return None, {"note": ""}
    if mode == "online":
        try:
            run = _init(request, mode)
            return run, {"note": f"W&B: {run.url}", "url": run.url}
        except Exception as error:
            traceback.print_exc()
            why = _one_line(error)
            wandb.teardown()
    run = _init(request, "offline")
    return run, {"note": f"W&B: offline ({why})"}


def _init(request: dict[str, Any], mode: str) -> Any:
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        sweep_id=request["sweep"],
        init_timeout=request["init_timeout"],
        finish_timeout=FINISH_TIMEOUT,
        x_stats_pid=request["pid"],
    )
    same = {key: request[key] for key in ("id", "name", "dir", "config", "project", "entity", "group", "tags", "notes")}
    run = wandb.init(**same, mode=mode, resume="allow", settings=settings)  # pyright: ignore[reportArgumentType]
    # The axis is our own step: wandb drops rows logged with a lower step=, as a resumed run's are.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _choose_mode(wanted: str, settings: Any) -> tuple[str, str]:
    """online, offline or disabled, and why."""
    if wanted != "auto":
        return wanted, "wandb.mode=offline"
    if settings.mode == "disabled":
        return "disabled", ""
    if settings.mode in ("offline", "dryrun"):
        return "offline", "W&B's own setting"
    if not _has_key(settings):
        return "offline", "no API key: wandb login"
    if not _answers(settings.base_url):
        return "offline", f"{settings.base_url} does not answer"
    return "online", ""


def _has_key(settings: Any) -> bool:
    if settings.api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    given = os.environ.get("NETRC")
    for path in [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            known = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError):
            continue
        return any(known.authenticators(host) for host in (urlsplit(settings.base_url).netloc, "api.wandb.ai"))
    return False


def _answers(url: str) -> bool:
    """Whether anything but a failing proxy answers there in time."""
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_TIMEOUT).close()
            found.append(True)
        except urllib.error.HTTPError as error:
            found.append(error.code < 500 and error.code != 407)
        except urllib.error.URLError as error:
            found.append(isinstance(error.reason, ssl.SSLError))
        except OSError:
            found.append(False)

    # In a thread, since looking up a name has no time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT)
    return bool(found and found[0])


if __name__ == "__main__":
    # This folder, whose files are no modules of their own.
    del sys.path[0]
    serve()
