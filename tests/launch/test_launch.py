import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import cli
from recipes.library import names
from recipes.load import dump, load, load_file
from recipes.schedules import hyper_at

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "torchvision", "accelerate", "wandb", "datasets", "submitit", "numpy"]
SMALL = ["recipe=quickstart", "data={source: synthetic, samples: 400}", "batch_size=40", "epochs=10"]
"""Ten epochs of ten steps."""


@pytest.fixture
def launch(capsys):
    """Run a command line (words apart by two spaces may hold one); returns exit code, standard output and error."""

    def call(*words):
        with pytest.raises(SystemExit) as left:
            cli.main(list(words))
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return call


@pytest.fixture
def follows(launch):
    """What follows from a small recipe with overrides."""

    def call(*words):
        code, out, err = launch("show", "--json", *SMALL, *words)
        assert (code, err) == (0, "")
        return json.loads(out)["follows"]

    return call


def process(*words, **keys):
    return subprocess.run([sys.executable, "-m", "launch", *words], cwd=ROOT, capture_output=True, text=True, **keys)


# All commands


@pytest.mark.parametrize(
    "words",
    [
        *(["recipes"], ["show", "recipe=quickstart", "--origin"], ["show", "--json", "x=1"]),
        *(["status"], ["status", "x"], ["logs", "x"], ["cancel", "x"], ["retry", "x"], ["doctor"]),
        *(["submit", "recipe=quickstart", "cluster=x"], ["local", "recipe=x"]),
    ],
)
def test_no_command_imports_what_takes_seconds(words):
    code = f"""
import sys
from launch import cli
try:
    cli.main({words!r})
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_needs_no_command_and_a_command_imports_only_its_own():
    code = "import sys; from launch import cli; print({'pydantic', 'yaml', 'recipes.load'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_help_lists_the_commands(launch):
    code, out, _ = launch("--help")
    assert code == 0
    assert all(name in out for name in cli.COMMANDS)
    code, out, err = launch()
    assert (code, out) == (2, "")
    assert "usage: launch COMMAND" in err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_has_help(launch, command):
    code, out, _ = launch(command, "--help")
    assert code == 0
    assert f"usage: launch {command}" in out
    assert "--debug" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shwo"], "launch: no command 'shwo': did you mean launch show?"),
        (["qqq"], "launch: no command 'qqq': there are: recipes, "),
        (["recipes", "foo"], "launch recipes: unexpected argument foo: --help says what there is"),
        (["recipes", "--jsn"], "launch recipes: unknown option --jsn: did you mean --json?"),
        (["recipes", "--quiet"], "launch recipes: unknown option --quiet: --help says what there is"),
        (["show", "--orign", "recipe=quickstart"], "launch show: unknown option --orign: did you mean --origin?"),
        (
            ["show", "recipe=quickstart", "--epochs=3"],
            "launch show: unknown option --epochs=3: keys of the recipe are written without dashes, as in epochs=3",
        ),
        (["show", "quickstart"], "launch show: cannot read 'quickstart', arguments have the form key=value: did you"),
        (["show"], "launch show: give one recipe=NAME; there are: "),
        (["show", "recipe=quickstrat"], "launch show: no recipe 'quickstrat': did you mean quickstart?"),
        (
            ["show", "recipe=quickstart", "lr=1"],
            "launch show: unknown key lr (command line): did you mean optimizer.lr?",
        ),
        (["show", "recipe=quickstart", "--gpus", "0"], "argument --gpus: 0 is not a whole number of 1 or more"),
        (["show", "recipe=quickstart", "--gpus", "5"], "launch show: batch_size 48 does not divide over 5 devices"),
        (["show", "recipe=quickstart", "batch_size=4000"], "batch_size 4000 is larger than the 2000 training samples"),
    ],
)
def test_a_mistake_is_told_in_a_line_or_two(launch, words, message):
    code, out, err = launch(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2


def test_debug_shows_the_traceback(launch):
    code, out, err = launch("show", "recipe=quickstart", "lr=1", "--debug")
    assert (code, out) == (2, "")
    assert "Traceback" in err
    assert err.splitlines()[-1] == "launch show: unknown key lr (command line): did you mean optimizer.lr?"


def test_what_the_system_refuses_is_no_mistake_of_the_user(launch, monkeypatch):
    monkeypatch.setattr("recipes.listing.shipped", lambda: (_ for _ in ()).throw(PermissionError(13, "denied")))
    code, _, err = launch("recipes")
    assert (code, err) == (1, "launch recipes: [Errno 13] denied\n")


@pytest.mark.parametrize("words", [["show", "recipe=quickstart"], ["recipes"]])
def test_a_reader_that_has_seen_enough_ends_it_quietly(words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


# launch recipes


def test_recipes_lists_each_on_a_page(launch):
    code, out, _ = launch("recipes")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    listed = [words[0] for line in out.splitlines() if len(words := line.split()) > 3 and words[0] in names()]
    assert sorted(listed) == names()
    assert listed[0] == "quickstart"
    assert listed.index("resnet50_imagenet_tv2") < listed.index("resnet101_imagenet")
    assert re.search(r"^  resnet50_imagenet +90 +256  76.13 \(75.3-76.2\)$", out, re.MULTILINE)
    assert re.search(r"^  sport6_silu +30 +32  unknown$", out, re.MULTILINE)
    assert re.search(r"^  quickstart .*  96.80$", out, re.MULTILINE)
    assert (
        "\n    ResNet-50 on ImageNet as torchvision's IMAGENET1K_V1 weights were trained\n"
        in launch("recipes", "--long")[1]
    )


def test_recipes_as_json(launch):
    rows = {row["name"]: row for row in json.loads(launch("recipes", "--json")[1])}
    assert sorted(rows) == names()
    tv2 = rows["resnet50_imagenet_tv2"]
    assert (tv2["model"], tv2["epochs"], tv2["batch_size"], tv2["top1"], tv2["band"]) == (
        "resnet50", 600, 1024, 80.858, [80.4, 80.95],
    )  # fmt: skip
    assert (tv2["group"], rows["sport6_silu"]["top1"]) == ("imagenet", None)
    # torchvision's table, with and without a classifier of a thousand.
    assert (tv2["parameters"], tv2["classes"]) == (25_557_032 - 1000 * 2049, None)
    assert (tv2["measured"], rows["quickstart"]["measured"]["top1"]) == (None, 96.8)


def test_recipes_of_some_data_and_some_network(launch):
    found = [
        row["name"] for row in json.loads(launch("recipes", "--json", "--data=CIFAR-10", "--model", "ResNet50")[1])
    ]
    assert "cifar10_resnet50_steplr" in found
    assert not [name for name in found if "cifar100" in name or "imagenet" in name or "resnet18" in name]
    code, out, err = launch("recipes", "--model", "resnet51")
    assert (code, out) == (2, "")
    assert "no recipe of --model resnet51: did you mean resnet50" in err


def test_recipes_of_the_users_own(launch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for folder in ("recipes", "config/resnet-launch/recipes/birds"):
        (tmp_path / folder).mkdir(parents=True)
    here, birds = tmp_path / "recipes", tmp_path / "config/resnet-launch/recipes/birds"
    (here / "mine.yaml").write_text("base: quickstart\nname: yours\nepochs: 7\n")
    (here / "wrong.yaml").write_text("base: quickstart\nepoch: 7\n")
    (here / "quickstart.yaml").write_text("base: sport6_silu\n")
    (birds / "sparrows.yaml").write_text("base: mine\n")
    (birds / "mine.yaml").write_text("base: sport6_silu\n")
    code, out, _ = launch("recipes")
    assert code == 0
    assert re.search(r"^your own, recipes\n ResNet\n  mine +7 +48 ", out, re.MULTILINE)
    assert re.search(r"^  sparrows +7 ", out, re.MULTILINE)
    told = " ".join(out.partition("not found by a name")[2].split())
    assert re.search(r"recipes/wrong.yaml: unknown key epoch \(.*wrong.yaml:2\): did you mean epochs\?", told)
    assert "quickstart is a recipe of the program, too: take this one by recipe=recipes/quickstart.yaml" in told
    assert "mine is a recipe of recipes/mine.yaml, too" in told
    for name, epochs in (("mine", 7), ("sparrows", 7), ("quickstart", 3)):
        assert json.loads(launch("show", "--json", f"recipe={name}")[1])["recipe"]["epochs"] == epochs
    assert "did you mean mine?" in launch("show", "recipe=min")[2]


# launch show: the recipe


@pytest.mark.parametrize(("name", "options"), [("quickstart", []), *((name, ["--origin"]) for name in names())])
def test_what_show_prints_is_the_recipe_itself(launch, tmp_path, name, options):
    code, out, _ = launch("show", f"recipe={name}", "seed=3", *options)
    assert code == 0
    (tmp_path / "shown.yaml").write_text(out)
    assert load_file(tmp_path / "shown.yaml").recipe == load([f"recipe={name}", "seed=3"]).recipe


def test_origins_stand_behind_the_values(launch):
    path = "recipes/imagenet/resnet50_imagenet_ffcv_16.yaml"
    out = launch("show", "recipe=resnet50_imagenet_ffcv_88", "optimizer.lr=1e0", "--origin")[1]
    for line, origin in {
        "name: resnet50_imagenet_ffcv_88": "name of the file",
        "  lr: 1.0": "command line",
        "  momentum: 0.9": line_of(path, "optimizer:"),
        "  nesterov: false": "default",
        "epochs: 88.0": line_of("recipes/imagenet/resnet50_imagenet_ffcv_88.yaml", "epochs:"),
        "  progressive:": line_of("recipes/imagenet/resnet50_imagenet_ffcv_88.yaml", "progressive:"),
        "grad_clip_norm: null": "default",
        "ema: null": "default",
    }.items():
        assert re.search(rf"^{re.escape(line)} +# {re.escape(origin)}$", out, re.MULTILINE), line
    without = launch("show", "recipe=resnet50_imagenet_ffcv_88")[1]
    assert "# default" not in without
    assert "command line" not in without


def line_of(path, text):
    lines = (ROOT / path).read_text().splitlines()
    return f"{path}:{next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))}"


def test_show_takes_a_file_a_run_and_options_anywhere(launch, tmp_path):
    recipe = load(["recipe=quickstart", "run.name=first", "epochs=7"]).recipe
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump(recipe))
    for path in (run, run / "recipe.yaml"):
        code, out, _ = launch(
            "show", "--gpus", "2", f"recipe={path}", "--origin", "seed=5", "--samples=900", "log_every=3"
        )
        shown = yaml.safe_load(out)
        assert code == 0
        assert (shown["name"], shown["epochs"], shown["seed"], shown["log_every"]) == ("quickstart", 7, 5, 3)
        assert f"# {run / 'recipe.yaml'}:" in out
        assert "on 2 devices" in out
        assert "900 an epoch, by --samples" in out
    code, _, err = launch("show", f"recipe={tmp_path / 'runs'}/second")
    assert (code, err) == (2, f"launch show: no recipe file {tmp_path / 'runs'}/second\n")


# launch show: what follows


def test_steps_and_batches(launch):
    shown = json.loads(launch("show", "recipe=resnet50_imagenet", "--gpus=4", "--json")[1])
    facts = shown["follows"]
    assert {key: facts[key] for key in ("steps_per_epoch", "total_steps", "per_device_batch", "micro_batch")} == {
        "steps_per_epoch": 5005, "total_steps": 450450, "per_device_batch": 64, "micro_batch": 32,
    }  # fmt: skip
    assert (facts["gpus"], facts["accumulation"], facts["lr"], facts["samples"]) == (4, 2, 0.1, 1_281_167)
    assert shown["recipe"]["optimizer"]["momentum"] == 0.9
    assert shown["origins"]["batch_size"] == line_of("recipes/imagenet/resnet50_imagenet.yaml", "batch_size")
    out = launch("show", "recipe=resnet50_imagenet", "--gpus=4")[1]
    for line in (
        "bottleneck 3-4-6-3, 23.5 M parameters and 2,049 for each class, 4.09 G",
        "1281167 an epoch, stated by the recipe (data.train_samples)",
        "5005 an epoch, 450450 in all",
        "256, 64 per device in 2 micro-batches of 32",
        "76.13 (75.3 to 76.2), never measured here; central crop of 224 px",
    ):
        assert line in out
    assert "your changes may move it" not in out


def test_what_was_measured_is_told(launch):
    measured = (
        "evidence.measured={top1: 91.3, spread: 0.14, seeds: 5, command: python train.py x, card: a GPU, commit: abc}"
    )
    out = " ".join(launch("show", "recipe=cifar10_resnet20", measured)[1].replace("\n#", "").split())
    assert "91.25 (90.9 to 92), 91.3 +-0.14 (5 runs) by python train.py x, a GPU, commit abc;" in out
    assert "93.39 +-0.16 (5 runs) (92.9 to 94), never measured here" in launch("show", "recipe=cifar10_resnet110")[1]
    assert "78.4, an estimate, never measured here" in launch("show", "recipe=resnet101_imagenet_onecycle")[1]
    of_old = launch("show", "recipe=cifar10_resnet20", "evidence.measured=91 on a Tuesday")[1]
    assert "91.25 (90.9 to 92), 91 on a Tuesday;" in of_old


def milestones(facts, *keys):
    return [tuple(at[key] for key in keys) for at in facts["milestones"]]


def test_milestones_of_a_step_schedule(follows):
    facts = follows("schedule={name: step, every: 4, gamma: 0.1}", "optimizer.lr=1")
    assert milestones(facts, "step", "label") == [
        (0, "start"), (25, "25%"), (40, "drop 1 of 2"), (50, "50%"), (75, "75%"), (80, "drop 2 of 2"),
        (99, "last step"),
    ]  # fmt: skip
    assert [at["lr"] for at in facts["milestones"]] == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def rates_of(*words):
    """The learning rate at each of 10 steps an epoch."""
    recipe = load([*SMALL, *words]).recipe
    steps = round(10 * recipe.epochs)
    return [hyper_at(recipe.schedule, step, 10, steps, recipe.optimizer.lr).lr for step in range(steps)]


@pytest.mark.parametrize("update", ["step", "epoch"])
@pytest.mark.parametrize("every", ["1.5", "0.3", "3", "0.01"])
@pytest.mark.parametrize("warmup", [0, 2.5])
def test_drops_are_where_the_learning_rate_falls(follows, every, update, warmup):
    schedule = f"schedule={{name: step, every: {every}, gamma: 0.9, update: {update}, warmup_epochs: %g}}"
    drops = [at["step"] for at in follows(schedule % warmup)["milestones"] if "drop" in at["label"]]
    rates = rates_of(schedule % 0)
    warm = 10 * warmup if update == "step" else 10 * math.ceil(warmup)
    falls = [step for step in range(1, 100) if rates[step] < rates[step - 1] and step > warm]
    assert drops == falls[:8]


def test_drops_are_numbered(follows):
    labels = [at["label"] for at in follows("schedule={name: step, every: 0.05}")["milestones"]]
    assert labels[:3] == ["start", "drop 2 of 198", "drop 4 of 198"]


@pytest.mark.parametrize(
    ("schedule", "label"),
    [
        ("{name: cosine, warmup_epochs: 2.25}", "end of warm-up"),
        ("{name: cosine, warmup_epochs: 2.25, update: epoch}", "end of warm-up"),
        ("{name: triangular, peak_epoch: 3}", "peak"),
        ("{name: onecycle, pct_start: 0.33}", "peak"),
        ("{name: onecycle, pct_start: 0.001}", "peak"),
        ("{name: onecycle, pct_start: 0.999}", "peak"),
    ],
)
def test_the_peak_is_where_the_learning_rate_is_highest(follows, schedule, label):
    facts = follows(f"schedule={schedule}", "epochs=10.3")
    rates = rates_of(f"schedule={schedule}", "epochs=10.3")
    at = next(at for at in facts["milestones"] if label in at["label"])
    assert at["lr"] == max(rates)
    assert at["step"] == rates.index(max(rates))


def test_the_stems_learning_rate_is_shown_where_it_decays_by_blocks(launch):
    words = (
        "recipe=resnet50_imagenet",
        "optimizer.layer_decay=0.5",
        "optimizer.lr=1",
        "optimizer.lr_for_batch_size=null",
    )
    assert f"peak lr          1, stem {0.5**17:.6g}\n" in launch("show", *words)[1]


def test_momentum_is_shown_where_it_is_cycled(launch, follows):
    assert milestones(follows("schedule={name: cosine}"), "momentum")[0] == (None,)
    facts = follows("schedule={name: onecycle}", "optimizer={name: adam}")
    assert facts["milestones"][0]["momentum"] == 0.95
    assert facts["momentum_is"] == "beta1"
    assert re.search(r"lr +beta1$", launch("show", "recipe=cifar100_onecycle")[1], re.MULTILINE)
    assert re.search(r"lr +momentum$", launch("show", "recipe=quickstart")[1], re.MULTILINE)
    assert re.search(r"lr$", launch("show", "recipe=resnet50_imagenet")[1], re.MULTILINE)


def test_a_run_of_one_step_is_all_milestones_at_once(follows):
    facts = follows("epochs=0.01")
    assert milestones(facts, "step", "label") == [(0, "start, peak, 25%, 50%, 75%, last step")]


def test_samples_that_only_the_data_tells(launch, follows):
    for name, key in {"sport6_silu": "data.balance", "cats_vs_dogs_resnet18": "the data is read"}.items():
        code, out, _ = launch("show", f"recipe={name}")
        assert code == 0
        assert re.search(rf"training images  unknown until .*{key}.*: give --samples N", out)
        assert "an epoch," not in out
        assert "batch " in out
        assert "  start" not in out
        given = launch("show", f"recipe={name}", "--samples", "1000")[1]
        assert "1000 an epoch, by --samples" in given
        assert "  start" in given
    assert follows("data.balance=oversample")["total_steps"] is None
    assert follows("data.test_fraction=0.1", "data.balance=sqrt")["milestones"] == []
    assert follows("data.max_train=200")["steps_per_epoch"] == 5


def test_image_sizes_ema_and_scaled_rates(launch):
    out = launch("show", "recipe=resnet50_imagenet_ffcv_88", "data.train_samples=null")[1]
    assert "160 from epoch 0, 192 from epoch 71" in out
    out = launch("show", "recipe=resnet50_imagenet_tv2", "batch_size=512", "--gpus", "8")[1]
    assert "keeps 0.999454 (0.99998 rescaled) every 32 steps" in out
    assert re.search(r"peak lr +0.25$", out, re.MULTILINE)
    assert "your changes may move it" in out
    out = launch("show", "recipe=finetune_resnet50", "ema={decay: 0.9}", "wandb.mode=off")[1]
    assert "keeps 0.9 every 1 step" in out
    assert "0.001, backbone 0.0001" in out


def test_python_m_launch_is_the_command():
    done = process("show", "recipe=quickstart", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["recipe"]["name"] == "quickstart"
    assert process("shwo").returncode == 2


def test_a_run_that_ends_early_says_so(launch):
    shown = " ".join(launch("show", "recipe=quickstart", "max_steps=60")[1].replace("#", "").split())
    assert "in all; ends after 60 (max_steps), with the schedule of all of them" in shown
