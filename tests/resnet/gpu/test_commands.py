"""Commands on a GPU: what reads a run there, and what starts one there."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from launch.runs.here import visible_gpus
from resnet.rundir.provenance import read_provenance
from resnet.tools.cli import main
from tests.helpers import column, evaluation, finish, furthest, newest, start, status, weights
from tests.processes import free_port
from tests.resnet.gpu.support import CUDA, ON_CUDA, TINY, run

on_cuda = pytest.mark.parametrize("where", [ON_CUDA])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Path]:
    """A finished run for each device that is here."""
    folder = tmp_path_factory.mktemp("finished")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {device: run(folder, device, f"device={device}", "epochs=3") for device in devices}


# What reads a run


@pytest.mark.parametrize(
    ("trained", "read"),
    [
        ("cpu", "cpu"),
        pytest.param("cuda", "cpu", marks=CUDA),
        pytest.param("cpu", "cuda", marks=CUDA),
        pytest.param("cuda", "cuda", marks=CUDA),
    ],
)
def test_weights_evaluate_alike_wherever_they_were_trained(finished, capsys, trained, read):
    found = finished[trained]
    main(["eval", str(found), f"device={read}", "--json"])
    [again], before = json.loads(capsys.readouterr().out), evaluation(found)
    assert again["samples"] == before["samples"] == 40
    assert sum(sum(row) for row in before["confusion"]) == 40
    # On a GPU in bf16, on a CPU in float32.
    assert again["loss"] == pytest.approx(before["loss"], abs=1e-6 if trained == read == "cpu" else 0.05)
    assert abs(again["top1"] - before["top1"]) <= 5, "two of the 40 images"


def test_an_evaluation_in_float32_is_that_of_a_cpu(finished, capsys, exact_float32, device):
    losses = []
    for where in ("cpu", device):
        main(["eval", str(finished["cpu"]), f"device={where}", "precision=no", "eval.batch_size=7", "--json"])
        losses.append(json.loads(capsys.readouterr().out)[0]["loss"])
    assert losses[0] == pytest.approx(evaluation(finished["cpu"])["loss"], rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-5)


def test_predictions_are_nearly_those_of_a_cpu(finished, tmp_path, device):
    images = tmp_path / "images"
    images.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        pixels = torch.randint(256, (30, 40, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(images / f"{number}.png")
    rows = []
    for where in ("cpu", device):
        main(["predict", str(finished["cpu"]), str(images), "--csv", str(tmp_path / "out.csv"), "--device", where])
        with (tmp_path / "out.csv").open(newline="") as file:
            rows.append(list(csv.reader(file))[1:])
    assert [row[0] for row in rows[1]] == [f"{number}.png" for number in range(5)]
    probabilities = [[float(row[2]) for row in part] for part in rows]
    assert probabilities[1] == pytest.approx(probabilities[0], abs=0.08)
    assert len(set(probabilities[0])) == 5


@on_cuda
@pytest.mark.timeout(240)
def test_verify_resume_finds_nothing_after_a_kill_and_a_stop(tmp_path, capsys, where):
    # Images that take a while to make, so that the run is not over before it is killed.
    slow = ["data={source: synthetic, samples: 640, classes: 10, size: 224, num_workers: 1}", "batch_size=64"]
    words = [*TINY, f"device={where}", "deterministic=true", "ema.decay=0.9", *slow]
    main(["verify-resume", *words, "--steps", "8", "--keep", str(tmp_path / "kept")])
    told = capsys.readouterr().out
    assert "SIGKILL after step 2" in told
    assert "SIGTERM after step 4" in told
    assert "equal to the last bit" in told
    attempts = read_provenance(tmp_path / "kept" / "interrupted")["attempts"]
    assert len(attempts) == 3
    assert [attempt["first_step"] > 0 for attempt in attempts] == [False, True, True]


# What starts one


@on_cuda
def test_launch_local_trains_on_the_gpus_that_are_here(tmp_path, where):
    words = [*TINY, f"run.root={tmp_path}", "run.name=r", f"device={where}", "max_steps=4", "batch_size=64"]
    done = finish(start("-m", "launch", "local", *words, on_cores=4))
    assert done.returncode == 0, done.stderr
    provenance = read_provenance(tmp_path / "r")
    assert provenance["devices"] == [torch.cuda.get_device_name(0)] * max(1, visible_gpus())
    assert status(tmp_path / "r")["state"] == "finished"


@on_cuda
@pytest.mark.timeout(240)
def test_trials_of_a_sweep_take_turns_on_a_gpu(tmp_path, where):
    words = [*TINY, f"run.root={tmp_path}", f"device={where}", "max_steps=4", "seed=0,1", "--name", "study"]
    done = finish(start("-m", "launch", "sweep", *words, on_cores=4))
    assert done.returncode == 0, done.stderr
    trials = sorted(file.parent for file in (tmp_path / "study").glob("*/status.json"))
    spans = sorted(
        (attempt["start"], attempt["end"]) for trial in trials for attempt in read_provenance(trial)["attempts"]
    )
    assert [status(trial)["state"] for trial in trials] == ["finished"] * 2
    assert spans[0][1] <= spans[1][0], "the second waited"


@on_cuda
@pytest.mark.timeout(240)
def test_two_ranks_on_one_gpu_train_as_one_does(tmp_path, exact_float32, where):
    words = [*TINY, f"run.root={tmp_path}", f"device={where}", "precision=no", "max_batch_per_device=4", "max_steps=5"]
    words += ["model.activation=silu", "model.maxpool=false", "optimizer.lr=0.01", "ema.decay=0.5", "eval.batch_size=7"]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    ranks = [
        start("-m", "tests.resnet.gpu.ranks", *words, "recheck=2", "run.name=two", RANK=rank, LOCAL_RANK=rank, **world)
        for rank in range(2)
    ]
    one = run(tmp_path, "one", *words[len(TINY) + 1 :])
    for done in [finish(rank) for rank in ranks]:
        assert done.returncode == 0, done.stderr
        assert "gradients are not compared" not in done.stderr
    two = tmp_path / "two"
    assert all(ratio >= 1 for ratio in column(two, "slowest_ratio"))
    assert [read_provenance(found)["world_size"] for found in (one, two)] == [1, 2]
    for key in ("train/loss", "grad_norm", "val/loss", "val/samples"):
        assert column(two, key) == pytest.approx(column(one, key), rel=1e-4), key
    for name in ("final.safetensors", f"{newest(one)}/model.safetensors"):
        assert furthest(weights(one, name), weights(two, name)) < 1e-4
