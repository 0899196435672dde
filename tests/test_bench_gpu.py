"""The bench of a GPU, as far as it needs none: its stages, what they count, and that one does not stop the others."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from recipes.schema.model import Model
from resnet.net import build_model
from tests.bench.gpu import __main__ as bench
from tests.bench.gpu.host import _covered, _of, kernels
from tests.bench.gpu.learns import reached
from tests.bench.gpu.outcomes import VARIABLE
from tests.bench.gpu.right import tell
from tests.bench.gpu.saves import plain, resume, stall
from tests.bench.gpu.speed import OURS, Case, measure
from tests.bench.gpu.stage import Options, Report, describe, parser
from tests.bench.gpu.traffic import traffic
from tests.bench.gpu.turns import take_turns
from tests.bench.loops import Loop, Setting, make_loop
from tests.helpers import finish, start

TINY = Setting({"block": "basic", "layers": [1, 1, 1]}, batch_size=4, size=32, log_every=2)


@pytest.fixture
def options(tmp_path) -> Options:
    return Options("cpu", True, tmp_path, None, None, 60.0)


def rows(report: Report, options: Options, stage: str) -> list[dict]:
    return [json.loads(line) for line in (options.out / f"{stage}.jsonl").read_text().splitlines()]


def test_traffic_is_what_is_known_of_resnet50():
    # 475 and 335 MB an image at 224 px are counted from an H200's own kernels, weights and optimizer among them.
    found = traffic(build_model(Model(name="resnet50"), 1000), 224)
    assert found.eager == pytest.approx(475e6, rel=0.01)
    assert found.fused == pytest.approx(335e6, rel=0.01)
    half = traffic(build_model(Model(name="resnet50"), 1000), 112)
    assert half.eager == pytest.approx(found.eager / 4, rel=0.03)


def test_traffic_counts_each_layer():
    net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 1))
    images, middle, end = 3 * 64, 2 * 64, 4 * 64
    shared = 2 * (images + middle) + 3 * (middle + end) + 8 * middle
    assert traffic(net, 8) == (2 * (shared + 5 * middle), 2 * shared)


def test_time_is_covered_once():
    assert _covered([("a", 0, 4), ("b", 2, 3), ("c", 3, 6), ("d", 8, 9)]) == 7


def test_seconds_to_an_accuracy_begin_with_the_first_step(tmp_path):
    log = [
        {"step": 10, "samples": 1000, "time": 110.0, "train/loss": 2.0, "images_per_second": 200.0},
        {"step": 10, "time": 111.0, "val/top1": 93.9},
        {"step": 20, "samples": 2000, "time": 115.0, "train/loss": 1.0, "images_per_second": 250.0},
        {"step": 20, "time": 116.0, "val/top1": 94.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    found = reached(tmp_path, 94.0)
    assert found == {"top1": 94.0, "seconds_to_94": 11.0, "training_seconds": 11.0, "images_per_second": 250.0}
    assert reached(tmp_path, 95.0)["seconds_to_95"] is None


FOUR_TESTS = """
import os, signal, pytest

@pytest.fixture
def torn():
    raise OSError("no fixture")

def test_good(): pass
@pytest.mark.parametrize("number", [2])
def test_bad(number): assert 1 == number
@pytest.mark.skip
def test_late(): pass
def test_torn(torn): pass
def test_killed(): os.kill(os.getpid(), signal.SIGKILL)
"""


def test_outcomes_are_kept_of_tests_that_are_killed(options, monkeypatch):
    (options.out / "test_four.py").write_text(FOUR_TESTS)
    outcomes, report = options.out / "four.outcomes", Report("right", options)
    monkeypatch.setenv(VARIABLE, str(outcomes))
    plugins = ("-p", "no:cacheprovider", "-p", "tests.bench.gpu.outcomes")
    done = finish(start("-m", "pytest", *plugins, options.out / "test_four.py"))
    tell("four", outcomes, report, done.returncode)
    found = rows(report, options, "right")
    assert found[0].pop("seconds") >= 0
    assert found == [
        {"what": "four", "passed": 1, "failing": 2, "skipped": 1},
        {"what": "four: test_bad[2]", "failed": "assert 1 == 2"},
        {"what": "four: test_torn", "failed": "OSError: no fixture"},
        {"what": "four", "failed": "pytest left with -9: see four.txt"},
    ]
    late = Report("late", Options("cpu", True, options.out, None, None, -1.0))
    tell("four", outcomes, late, done.returncode)
    assert rows(late, options, "late")[-1] == {"what": "four", "failed": "not done in time"}


def test_speed_of_loops_is_told_beside_the_bound(options):
    report = Report("speed", options)
    measure(Case("tiny", TINY, ("bare", *OURS)), 1e10, options, report)
    found = {row["what"]: row for row in rows(report, options, "speed")}
    assert [*found] == ["tiny: bare", "tiny: bare_features", "tiny: ours"]
    for row in found.values():
        assert row["images_per_second"] == pytest.approx(4 / (row["ms"] / 1000))
        bound = 1e10 / traffic(TINY.build(), 32).eager
        assert row["share_of_bound"] == pytest.approx(row["images_per_second"] / bound)
    assert found["tiny: bare"]["speed_to_bare"] == 1


def test_a_loop_that_fails_leaves_the_others(options, monkeypatch):
    report = Report("speed", options)
    measure(Case("tiny", TINY, ("ours", "nobody's")), 1e10, options, report)
    failed, ours = rows(report, options, "speed")
    assert failed["what"] == "tiny: nobody's"
    assert failed["failed"].startswith("KeyError")
    assert ours["images_per_second"] > 0


def test_whole_rounds_are_kept_when_time_is_over():
    loops = {name: Loop(nn.Identity(), lambda: None) for name in ("one", "other")}
    turns = take_turns(loops, "cpu", 2, 5, over=lambda: True)
    assert [len(turn.device_seconds) for turn in turns.values()] == [1, 1]
    over = iter([False, False, True])
    turns = take_turns(loops, "cpu", 2, 5, over=lambda: next(over))
    assert [len(turn.device_seconds) for turn in turns.values()] == [3, 3]


def test_named_ranges_are_no_kernels():
    class Profiled:
        def events(self):
            kinds = [
                (DeviceType.CUDA, False, "kernel"),
                (DeviceType.CUDA, True, "Optimizer.step"),
                (DeviceType.CPU, False, "op"),
            ]
            return [SimpleNamespace(device_type=k, is_user_annotation=a, name=n, cpu_parent=None) for k, a, n in kinds]

    assert [event.name for event in _of(Profiled(), DeviceType.CUDA)] == ["kernel"]


def test_speeds_stand_in_a_table(capsys):
    row = {"what": "resnet50: ours", "images_per_second": 2500.5, "speed_to_bare": 0.991, "ms": 1}
    bench.print_speeds([row, {"what": "copy", "terabytes_per_second": 3.0}])
    head, line = capsys.readouterr().out.strip("\n").splitlines()
    assert line.split() == ["resnet50:", "ours", "2500.500", "0.991"]
    assert head.split()[:3] == ["images/s", "/", "bare"]


def test_kernels_are_counted(options):
    loop = make_loop("ours", TINY)
    loop.block(2)
    found = kernels(loop, options)
    loop.close()
    assert found["kernels"] > 50
    assert 0 <= found["idle_share"] < 1
    assert len(found["largest"]) == 10


def test_saves_and_resumes_are_timed(options):
    loop = make_loop("ours", TINY)
    loop.block(2)
    saved = stall(loop, options, rounds=2)
    loop.block(1)
    step = loop.trainer.state.step
    assert saved["on_disk_ms"] > 0
    assert plain(loop, options, 1)["megabytes"] > 0.1
    again = resume(loop, options)
    assert again["restore_ms"] > 0
    assert loop.trainer.state.step < step
    loop.close()


def test_no_more_is_begun_when_time_is_over(options):
    report = Report("late", Options("cpu", True, options.out, None, None, 0.0))
    time.sleep(0.01)
    report.attempt("something", lambda: pytest.fail("begun"))
    assert rows(report, options, "late") == [{"what": "something", "left_out": "no time was left"}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert bench.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().out.startswith("torch finds no GPU here")


def test_a_stage_that_fails_or_hangs_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    stages = {name: bench.Stage(name, seconds, 0) for name, seconds in (("broken", 60), ("hanging", 2), ("here", 60))}
    programs = {"broken": "raise SystemExit(3)", "hanging": "import time; time.sleep(60)"}
    command = bench._command

    def instead(name, given, seconds):
        return [sys.executable, "-c", programs[name]] if name in programs else command(name, given, seconds)

    monkeypatch.setattr(bench, "STAGES", stages)
    monkeypatch.setattr(bench, "_limit", lambda stage, given, deadline: stage.seconds)
    monkeypatch.setattr(bench, "_GRACE", 1)
    monkeypatch.setattr(bench, "_command", instead)
    assert bench.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 1
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    problems = {name: stage["problem"] for name, stage in stages.items()}
    assert problems == {"broken": "left with 3", "hanging": "not done within 2 s", "here": ""}
    assert [row["what"] for row in stages["here"]["rows"]] == ["machine", "copy", "multiply bf16"]
    told = capsys.readouterr().out
    assert f"PROBLEM: left with 3, see {tmp_path / 'broken.txt'}" in told
    assert "terabytes_per_second" in told


def test_stages_fit_the_time_that_is_promised():
    # Nothing begins that could end later than promised.
    given = SimpleNamespace(quick=False, device="cuda")
    assert bench._limit(bench.Stage("long", 100, 0), given, time.monotonic() + 30) == pytest.approx(20, abs=1)
    assert bench._limit(bench.Stage("short", 10, 0), given, time.monotonic() + 30) == 10
    assert sum(stage.quick for stage in bench.STAGES.values()) <= bench._QUICK_TOTAL == 3 * 60
    assert bench._TOTAL == 8 * 60
    assert all(stage.quick >= 2 * bench._GRACE for stage in bench.STAGES.values() if stage.quick)
    assert parser("x").parse_args([]).device == "cuda"
    assert describe({"what": "a", "b": 0.12345, "c": [1], "d": None}).split() == ["a", "b", "0.1235", "d", "None"]
