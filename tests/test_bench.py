"""The benchmarks run, and compare loops that do the same work. No test here asserts a time."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from recipes.load import load_values
from resnet.data.sources.shapes import draw
from resnet.net import build_model
from tests.bench import cifar_resnet20, plain_resnet20, scaling
from tests.bench import loop as bench
from tests.bench.busy_cluster import Side
from tests.bench.counting import READ_BY_HOST, ops_per_step
from tests.bench.input import __main__ as input_bench
from tests.bench.loops import LOOPS, Setting, TinyNet, installed, make_loop
from tests.helpers import cores, furthest, unchanged_process
from tests.slurm_helpers import Cluster

SETTING = Setting(TinyNet, batch_size=4, size=8, log_every=2, total_steps=16, lr=0.1, ema_decay=0.9)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with unchanged_process(), cores(1):
        torch.set_num_threads(1)
        yield


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", LOOPS)
def test_each_loop_trains_and_marks_the_ends_of_a_block(name: str, precision: str) -> None:
    if name not in installed([name])[0]:
        pytest.skip(f"{name} is not installed")
    loop, marks = make_loop(name, Setting(TinyNet, batch_size=4, size=8, precision=precision)), []
    before = {key: value.clone() for key, value in loop.model.state_dict().items()}
    loop()
    loop.block(2, lambda: marks.append(furthest(before, loop.model.state_dict())))
    loop.close()
    assert 0 < marks[0] < marks[1]


def test_what_ours_is_compared_with_does_the_same_work() -> None:
    peer, ours = (make_loop(name, SETTING) for name in ("bare_features", "ours"))
    start = {name: value.clone() for name, value in ours.model.state_dict().items()}
    for loop in (peer, ours):
        loop.block(8)
    ours.close()
    assert furthest(start, ours.model.state_dict()) > 0.05
    assert furthest(peer.model.state_dict(), ours.model.state_dict()) < 1e-5
    assert peer.average is not None
    assert ours.average is not None
    assert furthest(*(dict(loop.average.named_parameters()) for loop in (peer, ours))) < 1e-5
    assert furthest(dict(ours.average.named_parameters()), dict(ours.model.named_parameters())) > 0.01


def test_operations_are_counted_backward_passes_included() -> None:
    loop = make_loop("bare_features", SETTING)
    loop()
    counts = ops_per_step(loop, 2)
    assert counts["aten::convolution"] == counts["aten::convolution_backward"] == 2 * 5
    assert counts[READ_BY_HOST] == 2


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys) -> None:
    out = tmp_path / "loop.json"
    assert bench.main(["--quick", "--rounds", "1", "--only", "bare", "bare_again", "bare_features", "ours",
                       "--out", str(out)]) == 0  # fmt: skip
    report = json.loads(out.read_text())
    rows = report["nets"]["tiny"]["rows"]
    assert list(rows) == ["bare", "bare_again", "bare_features", "ours"]
    assert all(row["ms"] > 0 and row["ops"] > 100 for row in rows.values())
    assert rows["bare"]["to_bare"] == 1.0
    assert report["machine"]["versions"]["torch"] == torch.__version__
    assert "control: bare_again / bare" in capsys.readouterr().out


def test_a_profile_names_every_part(capsys) -> None:
    assert bench.main(["--quick", "--profile"]) == 0
    parts = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines() if line[-2:-1] == ".")
    assert float(parts["train_step"]) > float(parts["  backward"]) > 0
    assert float(parts["hooks.after_step"]) > 0


def test_ranks_take_turns_beside_plain_ddp(tmp_path) -> None:
    out = tmp_path / "scaling.json"
    assert scaling.main(["--quick", "--rounds", "1", "--steps", "2", "--ranks", "1", "2", "--out", str(out)]) == 0
    one, two = json.loads(out.read_text())["nets"]["tiny"]
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert list(one["rows"]) == list(two["rows"]) == ["ddp", "ddp_again", "ddp_features", "ours"]
    assert all(row["images_per_second"] > 0 for turn in (one, two) for row in turn["rows"].values())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_input_is_measured_beside_others(tmp_path, capsys) -> None:
    draw(tmp_path / "shapes", per_class=1, size=100)
    out = tmp_path / "input.json"
    words = ["--quick", "--only", "plain", "trivial", "loaders", "--out", str(out)]
    assert input_bench.main(["--images", str(tmp_path / "shapes" / "train"), *words]) == 0
    tables = json.loads(out.read_text())["tables"]
    assert {title.partition(",")[0] for title in tables} == {"plain", "trivial", "loaders"}
    rows = [row for table in tables.values() for row in table.values() if "left_out" not in row]
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in rows)
    # The same crops of the same pixels: another box or a lost flip is tens of levels away.
    assert tables["plain, as they are"]["ours"]["error"] < 0.2
    assert "as fast as with 1 worker" in capsys.readouterr().out


def in_our_order(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter of the plain ResNet-20 as ours has it, whose shortcuts have their zeros behind, not on both sides."""
    order = {16: [*range(16)]}
    for width in (32, 64):
        own = [width // 4 + place for place in order[width // 2]]
        order[width] = own + [place for place in range(width) if place not in own]
    if "first_norm" in name or tensor.dim() == 0:
        return tensor
    if "second" in name:
        return tensor[order[len(tensor)]]
    return tensor[:, order[tensor.shape[1]]] if "first" in name or tensor.shape == (10, 64) else tensor


def test_the_plain_resnet20_computes_what_ours_does() -> None:
    """Written apart from each other: with the same weights they give the same logits, gradients and statistics."""
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    plain, own = plain_resnet20.resnet20(), build_model(load_values("cifar10_resnet20", {}).recipe.model, 10)
    given = [in_our_order(name, tensor) for name, tensor in plain.state_dict().items()]
    own.load_state_dict(dict(zip(own.state_dict(), given, strict=True)))
    logits = [net(images) for net in (plain, own)]
    assert torch.allclose(*logits, atol=1e-4)
    for answer in logits:
        torch.nn.functional.cross_entropy(answer, labels).backward()
    for ours, (name, theirs) in zip(own.parameters(), plain.named_parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, in_our_order(name, theirs.grad), atol=1e-4)
    assert torch.allclose(plain.eval()(images), own.eval()(images), atol=1e-4)


def test_curves_are_compared_over_seeds() -> None:
    def curve(*last: float) -> dict[str, list[dict[str, float]]]:
        return {str(seed): [{"epoch": 1, "loss": value, "top1": value}] for seed, value in enumerate(last)}

    # Deviations 1 and 1 of 3 seeds: 2.776 * sqrt(2 / 3) is 2.267.
    near = cifar_resnet20.compared({"ours": curve(1, 2, 3), "plain": curve(3, 4, 5)}, "loss")
    assert near["bound"] == pytest.approx(2.267, abs=1e-3)
    assert (near["difference"], near["within_noise"]) == (-2, True)
    assert not cifar_resnet20.compared({"ours": curve(1, 2, 3), "plain": curve(4, 5, 6)}, "top1")["within_noise"]


def test_a_run_on_the_busy_cluster_is_over_when_its_end_is_noted(tmp_path) -> None:
    """What is told of it is that of its last attempt, too."""
    side = Side("run", Cluster(tmp_path, tmp_path), [])
    run = side.cluster.run_dir("run")
    (run / "slurm").mkdir(parents=True)
    start = {"attempt": 1, "start": 10.0, "step": 0, "nodes": ["n1"]}
    (run / "slurm" / "attempts.jsonl").write_text(json.dumps(start) + "\n")
    (run / "status.json").write_text('{"state": "finished"}')
    assert not side.is_over
    with open(run / "slurm" / "attempts.jsonl", "a") as attempts:
        attempts.write(json.dumps({"attempt": 1, "end": 20.0, "step": 5}) + "\n")
    assert side.is_over
