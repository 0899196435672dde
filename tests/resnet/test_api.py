import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import resnet
from resnet.process.signals import SIGNALS
from resnet.rundir import state
from resnet.rundir.status import write_status
from tests.helpers import PROGRAM, TINY, train, unchanged_process


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a run `r` has been trained, on the shapes beside it."""
    folder = tmp_path_factory.mktemp("api")
    words = [*TINY, f"data.train={folder / 'shapes'}", f"run.root={folder}", "run.name=r", "epochs=2", "ema.decay=0.5"]
    assert train(*words) == 0
    return folder


@pytest.fixture
def run(folder) -> resnet.Run:
    return resnet.Run("r", root=folder)


@pytest.fixture
def images(folder) -> Path:
    return folder / "shapes" / "val"


def in_fresh_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=PROGRAM, capture_output=True, text=True, check=True).stdout


def test_importing_costs_nothing_before_weights_are_touched(folder):
    loaded = "{'torch', 'torchvision', 'accelerate', 'wandb', 'yaml', 'pydantic'} & set(sys.modules)"
    assert in_fresh_python(f"import sys, resnet; print({loaded})") == "set()\n"
    looks = "run.status, run.recipe, run.metrics(), run.classes, run.checkpoints, resnet.load_recipe('quickstart')"
    code = f"import sys, resnet; run = resnet.Run({str(folder / 'r')!r}); {looks}; print('torch' in sys.modules)"
    assert in_fresh_python(code) == "False\n"


def test_a_run_whose_trainer_is_gone_is_not_running(run, tmp_path, monkeypatch):
    gone = resnet.Run(shutil.copytree(run.path, tmp_path / "gone"))
    process = subprocess.Popen(["true"])
    process.wait()
    write_status(gone.path, state="running", pid=process.pid, host=socket.gethostname())
    assert (gone.status["state"], gone.status["failure"]) == ("failed", "killed")
    assert "failed" in repr(gone)
    assert resnet.diff(run, gone).results["state"] == ("finished", "failed")
    # It ends well between a look at its word and one at its process.
    monkeypatch.setattr(state, "is_alive", lambda _: bool(write_status(gone.path, state="finished", reason="finished")))
    assert (gone.status["state"], gone.status["reason"]) == ("finished", "finished")


def test_what_is_promised_is_there():
    assert all(getattr(resnet, name) is not None for name in resnet.__all__)
    assert set(resnet.__all__) <= set(dir(resnet))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = resnet.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_recipes_take_python_values(tmp_path):
    changes = {"optimizer.lr": 1e-4, "model": {"name": None, "block": "basic", "layers": (1, 1, 1)}, "ema": None}
    recipe = resnet.load_recipe("quickstart", changes | {"data.train": tmp_path, "run.name": "2024_01"})
    assert (recipe.optimizer.lr, recipe.model.layers, recipe.ema) == (1e-4, [1, 1, 1], None)
    assert (recipe.data.train, recipe.run.name) == (str(tmp_path), "2024_01")
    (tmp_path / "mine.yaml").write_text("base: quickstart\nepochs: 1\n")
    assert resnet.load_recipe(tmp_path / "mine.yaml").epochs == 1
    with pytest.raises(ValueError, match=r"optimizer.lrr.*\n?.*did you mean optimizer.lr") as raised:
        resnet.load_recipe("quickstart", {"optimizer.lrr": 0.1, "epochs": "many"})
    assert "epochs" in str(raised.value)
    with pytest.raises(ValueError, match="did you mean quickstart"):
        resnet.load_recipe("quickstrat")


def test_networks_are_those_that_training_begins_with():
    recipe = resnet.load_recipe("quickstart")
    before = torch.get_rng_state()
    one, other = resnet.build_model(recipe, num_classes=7), resnet.build_model("quickstart", num_classes=7)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert torch.equal(torch.get_rng_state(), before)
    assert one(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(ValueError, match="give num_classes="):
        resnet.build_model(recipe)


def test_a_run_tells_what_it_is(run, folder):
    assert "finished" in repr(run)
    assert run.name == "r"
    assert run.status["state"] == "finished"
    assert run.recipe.epochs == 2
    assert len(run.classes) == 10
    assert run.checkpoints[-1].name == f"step-{run.status['step']:08d}"
    top1 = [row["val/top1"] for row in run.metrics() if "val/top1" in row]
    assert max(top1) == pytest.approx(run.status["best"])
    assert [found.path for found in resnet.runs(folder)] == [run.path]
    assert resnet.Run(run.path).path == run.path
    assert resnet.compare(run, folder / "r") == []
    with pytest.raises(ValueError, match="did you mean r"):
        resnet.Run("rr", root=folder)


def test_weights_are_loaded_by_name_step_or_file(run):
    best = run.load()
    assert not best.training
    latest = run.load("latest").state_dict()
    assert all(map(torch.equal, run.load(run.status["step"]).state_dict().values(), latest.values()))
    assert all(map(torch.equal, run.load(run.path / "final.safetensors").parameters(), best.parameters()))
    with pytest.raises(ValueError, match=r"give best, last, final, a checkpoint.s step .*, or a safetensors file"):
        run.load("first")


def test_evaluating_and_predicting_agree(run, images):
    found = run.evaluate()
    assert (found.samples, found.warnings) == (40, ())
    assert found.top1 == pytest.approx(run.status["best"])
    assert run.evaluate(**{"eval.flip": True}).loss != found.loss
    assert run.evaluate("latest", eval={"flip": True}, **{"data.max_val": 7}).samples == 7
    predictions = run.predict(images, device="cpu")
    right = sum(Path(prediction.file).parent.name == prediction.label for prediction in predictions)
    assert 100 * right / len(predictions) == pytest.approx(found.top1)
    first = predictions[0]
    assert (first.label, first.probability) == first.top[0]
    assert len(first.top) == 5
    assert sorted(first.top, key=lambda pair: -pair[1]) == list(first.top)
    with pytest.raises(ValueError, match=r"did you mean eval[.]flip"):
        run.evaluate(**{"eval.flop": True})


def test_several_paths_are_predicted_in_their_order(run, images, tmp_path):
    files = sorted(images.glob("*/*.jpg"))[:3]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    found = run.predict([files[2], str(files[0]), broken], top=100, device="cpu")
    assert [prediction.file for prediction in found] == [str(files[2]), str(files[0]), str(broken)]
    assert len(found[0].top) == len(run.classes)
    assert sum(value for _, value in found[0].top) == pytest.approx(1, abs=1e-5)
    assert (found[2].label, found[2].problem) == (None, "the file is empty")
    with pytest.raises(ValueError, match="there is no nowhere"):
        run.predict("nowhere")


def test_the_process_stays_as_it_was(run, images, monkeypatch):
    """A caller's child processes, threads, variables, signal handlers and random numbers survive, workers do not."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()

    def heed(*_: object) -> None:
        """A handler of the caller's."""

    with unchanged_process():
        torch.set_num_threads(2)
        for number in SIGNALS:
            signal.signal(number, heed)
        before = state_of_process()
        run.predict(images, batch_size=4, device="cpu")
        run.evaluate(**{"data.num_workers": 2, "eval.batch_size": 4})
        run.evaluate(deterministic=True)
        assert state_of_process() == before
        assert multiprocessing.active_children() == [child]
    child.kill()
    child.join()


def state_of_process() -> tuple[object, ...]:
    torch_state = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
    )
    return dict(os.environ), [signal.getsignal(number) for number in SIGNALS], *torch_state
