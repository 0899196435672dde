"""The commit protocol under crashes and full disks, damaged and hostile checkpoints, and when saves fail."""

import contextlib
import errno
import json
import os
import pickle
import shutil
import types

import pytest
import safetensors.torch
import torch
from torch import nn

from recipes.plan import make_plan
from recipes.schema.recipe import Recipe
from resnet.checkpoint import commit as checkpoint
from resnet.checkpoint import saver, snapshot
from resnet.checkpoint.commit import CheckpointError, clean, commit, name_of, newest_valid, prune
from resnet.checkpoint.saver import Saver, check_space
from resnet.checkpoint.snapshot import EMA, MODEL, REST, Snapshot, read_rest, restore
from resnet.data.sources.synthetic import Synthetic
from resnet.ema import Ema
from resnet.metrics import SUMMED, Window
from resnet.optim import Lamb, Lars
from resnet.process.signals import Signals
from resnet.run_hooks import RunHooks
from resnet.rundir import files as rundir
from resnet.rundir.metrics_log import MetricsLog
from resnet.rundir.status import read_status, write_status
from resnet.state import TrainState
from resnet.tracking.progress import Progress
from resnet.tracking.wandb_client import NullTracker
from tests.helpers import furthest

CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
"""Of `os`: all that change what is on the disk."""


class Crash(BaseException):
    """The process is dead: nothing that it would do after this is done."""


class Disk:
    """Stands before the system calls: counts them, and from the `at`-th on, or at that one, does something else."""

    def __init__(self, monkeypatch, before):
        self.count, self.log, self._before = 0, [], before
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))
        monkeypatch.setattr(rundir, "open", self._wrap("open", open), raising=False)

    def _wrap(self, name, real):
        def call(*arguments, **options):
            self.count += 1
            self.log.append((name, arguments))
            self._before(self.count, name, arguments)
            return real(*arguments, **options)

        return call


def contents(step):
    return {"model": bytes([step]) * 3000, "rest": b"state of %d" % step}


def assert_holds(path, step):
    """A checkpoint is that of the step, complete."""
    assert path is not None
    assert path.name == name_of(step)
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"} == contents(step)


def save(folder, step, keep=1, best_step=None):
    commit(folder, step, contents(step), {"epoch": step / 10})
    prune(folder, step, keep, best_step)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def never(message):
    pytest.fail(f"passed over: {message}")


def crash_points(monkeypatch, folder, act, prepare, most=200):
    """Run `act` on a fresh folder with a crash before its 1st, 2nd, ... call; yields after each crash."""
    for point in range(1, most):
        shutil.rmtree(folder, ignore_errors=True)
        prepare()

        def die(count, name, arguments, point=point):
            if count >= point:
                if name == "write" and count == point:
                    # Half of it had reached the disk.
                    os.pwrite(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], 0)
                raise Crash

        with monkeypatch.context() as patched:
            Disk(patched, die)
            try:
                act()
            except Crash:
                pass
            else:
                return
        yield point
    pytest.fail("it never came to an end")


def test_a_crash_before_any_system_call_loses_nothing(tmp_path, monkeypatch):
    folder, crashes, seen = tmp_path / "checkpoints", 0, set()
    for _ in crash_points(monkeypatch, folder, lambda: save(folder, 2), lambda: save(folder, 1)):
        crashes += 1
        found = newest_valid(folder, never)
        assert found is not None
        seen.add(found.name)
        assert_holds(found, checkpoint.step_of(found))
        clean(folder)
        assert not [name for name in names(folder) if name.endswith(".tmp")]
        found = newest_valid(folder, never)
        assert found is not None
        assert_holds(found, checkpoint.step_of(found))
        save(folder, 3)
        assert names(folder) == ["latest", name_of(3)]
        assert_holds(newest_valid(folder, never), 3)
        assert (folder / "latest").read_text() == f"{name_of(3)}\n"
    assert crashes > 20
    assert seen == {name_of(1), name_of(2)}


def test_a_crash_in_the_very_first_save_leaves_nothing_that_is_taken_for_one(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    for _ in crash_points(monkeypatch, folder, lambda: save(folder, 1), lambda: None):
        if found := newest_valid(folder, never):
            assert_holds(found, 1)
        clean(folder)
        save(folder, 1)
        assert names(folder) == ["latest", name_of(1)]


def test_a_crash_while_a_damaged_one_is_written_again(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"

    def damaged():
        save(folder, 1, keep=2)
        save(folder, 2, keep=2)
        (folder / name_of(2) / "model").write_bytes(b"torn")

    for _ in crash_points(monkeypatch, folder, lambda: save(folder, 2), damaged):
        found = newest_valid(folder, lambda message: None)
        assert found is not None
        assert_holds(found, checkpoint.step_of(found))
        clean(folder)
        save(folder, 2)
        assert names(folder) == ["latest", name_of(2)]


def test_a_crash_while_pruning(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"

    def many():
        for step in range(1, 6):
            commit(folder, step, contents(step), {})

    for _ in crash_points(monkeypatch, folder, lambda: prune(folder, 5, 2, best_step=1), many):
        for path in checkpoint.newest_first(folder):
            assert_holds(path, checkpoint.step_of(path))
            checkpoint.read_manifest(path)
        clean(folder)
        prune(folder, 5, 2, best_step=1)
        assert names(folder) == ["latest", name_of(1), name_of(4), name_of(5)]


def test_all_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    folder, events = tmp_path / "checkpoints", []
    save(folder, 1)

    def note(count, name, arguments):
        if name == "fsync":
            events.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{arguments[0]}'))}")
        elif name in ("rename", "replace"):
            events.append(f"{name} {os.path.basename(arguments[1])}")

    with monkeypatch.context() as patched:
        Disk(patched, note)
        save(folder, 2)
    new = name_of(2)
    assert events == [
        *("fsync model", "fsync rest", "fsync manifest.json", f"fsync {new}.tmp", f"rename {new}", "fsync checkpoints"),
        *(
            f"fsync .latest.{os.uname().nodename}-{os.getpid()}.tmp",
            "replace latest",
            "fsync checkpoints",
            f"rename .{name_of(1)}.old.tmp",
        ),
    ]


@pytest.mark.parametrize("failing", ["write", "fsync", "open", "mkdir", "rename", "replace"])
def test_a_call_that_fails_is_an_error_and_the_one_before_is_intact(tmp_path, monkeypatch, failing):
    folder, failed, real_write = tmp_path / "checkpoints", 0, os.write
    code = errno.EIO if failing == "fsync" else errno.ENOSPC
    for point in range(1, 100):
        shutil.rmtree(folder, ignore_errors=True)
        save(folder, 1)
        hit = []

        def fail(count, name, arguments, point=point, hit=hit):
            if count == point and name == failing:
                hit.append(name)
                raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patched:
            disk = Disk(patched, fail)
            # Short writes, as a file system may make them.
            patched.setattr(os, "write", disk._wrap("write", lambda d, data: real_write(d, data[:1000])))
            raised = None
            try:
                save(folder, 2)
            except OSError as error:
                raised = error
        if not hit:
            assert raised is None
            if disk.count < point:
                break
            continue
        if raised is None:
            # Only making a folder that is there, or the removal of the old one, which the next start ends.
            assert_holds(newest_valid(folder, never), 2)
            assert names(folder) in (["latest", name_of(2)], [f".{name_of(1)}.old.tmp", "latest", name_of(2)])
            continue
        assert raised.errno == code
        failed += 1
        assert not [name for name in names(folder) if name.endswith(".tmp")]
        assert_holds(folder / name_of(1), 1)
        found = newest_valid(folder, never)
        assert found is not None
        assert_holds(found, checkpoint.step_of(found))
        save(folder, 3)
        assert names(folder) == ["latest", name_of(3)]
    assert failed >= {"write": 5, "fsync": 5, "open": 4, "mkdir": 1, "rename": 1, "replace": 1}[failing]


def test_the_same_step_twice(tmp_path):
    save(tmp_path, 1)
    before = (tmp_path / name_of(1) / "manifest.json").stat()
    save(tmp_path, 1)
    assert (tmp_path / name_of(1) / "manifest.json").stat().st_mtime_ns == before.st_mtime_ns
    assert_holds(newest_valid(tmp_path, never), 1)


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in (5, 10, 15, 20):
        commit(tmp_path, step, contents(step), {})
    prune(tmp_path, 20, 1, best_step=10)
    assert names(tmp_path) == ["latest", name_of(10), name_of(20)]


def test_a_damaged_newer_one_does_not_push_out_what_the_run_goes_on_with(tmp_path):
    save(tmp_path, 10)
    commit(tmp_path, 20, contents(20), {})
    (tmp_path / name_of(20) / "model").write_bytes(b"torn")
    save(tmp_path, 15)
    assert_holds(newest_valid(tmp_path, never), 15)
    assert names(tmp_path) == ["latest", name_of(15)]


def edit_manifest(**changes):
    def edit(path):
        content = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(content | changes))

    return edit


def flip(path):
    data = bytearray((path / "model").read_bytes())
    data[1234] ^= 4
    (path / "model").write_bytes(data)


def link_out(path):
    (path / "model").rename(path.parent / "elsewhere")
    (path / "model").symlink_to(path.parent / "elsewhere")


def link_folder(path):
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def link_manifest(path):
    (path / "manifest.json").rename(path.parent / "elsewhere")
    (path / "manifest.json").symlink_to(path.parent / "elsewhere")


def pipe(path):
    (path / "model").unlink()
    os.mkfifo(path / "model")


DAMAGES = {
    "bit flip": (flip, "model has changed since it was written"),
    "truncated": (lambda path: os.truncate(path / "model", 2999), "model has 2999 bytes instead of 3000"),
    "empty": (lambda path: os.truncate(path / "rest", 0), "rest has 0 bytes"),
    "file missing": (lambda path: (path / "rest").unlink(), "rest cannot be read"),
    "manifest missing": (lambda path: (path / "manifest.json").unlink(), "manifest.json cannot be read"),
    "garbage": (lambda path: (path / "manifest.json").write_bytes(b"\xff\0{"), "manifest.json cannot be read"),
    "deep": (lambda path: (path / "manifest.json").write_text("[" * 100_000), "manifest.json cannot be read"),
    "a list": (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    "odd sizes": (edit_manifest(files={"model": {"size": 1e999, "sha256": ""}}), "manifest.json cannot be read"),
    "of another step": (edit_manifest(step=7), "its manifest is of step 7"),
    "another format": (edit_manifest(format=99), "its format is 99"),
    "out by name": (edit_manifest(files={"../latest": {"size": 14, "sha256": "0"}}), "../latest leads out of it"),
    "out by root": (edit_manifest(files={"/etc/passwd": {"size": 1, "sha256": "0"}}), "/etc/passwd leads out of it"),
    "up": (edit_manifest(files={"..": {"size": 1, "sha256": "0"}}), ".. is not a plain file"),
    "zero byte": (edit_manifest(files={"a\0b": {"size": 1, "sha256": "0"}}), "cannot be read"),
    "linked file": (link_out, "model is not a plain file"),
    "linked folder": (link_folder, "it is not a folder"),
    "linked manifest": (link_manifest, "manifest.json is not a plain file"),
    "pipe": (pipe, "model is not a plain file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_passed_over(tmp_path, damage):
    act, message = DAMAGES[damage]
    for step in (1, 2):
        commit(tmp_path, step, contents(step), {})
    act(tmp_path / name_of(2))
    told = []
    assert_holds(newest_valid(tmp_path, told.append), 1)
    assert len(told) == 1
    assert name_of(2) in told[0]
    assert message in told[0]
    with pytest.raises(CheckpointError, match=name_of(2)):
        checkpoint.read_manifest(tmp_path / name_of(2))
    commit(tmp_path, 2, contents(2), {})
    assert_holds(newest_valid(tmp_path, never), 2)


def test_none_left(tmp_path):
    told = []
    assert newest_valid(tmp_path / "nowhere", told.append) is None
    save(tmp_path, 1)
    flip(tmp_path / name_of(1))
    assert newest_valid(tmp_path, told.append) is None
    assert len(told) == 1


def test_clean_takes_links_and_files_and_nothing_beyond(tmp_path):
    folder, outside = tmp_path / "checkpoints", tmp_path / "outside"
    save(folder, 1)
    outside.mkdir()
    (outside / "file").touch()
    (folder / "step-00000002.tmp").symlink_to(outside)
    (folder / ".latest.1.tmp").touch()
    clean(folder)
    assert names(folder) == ["latest", name_of(1)]
    assert (outside / "file").exists()
    clean(tmp_path / "nowhere")


OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, 0.1, 0.9, nesterov=True),
    "Adam": lambda groups: torch.optim.Adam(groups, 0.01),
    "AdamW": lambda groups: torch.optim.AdamW(groups, 0.01),
    "Lamb": lambda groups: Lamb(groups, 0.01, (0.9, 0.99), 1e-6),
    "Lars": lambda groups: Lars(groups, 0.1, 0.9, 0.01, 1e-8),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, 0.01),
    "RMSprop with momentum": lambda groups: torch.optim.RMSprop(groups, 0.01, momentum=0.9),
    "RMSprop with both": lambda groups: torch.optim.RMSprop(groups, 0.01, momentum=0.9, centered=True),
}


def make_state(optimizer="SGD", seed=0, width=8, ema=True, fp16=False, one_group=False):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, 4))
    model = model.to(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    groups = [parameters] if one_group else [parameters[:1], parameters[1:]]
    built = OPTIMIZERS[optimizer]([{"params": group, "weight_decay": 1e-3} for group in groups])
    scaler = torch.amp.GradScaler("cpu", enabled=fp16, init_scale=2.0**10, growth_interval=4)
    return TrainState(model, built, scaler, Ema(model, 0.9) if ema else None, Window(torch.device("cpu")))


def train(state, steps):
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        images = torch.randn(4, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        logits = state.model(images)
        loss = nn.functional.cross_entropy(logits, torch.arange(4))
        state.optimizer.zero_grad()
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        right, pixels = (logits.argmax(1) == torch.arange(4)).sum(), torch.tensor(-(state.step**9))
        state.window.add(state.step, loss, right, pixels, 4, 1)
        state.step += 1
        if state.ema:
            state.ema.update(state.model, state.step)


def plain(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.stride(), value.flatten().tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def everything(state):
    """All of the state, as plain nested values; tensors come with their strides."""
    parts = [state.model.state_dict(), state.optimizer.state_dict(), state.scaler.state_dict(), state.window.sums]
    parts += [state.ema.module.state_dict(), state.ema.updates] if state.ema else []
    return plain([*parts, state.step, state.evaluated, state.best, state.best_step])


def write(folder, state, **changes):
    """The state as a checkpoint, with `training_state.pt` changed before it is written."""
    taken = Snapshot()
    taken.take(state, {})
    taken.rest |= changes
    return commit(folder, state.step, taken.files({}), {})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_restored_equals_what_was_saved(tmp_path, optimizer):
    state = make_state(optimizer)
    train(state, 3)
    state.evaluated, state.best, state.best_step = 2, 61.5, 2
    saved = everything(state)
    path = write(tmp_path, state)
    other = make_state(optimizer, seed=1)
    train(other, 1)
    restore(other, path, read_rest(path), 0, 1)
    assert everything(other) == saved
    train(state, 2)
    train(other, 2)
    assert everything(other) == everything(state)


def test_a_snapshot_does_not_change_with_the_state_and_is_used_again(tmp_path):
    state, taken = make_state(), Snapshot()
    for _ in range(2):
        train(state, 1)
        taken.take(state, {})
        saved = everything(state)
        train(state, 1)
        path = commit(tmp_path, state.step, taken.files({}), {})
        other = make_state(seed=1)
        restore(other, path, read_rest(path), 0, 1)
        assert everything(other) == saved


def test_the_loss_scale_is_restored(tmp_path):
    state = make_state(fp16=True)
    train(state, 6)
    assert state.scaler.get_scale() == 2.0**11
    assert state.scaler._get_growth_tracker() == 2
    path = write(tmp_path, state)
    other = make_state(fp16=True, seed=1)
    restore(other, path, read_rest(path), 0, 1)
    assert everything(other) == everything(state)
    train(state, 2)
    train(other, 2)
    assert other.scaler.get_scale() == 2.0**12
    assert everything(other) == everything(state)
    plain = write(tmp_path / "plain", make_state())
    with pytest.raises(CheckpointError, match="no loss scale, which precision=fp16 needs"):
        restore(make_state(fp16=True), plain, read_rest(plain), 0, 1)


def test_average_of_the_weights_absent_or_no_longer_wanted(tmp_path):
    state = make_state(ema=False)
    train(state, 2)
    path = write(tmp_path, state)
    other = make_state(seed=1)
    restore(other, path, read_rest(path), 0, 1)
    assert other.ema
    assert other.ema.updates == 0
    assert plain(other.ema.module.state_dict()) == plain(other.model.state_dict()) == plain(state.model.state_dict())
    state = make_state()
    train(state, 2)
    path = write(tmp_path / "with", state)
    other = make_state(ema=False)
    restore(other, path, read_rest(path), 0, 1)
    state.ema = None
    assert everything(other) == everything(state)


def test_statistics_of_other_numbers_of_ranks(tmp_path):
    state = make_state(ema=False)
    train(state, 2)
    statistics, windows = snapshot._per_rank(state)
    of_two = {"per_rank": torch.cat([statistics, statistics + 2]), "windows": torch.cat([windows, windows + 2])}
    path = write(tmp_path, state, **of_two)
    again = make_state(ema=False)
    restore(again, path, read_rest(path), 0, 2)
    assert everything(again) == everything(state)
    alone = make_state(ema=False)
    restore(alone, path, read_rest(path), 0, 1)
    torch.testing.assert_close(alone.model[1].running_mean, state.model[1].running_mean + 1)
    assert alone.window.sums[SUMMED].tolist() == (2 * state.window.sums[SUMMED] + 2).tolist()
    fourth = make_state(ema=False)
    restore(fourth, path, read_rest(path), 3, 4)
    assert not fourth.window.sums.any()
    torch.testing.assert_close(fourth.model[1].running_mean, state.model[1].running_mean + 1)


def test_statistics_and_windows_that_an_earlier_version_kept_in_one_tensor(tmp_path):
    state = make_state()
    train(state, 2)
    path = write(tmp_path, state)
    rest = torch.load(path / REST, weights_only=True)
    assert rest["per_rank"].dtype == torch.float32
    rest["per_rank"] = torch.cat([rest["per_rank"].double(), rest.pop("windows")], dim=1)
    torch.save(rest, path / REST)
    other = make_state(seed=1)
    restore(other, path, read_rest(path), 0, 1)
    assert everything(other) == everything(state)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    trap, state = tmp_path / "trap", make_state()
    zipped = write(tmp_path / "zipped", state, facts=Evil(trap))
    raw = commit(tmp_path / "raw", 1, {MODEL: b"", REST: pickle.dumps(Evil(trap), protocol=2)}, {})
    for path in (zipped, raw):
        checkpoint.read_manifest(path)
        with pytest.raises(CheckpointError, match=r"training_state.pt holds something other than tensors"):
            read_rest(path)
    assert not trap.exists()


@pytest.mark.parametrize("data", [b"", b"x", b"PK\3\4" + bytes(100), os.urandom(5000)])
def test_a_state_that_is_none(tmp_path, data):
    path = commit(tmp_path, 1, {REST: data}, {})
    with pytest.raises(CheckpointError, match=r"training_state.pt"):
        read_rest(path)


def test_a_state_of_another_program(tmp_path):
    torch.save([1, 2], tmp_path / REST)
    with pytest.raises(CheckpointError, match="not of this program"):
        read_rest(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot read .*training_state.pt: No such file"):
        read_rest(tmp_path / "nowhere")


def test_weights_that_do_not_fit(tmp_path):
    state = make_state()
    train(state, 1)
    path = write(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"model.safetensors does not match this network: .* shape: 0.weight"):
        restore(make_state(width=16), path, read_rest(path), 0, 1)
    file, rest = path / MODEL, read_rest(path)
    weights = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: weights[name] for name in list(weights)[1:]}, file)
    with pytest.raises(CheckpointError, match="does not match this network: "):
        restore(make_state(), path, rest, 0, 1)
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*model.safetensors"):
        restore(make_state(), path, rest, 0, 1)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*model.safetensors"):
        restore(make_state(), path, rest, 0, 1)


def test_an_optimizer_that_does_not_fit(tmp_path):
    state = make_state()
    train(state, 1)
    path = write(tmp_path, state)
    fewer = make_state()
    fewer.optimizer.param_groups[1]["params"].pop()
    with pytest.raises(CheckpointError, match="an optimizer of other parameters"):
        restore(fewer, path, read_rest(path), 0, 1)
    with pytest.raises(CheckpointError, match="is of SGD and this recipe trains with Adam"):
        restore(make_state("Adam"), path, read_rest(path), 0, 1)
    rest = read_rest(path)
    rest["optimizer"]["state"][2]["momentum_buffer"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"momentum_buffer of shape \(3,\) instead of \(8,\)"):
        restore(make_state(), path, rest, 0, 1)
    rest["optimizer"]["state"][2]["momentum_buffer"] = torch.tensor(1.0)
    with pytest.raises(CheckpointError, match=r"momentum_buffer of shape \(\)"):
        restore(make_state(), path, rest, 0, 1)


@pytest.mark.parametrize("optimizer", ["SGD", "Lamb"])
def test_moments_find_their_parameters_in_other_groups(tmp_path, optimizer):
    # As runs of 0.1.0 need it, whose norms and biases had groups of their own.
    state, again = make_state(optimizer), make_state(optimizer, one_group=True)
    train(state, 2)
    path = write(tmp_path, state)
    restore(again, path, read_rest(path), 0, 1)
    for ours, theirs in zip(again.model.parameters(), state.model.parameters(), strict=True):
        assert plain(again.optimizer.state[ours]) == plain(state.optimizer.state[theirs])
    steps = [[group.get("step") for group in one.optimizer.param_groups] for one in (again, state)]
    assert {*steps[0]} == {*steps[1]}


def test_moments_find_their_parameters_in_another_order(tmp_path):
    # As optimizer.layer_decay and backbone_lr_scale make it.
    state, again = make_state(), make_state()
    again.optimizer.param_groups.reverse()
    train(state, 2)
    path = write(tmp_path, state)
    restore(again, path, read_rest(path), 0, 1)
    train(state, 1)
    train(again, 1)
    assert plain(again.model.state_dict()) == plain(state.model.state_dict())
    again = make_state()
    again.optimizer.param_groups.reverse()
    with pytest.raises(CheckpointError, match=r"where optimizer.backbone_lr_scale or layer_decay was changed, put"):
        restore(again, path, without(read_rest(path), "parameters"), 0, 1)


@pytest.mark.parametrize("wanted", ["RMSprop with momentum", "RMSprop with both"])
def test_moments_that_an_option_needs_begin_at_nothing(tmp_path, wanted):
    state, again = make_state("RMSprop"), make_state(wanted)
    train(state, 2)
    path = write(tmp_path, state)
    restore(again, path, read_rest(path), 0, 1)
    train(state, 1)
    train(again, 1)
    difference = furthest(again.model.state_dict(), state.model.state_dict())
    # A first step leads to where it leads without momentum.
    assert (difference < 1e-6) == (wanted == "RMSprop with momentum")


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


HOSTILE = {
    "no such parameter": lambda rest: rest["optimizer"] | {"state": {99: {}}},
    "no numbers": lambda rest: rest["optimizer"] | {"state": {"a": {}}},
    "moments a list": lambda rest: rest["optimizer"] | {"state": {0: [1]}},
    "moments a word": lambda rest: rest["optimizer"] | {"state": {0: {"momentum_buffer": "x"}}},
    "no state": lambda rest: without(rest["optimizer"], "state"),
    "no groups": lambda rest: without(rest["optimizer"], "param_groups"),
    "none": lambda rest: None,
}


@pytest.mark.parametrize("change", HOSTILE)
def test_an_optimizer_of_another_program(tmp_path, change):
    state = make_state()
    train(state, 1)
    path = write(tmp_path, state)
    rest = read_rest(path)
    with pytest.raises(CheckpointError, match="not of this program"):
        restore(make_state(), path, rest | {"optimizer": HOSTILE[change](rest)}, 0, 1)


def test_missing_pieces_are_errors(tmp_path):
    state = make_state()
    train(state, 1)
    path = write(tmp_path, state)
    rest = read_rest(path)
    for key in ("per_rank", "windows", "counters", "scaler", "optimizer", "optimizer_name", "ema_counter"):
        with pytest.raises(CheckpointError, match=f"lacks {key}"):
            restore(make_state(), path, without(rest, key), 0, 1)
    for key in ("step", "evaluated", "best", "best_step"):
        with pytest.raises(CheckpointError, match=key):
            restore(make_state(), path, rest | {"counters": without(rest["counters"], key)}, 0, 1)
    for wrong in (rest["per_rank"][:, 1:], rest["per_rank"][0]):
        with pytest.raises(CheckpointError, match="running statistics do not match this network"):
            restore(make_state(), path, rest | {"per_rank": wrong}, 0, 1)
    (path / EMA).unlink()
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*ema.safetensors"):
        restore(make_state(), path, rest, 0, 1)


def make_saver(run_dir, **settings):
    # Five steps an epoch.
    recipe = Recipe.model_validate(
        {
            "model": {"name": "resnet18"},
            "data": {"source": "synthetic"},
            "epochs": 4,
            "batch_size": 10,
            "max_batch_per_device": 10,
            "checkpoint": {"every": "1 step", "keep": 1, **settings},
        }
    )
    return Saver(run_dir, make_plan(recipe, 50, 1), ["a", "b"], {"digest": "abc"}, None, writes=True)


def test_a_failing_save_is_told_counted_and_tried_again(tmp_path, capfd):
    ours, state, folder = make_saver(tmp_path), make_state(), tmp_path / "checkpoints"
    train(state, 1)
    ours.save(state, 0, wait=True)
    assert (ours.failures, capfd.readouterr().err) == (0, "")
    before = everything(state)
    blocked = folder / f"{name_of(2)}.tmp"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "rename", fail_with(errno.ENOSPC))
        for step in (2, 3):
            train(state, 1)
            ours.save(state, 0, wait=True)
            assert ours.failures == step - 1
            error = capfd.readouterr().err
            assert error.count("COULD NOT SAVE") == 1
            assert f"{folder}: No space left on device" in error
            assert "(it needs 0 MB, " in error
            assert " MB free)" in error
            assert f"failure {step - 1} of 3 in a row" in error
    assert ours.problem == "No space left on device"
    assert not blocked.exists()
    other = make_state(seed=1)
    found = newest_valid(folder, never)
    assert found is not None
    restore(other, found, read_rest(found), 0, 1)
    assert everything(other) == before
    train(state, 1)
    ours.save(state, 0, wait=True)
    assert ours.failures == 0
    assert names(folder) == ["latest", name_of(4)]


def test_an_attempt_that_has_saved_nothing_keeps_the_time_of_the_last_checkpoint(tmp_path):
    ours, state, log = make_saver(tmp_path), make_state(), MetricsLog(tmp_path / "metrics.jsonl")
    progress, val = Progress("off", ours.plan.end_step, ours.plan.steps_per_epoch), Synthetic(10, 2, 32)
    hooks = RunHooks(tmp_path, ours.plan, state, ours, Signals(), progress, log, NullTracker(), val, 50)
    write_status(tmp_path, last_checkpoint_time=7.0)
    hooks.log({"step": 1, "epoch": 0.2})
    assert (read_status(tmp_path)["step"], read_status(tmp_path)["last_checkpoint_time"]) == (1, 7.0)
    train(state, 1)
    hooks.save(wait=True)
    hooks.log({"step": 2, "epoch": 0.4})
    assert read_status(tmp_path)["last_checkpoint_time"] == ours.committed_time
    log.close()


def fail_with(code):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return fail


def test_a_save_that_failed_is_tried_again_before_leaving(tmp_path, monkeypatch, capfd):
    ours, state = make_saver(tmp_path), make_state()
    train(state, 1)
    with monkeypatch.context() as patched:
        patched.setattr(saver, "commit", fail_with(errno.EDQUOT))
        ours.save(state, 7)
        ours.wait()
    assert ours.failures == 1
    saved = everything(state)
    ours.save(state, 7, wait=True)
    assert ours.failures == 0
    path = tmp_path / "checkpoints" / name_of(1)
    rest = read_rest(path)
    other = make_state(seed=1)
    restore(other, path, rest, 0, 1)
    assert everything(other) == saved
    assert rest["log_length"] == 7
    assert "quota" in capfd.readouterr().err


def test_an_error_of_any_kind_is_counted(tmp_path, monkeypatch, capfd):
    ours, state = make_saver(tmp_path), make_state()
    monkeypatch.setattr(Snapshot, "files", lambda *_: [].pop())
    ours.save(state, 0, wait=True)
    assert ours.failures == 1
    error = capfd.readouterr().err
    assert "pop from empty list" in error
    assert "it needs" not in error


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of that size on a folder; skips where that is not allowed."""
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size={size} tmpfs {folder} 2>/dev/null"):
        pytest.skip("not allowed to mount")
    try:
        yield
    finally:
        os.system(f"umount {folder}")


def test_a_disk_that_is_really_full(tmp_path, capfd):
    with small_disk(tmp_path / "disk", "1m"):
        run_dir = tmp_path / "disk" / "run"
        ours, state = make_saver(run_dir), make_state()
        train(state, 1)
        ours.save(state, 0, wait=True)
        filler = tmp_path / "disk" / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        train(state, 1)
        ours.save(state, 0, wait=True)
        assert ours.failures == 1
        assert "No space left on device" in capfd.readouterr().err
        assert names(run_dir / "checkpoints") == ["latest", name_of(1)]
        assert newest_valid(run_dir / "checkpoints", never)
        ours.mark_best(1)
        with pytest.raises(ValueError, match=r"disk.* has 0 MB free"):
            check_space(tmp_path / "disk", make_state(width=200), keep=1)
        filler.unlink()
        train(state, 1)
        ours.save(state, 0, wait=True)
        assert ours.failures == 0
        assert names(run_dir / "checkpoints") == ["latest", name_of(3)]


def test_best_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch, capfd):
    ours, state = make_saver(tmp_path), make_state()
    train(state, 1)
    ours.save(state, 0)
    ours.mark_best(1)
    assert (tmp_path / "checkpoints" / "best").read_text() == f"{name_of(1)}\n"
    monkeypatch.setattr(saver, "write_atomic", fail_with(errno.ENOSPC))
    ours.mark_best(1)
    assert "could not write" in capfd.readouterr().err


def test_free_space_is_asked_for_before_the_start(tmp_path, monkeypatch):
    state = make_state(width=100)
    weights = 2 * sum(t.numel() * t.element_size() for t in state.model.state_dict().values())
    one = weights + sum(4 * p.numel() for p in state.model.parameters())
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=4 * one))
    check_space(tmp_path / "new" / "run", state, keep=2)
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=4 * one - 1))
    with pytest.raises(ValueError, match=r"MB free, and 2 checkpoints, .*smaller checkpoint.keep"):
        check_space(tmp_path / "new" / "run", state, keep=2)
    # Of three moments.
    three = make_state("RMSprop with both", width=100)
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=4 * one * 1.1))
    with pytest.raises(ValueError, match=r"MB free, and 2 checkpoints"):
        check_space(tmp_path / "new" / "run", three, keep=2)
    # What the run has there already is not asked for twice.
    train(state, 1)
    write(tmp_path / "checkpoints", state)
    check_space(tmp_path, state, keep=2)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    ours, state = make_saver(tmp_path), make_state()
    train(state, 1)
    ours.save(state, 0, wait=True)
    for network in (state.model, state.ema.module):
        for name in ("0.weight", "1.running_var"):
            train(state, 1)
            tensor = network.state_dict()[name]
            first = (0,) * tensor.dim()
            before = tensor[first].item()
            tensor[first] = float("nan") if name == "0.weight" else float("inf")
            with pytest.raises(FloatingPointError, match=f"not finite after step {state.step}: not saved"):
                ours.save(state, 0, wait=True)
            tensor[first] = before
    assert names(tmp_path / "checkpoints") == ["latest", name_of(1)]


def test_weights_are_kept_for_good(tmp_path):
    ours, state = make_saver(tmp_path, every="2 epochs", weights_every=1), make_state()
    kept = {}
    for _ in range(12):
        train(state, 1)
        if ours.due(state.step):
            ours.save(state, 0)
            kept[state.step] = {k: v.clone() for k, v in state.ema.module.state_dict().items()}
    ours.wait()
    assert list(kept) == [5, 10]
    assert names(tmp_path / "weights") == ["epoch-0001.safetensors", "epoch-0002.safetensors"]
    for epoch in (1, 2):
        weights = safetensors.torch.load_file(tmp_path / "weights" / f"epoch-000{epoch}.safetensors")
        assert weights.keys() == kept[5 * epoch].keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in kept[5 * epoch].items())


def test_a_crash_keeps_the_weights_that_a_checkpoint_counts_as_kept(tmp_path, monkeypatch):
    """A run that goes on from a checkpoint does not pass its step again."""
    state = make_state()
    train(state, 5)

    def act():
        ours = make_saver(tmp_path / "run", weights_every=1)
        ours._snapshot.take(state, ours.facts)
        ours._write(state.step, None, ours._archive(state.step))

    for _ in crash_points(monkeypatch, tmp_path / "run", act, (tmp_path / "run").mkdir):
        if newest_valid(tmp_path / "run" / "checkpoints", never):
            assert (tmp_path / "run" / "weights" / "epoch-0001.safetensors").is_file()


def test_when_a_save_is_due(tmp_path):
    def due(**settings):
        ours = make_saver(tmp_path, **settings)
        return [step for step in range(1, 16) if ours.due(step)]

    assert due(every="4 steps") == [4, 8, 12]
    assert due(every="2 epochs") == [10]
    assert due(every="2 epochs", weights_every=1) == [5, 10, 15]
    assert due(every="5 minutes") == []
