import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recipes import page
from recipes.errors import RecipeError
from recipes.keys import SIMILAR, fields_of, variants
from recipes.library import FOLDER, names
from recipes.load import digest, dump, load, load_file, parse_value, run_recipe_text
from recipes.plan import make_plan
from recipes.schema import json_schema
from recipes.schema.recipe import Recipe
from recipes.yaml12 import Dumper, Loader

SHIPPED = sorted(path.stem for path in FOLDER.rglob("*.yaml"))
SMALL = """\
model: {name: resnet18}
data: {source: synthetic}
epochs: 2
batch_size: 8
optimizer: {name: sgd, lr: 0.5, momentum: 0.8, nesterov: true, weight_decay: 1e-3}
schedule: {name: cosine, warmup_epochs: 1, final: 0.25}
ema: {decay: 0.99}
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text, name="small.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def small(recipe_file):
    """Load the small recipe with overrides."""
    path = recipe_file(SMALL)
    return lambda *overrides: load([f"recipe={path}", *overrides])


def mistakes(call, *arguments):
    with pytest.raises(RecipeError) as error:
        call(*arguments)
    return str(error.value)


# The recipes that come with the program


def test_the_recipes_of_the_issue_are_there():
    nets = [f"resnet{depth}_imagenet{kind}" for depth in (50, 101, 152) for kind in ("", "_onecycle")]
    kinds = ["tv2", "rsb_a1", "rsb_a2", "rsb_a3", "ffcv_16", "ffcv_88", "nvidia", "large_batch"]
    small = "quickstart cifar10_resnet18 cifar10_resnet50_steplr cifar100_onecycle cats_vs_dogs_resnet18 sport6_silu"
    assert {*nets, *(f"resnet50_imagenet_{kind}" for kind in kinds), *small.split(), "finetune_resnet50"} <= {*names()}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe(name, tmp_path):
    text = next(FOLDER.rglob(f"{name}.yaml")).read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=../schema.json\n")
    recipe = load([f"recipe={name}"]).recipe
    assert recipe.name == name
    assert recipe.description
    evidence = recipe.evidence
    assert evidence is not None
    assert evidence.source
    assert evidence.evaluation
    if evidence.band is not None:
        assert evidence.top1 is not None
        assert evidence.band[0] <= evidence.top1 <= evidence.band[1]
    elif evidence.top1 is not None:
        assert "No band: " in evidence.notes
    (tmp_path / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load_file(tmp_path / "recipe.yaml").recipe == recipe


@pytest.mark.parametrize("name", [name for name in SHIPPED if "imagenet" in name])
def test_imagenet_recipes_divide_over_devices_and_keep_their_batchnorm_batch(name):
    recipe = load([f"recipe={name}"]).recipe
    plan = make_plan(recipe, 1_281_167, 1)
    assert {make_plan(recipe, 1_281_167, world_size).micro_batch for world_size in (1, 2, 4, 8)} == {plan.micro_batch}
    assert plan.micro_batch > 1
    # NVIDIA states it for another batch.
    assert plan.lr == pytest.approx(2.048 if "nvidia" in name else recipe.optimizer.lr)


def test_published_numbers_that_are_easy_to_get_wrong():
    ffcv, nvidia = (load([f"recipe=resnet50_imagenet_{name}"]).recipe for name in ("ffcv_16", "nvidia"))
    plan = make_plan(ffcv, 1_281_167, 8)
    assert plan.steps_per_epoch == 312
    assert plan.hyper(311).lr == pytest.approx(0.8473609)
    for name, last_small in (("ffcv_16", 11), ("ffcv_88", 70)):
        plan = make_plan(load([f"recipe=resnet50_imagenet_{name}"]).recipe, 1_281_167, 8)
        sizes = [plan.image_size(epoch * plan.steps_per_epoch) for epoch in range(int(plan.recipe.epochs))]
        assert sizes == [160] * (last_small + 1) + [192] * (len(sizes) - last_small - 1)
    assert nvidia.optimizer.weight_decay == 1 / 32768
    tv2 = make_plan(load(["recipe=resnet50_imagenet_tv2"]).recipe, 1_281_167, 8)
    assert tv2.steps_per_epoch == 1251
    assert [round(tv2.hyper(1251 * epoch).lr, 3) for epoch in range(6)] == [0.005, 0.104, 0.203, 0.302, 0.401, 0.5]


def test_schema_for_editors_is_up_to_date():
    assert json_schema.PATH.read_text(encoding="utf-8") == json_schema.text(), (
        "run python -m recipes.schema.json_schema"
    )


def test_the_page_of_recipes_is_up_to_date():
    shown = page.PATH.read_text(encoding="utf-8")
    assert shown == page.text(shown), "run python -m recipes.page"


def test_schema_for_editors_describes_every_key():
    groups = json_schema.json_schema()["$defs"]
    tags = {tag for tag, _ in variants().values()}
    bare = {(name, key) for name, group in groups.items() for key, value in group["properties"].items()
            if "description" not in value and key not in tags}  # fmt: skip
    assert not bare


def test_schema_for_editors_takes_the_shipped_recipes_and_flags_mistakes():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema.json_schema())
    for path in FOLDER.rglob("*.yaml"):
        validator.validate(parse_value(path.read_text(encoding="utf-8")))
    good = [{"base": "quickstart", "optimizer": {"lr": 1}}, {"base": ["a", "b.yaml"], "ema": None}, {"model": {}}]
    assert all(validator.is_valid(part) for part in good)
    bad = [{"bas": "x"}, {"optimizer": {"name": "adam", "momentum": 0.9}}, {"epochs": "x"}, {"model": {"nam": "x"}}]
    assert not any(validator.is_valid(part) for part in bad)


# Reading values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), ("-1.5e+2", -150.0), ("1_000", 1000), ("08", 8),
        ("010", 10), ("0x1F", 31), ("-3", -3), ("off", "off"), ("no", "no"), ("yes", "yes"), ("on", "on"), ("y", "y"),
        ("2:30", "2:30"), ("2024-01-01", "2024-01-01"), ("true", True), ("null", None), ("", None), ("~", None),
        ("1.2.3", "1.2.3"), ("1,2", "1,2"), ("e5", "e5"), ("[4,5,3]", [4, 5, 3]), ("{a: 1e-3}", {"a": 1e-3}),
    ],
)  # fmt: skip
def test_plain_values_are_yaml_1_2(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_numbers_and_words_reach_the_recipe(small):
    words = ["grad_clip_norm=off", "ema=off", "precision=no", "wandb.mode=off", "compile=on"]
    recipe = small("optimizer.lr=1e-4", "seed=1_000", "checkpoint.every=30 minutes", "batch_size=1e2", *words).recipe
    assert (recipe.optimizer.lr, recipe.seed, recipe.batch_size) == (1e-4, 1000, 100)
    assert (recipe.grad_clip_norm, recipe.ema, recipe.precision) == (None, None, "no")
    assert (recipe.wandb.mode, recipe.compile, str(recipe.checkpoint.every)) == ("disabled", True, "30 minutes")


def test_a_number_where_text_is_asked_for_is_text(small):
    recipe = small("run.name=7", "wandb.tags=[3, a]", "wandb.group=2").recipe
    assert (recipe.run.name, recipe.wandb.tags, recipe.wandb.group) == ("7", ["3", "a"], "2")


# Files, bases, overrides and where values come from


def test_bases_are_merged_in_order_and_origins_kept(recipe_file, tmp_path):
    recipe_file(SMALL)
    recipe_file("seed: 1\nepochs: 5\noptimizer: {lr: 0.25}\n", "other.yaml")
    path = recipe_file("base: [small.yaml, other.yaml]\n\nepochs: 7\n", "top.yaml")
    recipe, origins, _ = load([f"recipe={path}", "optimizer.weight_decay=0"])
    assert (recipe.name, recipe.seed, recipe.epochs, recipe.optimizer.lr) == ("top", 1, 7, 0.25)
    assert recipe.optimizer.weight_decay == 0
    assert origins["epochs"] == f"{path}:3"
    assert origins["optimizer.lr"] == f"{tmp_path / 'other.yaml'}:3"
    assert origins["optimizer.momentum"] == f"{tmp_path / 'small.yaml'}:5"
    assert origins["optimizer.weight_decay"] == "command line"
    assert not {"base", "optimizer", "precision"} & origins.keys()


def test_origins_name_only_what_is_in_force(small):
    origins = small("ema=off", "optimizer.name=adam", "augment={hflip: 0}").origins
    assert origins["ema"] == origins["optimizer.name"] == origins["augment.hflip"] == "command line"
    assert not {"ema.decay", "optimizer.momentum", "augment", "recipe"} & origins.keys()


def test_another_variant_keeps_common_keys_and_drops_the_rest(small):
    recipe = small("optimizer.name=adam", "schedule={name: poly, power: 3}").recipe
    assert recipe.optimizer.model_dump(exclude_defaults=True) == {"name": "adam", "lr": 0.5, "weight_decay": 1e-3}
    assert recipe.schedule.model_dump(exclude_defaults=True) == {
        "name": "poly", "power": 3, "warmup_epochs": 1, "final": 0.25,
    }  # fmt: skip


def test_what_is_made_here_takes_no_places_over_and_a_plugin_no_net():
    made, none = load(["recipe=resnet50_imagenet", "data={source: shapes}"]).recipe.data, (None, None)
    assert (made.train, made.val, made.train_samples, made.last_batch) == ("data/shapes", *none, "keep")
    model = load(["recipe=cifar10_resnet20", "model={plugin: own.py:Net, in_channels: 3}"]).recipe.model
    assert (model.name, model.plugin.path) == (None, "own.py:Net")
    with pytest.raises(RecipeError, match=r"pretrained would not reach: set model\.pretrained=null"):
        load(["recipe=quickstart", "model={plugin: own.py:Net, pretrained: x}"])


def test_a_group_without_its_name_is_the_default_variant(recipe_file):
    path = recipe_file("model: {name: resnet18}\ndata: {source: synthetic}\nepochs: 2\nbatch_size: 8\n")
    recipe = load([f"recipe={path}", "optimizer.lr=0.3", "schedule.warmup_epochs=1"]).recipe
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.schedule.name) == ("sgd", 0.3, "constant")


def test_an_empty_mapping_takes_the_inherited_keys_away(small):
    before = ["model.activation=leaky_relu", "model.activation_args={negative_slope: 0.1}"]
    assert small(*before).recipe.model.activation_args == {"negative_slope": 0.1}
    assert small(*before, "model.activation_args={}", "ema={}").recipe.model.activation_args == {}
    assert small("ema={}").recipe.ema.decay == 0.9999


def test_a_run_directory_is_a_recipe(small, tmp_path):
    recipe = small("run.name=first").recipe
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load([f"recipe={tmp_path / 'runs'}"]).recipe == recipe


# Mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "unknown key optimizer.lrr (command line): did you mean optimizer.lr?"),
        ("lr=1", "unknown key lr (command line): did you mean optimizer.lr?"),
        ("evl.every=2", "unknown key evl (command line): did you mean eval?"),
        ("label_smothing=0.1", "unknown key label_smothing (command line): did you mean label_smoothing?"),
        ("ema.xyz=1", "unknown key ema.xyz (command line): ema has decay, every, rescale, start_epoch"),
        (
            "optimizer.betas=[0.9, 0.99]",
            "optimizer.betas (command line): optimizer.name=sgd has no such key (adam, adamw, nadamw, lamb would)",
        ),
        ("batch_size=many", "batch_size=many (command line): must be a whole number"),
        ("batch_size=2.5", "batch_size=2.5 (command line): must be a whole number"),
        ("epochs=-1", "epochs=-1 (command line): must be more than 0"),
        ("batch_size=1", "batch_size=1 (command line): must be 2 or more"),
        ("label_smoothing=1", "label_smoothing=1 (command line): must be less than 1"),
        ("data.max_broken=2", "data.max_broken=2 (command line): must be 1 or less"),
        ("compile=maybe", "compile=maybe (command line): must be true or false"),
        ("wandb.tags=a", "wandb.tags=a (command line): must be a list, as [1, 2]"),
        ("model={block: basic, layers: []}", "model.layers=[] (command line): takes at least 1 items, not 0"),
        ("augment.scale=[1]", "augment.scale=[1] (command line): takes more items"),
        ("augment.scale=[0.1, 0.5, 1]", "augment.scale=[0.1, 0.5, 1] (command line): takes at most 2 items, not 3"),
        ("epochs=.nan", "epochs=NaN (command line): must be a number, and finite"),
        ("precision=bf61", "precision=bf61 (command line) is none of auto, bf16, fp16, no: did you mean bf16?"),
        ("model.name=resnet51", "model.name=resnet51 (command line) is not known: did you mean resnet50 or resnet18?"),
        ("model.name=resnet110", "did you mean resnet110_cifar or preactresnet110_cifar?"),
        ("model.name=ResNet-50", "did you mean resnet50?"),
        ("model.name=WRN-28-10", "did you mean wide_resnet28_10?"),
        ("model.name=se_resnet50", "did you mean seresnet50?"),
        ("model.name=resnet1001", "did you mean preactresnet1001_cifar?"),
        ("model.name=nothing", "model.name=nothing (command line) is none of resnet18, resnet34, "),
        ("model.kernels=[2, 3]", "model.kernels.0=2 (command line) is none of 1, 3, 5, 7"),
        ("eval.metric=map", "eval.metric=map is none of top1, top5, loss (plugins.metrics adds your own)"),
        ("class_weights={}", "class_weights (command line) names no class"),
        ("data.pixel_max=9", "data.pixel_max has no effect with data.source=synthetic"),
        ("model={pretrained: x, unfreeze: {0: all}}", "unfreeze lets all train from epoch 0 on"),
        ("model={pretrained: x, unfreeze: {1: layer4, 2: all}}", "model.unfreeze has 2: all, which epochs 2 do not"),
        (
            "model={pretrained: IMAGENET1K_V1, attention: se, norm: group, maxpool: false}",
            "has attention=se, norm=group, and pretrained=IMAGENET1K_V1 are weights of resnet18 without",
        ),
        ("model.layers=[3, x, 3]", "model.layers.1=x (command line): must be a whole number"),
        ("model.channels.layer1.0.conv1=32", "in braces, as 'model.channels={layer1.0.conv1: 32}'"),
        ("optimizer.name=adagrad", "optimizer.name=adagrad (command line) is none of adam, adamw, lamb, lars, nadamw"),
        ("optimizer.name=[sgd]", 'optimizer.name=["sgd"] (command line) is none of adam'),
        ("optimizer.name=null", "optimizer.name=null (command line) is none of adam"),
        (
            "schedule.name=cos",
            "schedule.name=cos (command line) is none of constant, cosine, cosine_restarts, exponential",
        ),
        ("data.source=imagenet", "data.source=imagenet (command line) is none of cifar10, cifar100, csv, huggingface"),
        ("data.source=csv", "data.train is missing: Where the training images are"),
        ("data={}", "data.source is missing: one of cifar10, cifar100, csv"),
        (
            "data={source: csv, train: x}",
            "data (command line) needs val (where the validation images are) or",
        ),
        ("optimizer=adam", "optimizer=adam (command line) must be a group of keys: did you mean optimizer.name=adam?"),
        ("model=resnet50", "model=resnet50 (command line) must be a group of keys: did you mean model.name=resnet50?"),
        ("augment=none", "augment=none (command line) must be a group of keys"),
        ("optimizer.lr.peak=1", 'optimizer.lr={"peak": 1} (command line): must be a number'),
        (
            "run.name=true",
            "run.name=true (command line): must be text, in quotes: run.name='\"true\"'",
        ),
        ("checkpoint.every=2:30", "checkpoint.every=2:30 (command line): must be a number and a unit, as in '500 step"),
        ("schedule.warmup_epochs=2", "schedule.warmup_epochs 2 leaves nothing of epochs 2"),
        ("optimizer.momentum=0", "optimizer (command line) nesterov needs momentum above 0"),
        ("model.block=basic", "model (command line) has the name resnet18 and also block or layers"),
        ("optimizer.lr=0.1,0.2", "; several values at once are a sweep (launch sweep)"),
        ("model.name=resnet18,resnet50", "; several values at once are a sweep (launch sweep)"),
        ("optimizer.name=sgd,adam", "; several values at once are a sweep (launch sweep)"),
        ("seed=[1", "cannot read the value of seed=[1 (command line): expected ',' or ']'"),
        ("run.name=@x", "cannot read the value of run.name=@x (command line): found character '@'"),
        ("epochs=!!int x", "cannot read the value of epochs=!!int x (command line)"),
        ("epochs=!!python/name:os.system", "cannot read the value of epochs=!!python/name:os.system (command line)"),
        ("epochs", "cannot read 'epochs', arguments have the form key=value"),
        ("quickstart", "cannot read 'quickstart', arguments have the form key=value: did you mean recipe=quickstart?"),
        ("--epochs=3", "did you mean epochs=3?"),
        ("--epochs", "did you mean epochs=...?"),
    ],
)
def test_a_mistake_on_the_command_line(small, override, message):
    text = mistakes(small, override)
    assert message in text
    assert "\n" not in text


def test_a_key_that_only_another_variant_has_is_no_key_even_if_given_before_the_name(small):
    assert "unknown key optimizer.momentum (command line)" in mistakes(
        small, "optimizer.momentum=0.9", "optimizer.name=adam"
    )


def test_mistakes_are_reported_together_each_with_its_place(recipe_file):
    path = recipe_file(SMALL + "\nlabel_smoothing: a\naugment:\n  hflp: 0.5\n")
    text = mistakes(load, [f"recipe={path}", "epochs=x", "optimizer.lrr=2", "schedule.name=up"])
    assert sorted(line.split(":", 1)[0] if "command" in line else line for line in text.splitlines()) == [
        "epochs=x (command line)",
        f"label_smoothing=a ({path}:9): must be a number",
        "schedule.name=up (command line) is none of constant, cosine, cosine_restarts, exponential, multistep, "
        "onecycle, poly, step, triangular",
        f"unknown key augment.hflp ({path}:11): did you mean augment.hflip?",
        "unknown key optimizer.lrr (command line)",
    ]


def test_missing_keys_say_what_they_are(recipe_file):
    text = mistakes(load, [f"recipe={recipe_file('seed: 1')}"])
    assert "epochs is missing: Passes over the training data" in text
    assert "model is missing" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "epochs: 3\n", "small.yaml:8: epochs is given twice (first in {path}:3)"),
        ("model:\n  name: resnet18\n  name: resnet50\n", "small.yaml:3: model.name is given twice (first in {path}:2)"),
        ("eval.every: 2\n" + SMALL, "unknown key eval.every ({path}:1): in a file its groups are nested"),
        ("epochs: [1\nseed: 2", "cannot read recipe {path}: "),
        ("- a\n- b\n", "{path} holds no keys: a recipe is a YAML mapping"),
        ("a: 1\n---\nb: 2\n", "cannot read recipe {path}: but found another document (line 2)"),
        ("a: &x {b: *x}\n", "cannot read recipe {path}: maximum recursion depth"),
        (
            "epochs: !!python/object/apply:os.getcwd []\n",
            "cannot read recipe {path}: could not determine a",
        ),
        ("base: missing.yaml\n", "no recipe file {folder}/missing.yaml ({path}:1)"),
        ("base: quickstrat\n", "no recipe 'quickstrat' ({path}:1): did you mean quickstart?"),
        ("base: 3\n", "base=3 ({path}:1) must be a recipe's name or a list of names"),
        ("base:\n", "base=null ({path}:1) must be a recipe's name or a list of names"),
        ("base: small.yaml\n", "base goes round in a circle: small -> small"),
        ("1: 2\n" + SMALL, "keys should be strings"),
    ],
)
def test_a_mistake_in_a_file(recipe_file, text, message):
    path = recipe_file(text)
    assert message.format(path=path, folder=path.parent) in mistakes(load, [f"recipe={path}"])


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "noise.yaml").write_bytes(b"\xff\xfe\x00a")
    assert "cannot read recipe" in mistakes(load, [f"recipe={tmp_path / 'noise.yaml'}"])
    (tmp_path / "folder.yaml").mkdir()
    assert "no recipe file" in mistakes(load, [f"recipe={tmp_path / 'folder.yaml'}"])


def test_no_recipe_or_two_or_an_unknown_one():
    assert "give one recipe=NAME; there are: cats_vs_dogs_resnet18" in mistakes(load, ["epochs=1"])
    assert "give one recipe=NAME" in mistakes(load, ["recipe=quickstart", "recipe=quickstart"])
    assert "did you mean resnet50_imagenet" in mistakes(load, ["recipe=resnet50_imagnet"])
    assert "there are: cats_vs_dogs_resnet18" in mistakes(load, ["recipe=qqqqq"])


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("abe: -[]{}&*!|>%@`#,\n\"'0.~?<"), max_size=20))
@example("!!timestamp x")
@example("[" * 400)
@example("{[a]: 1}")
def test_no_text_brings_another_error_than_a_recipe_error(text):
    for key in ("optimizer", "optimizer.name", "data.source", "model.activation_args", "augment.progressive", "ema"):
        with suppress(RecipeError):
            load(["recipe=quickstart", f"{key}={text}"])


# Writing a recipe and what identifies it

WORDS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=30),
    st.sampled_from(["off", "no", "1e-4", "1e5", "08", "2:30", "1_000", "null", "~", "0x1F", ".5", "2024-01-01", "y"]),
)
FLOATS = st.floats(1e-12, 1e12)
KEYS = {
    "optimizer.lr": FLOATS,
    "optimizer.weight_decay_norm": st.none() | st.floats(0, 1),
    "optimizer.name": st.sampled_from(["sgd", "adam", "adamw", "lamb", "lars"]),
    "schedule": st.sampled_from([{"name": name} for name in ("constant", "step", "cosine", "poly", "onecycle")]),
    "augment.scale": st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)).map(list),
    "augment.progressive": st.lists(st.integers(8, 999), max_size=3).map(
        lambda sizes: [{"epoch": epoch / 3, "size": size} for epoch, size in enumerate(sizes)]
    ),
    "model.activation": st.sampled_from(["relu", "silu", "leaky_relu"]),
    "model.layers": st.none(),
    "data.max_train": st.none() | st.integers(1, 10**9),
    "data.train": WORDS,
    "checkpoint.every": st.sampled_from(["1 epoch", "20 steps", "2.5 minutes", "auto"]),
    "ema": st.none() | st.fixed_dictionaries({"decay": st.floats(0.1, 0.99), "every": st.integers(1, 9)}),
    "grad_clip_norm": st.none() | FLOATS,
    "seed": st.integers(0, 2**63 - 1),
    "wandb.notes": st.none() | WORDS,
    "wandb.tags": st.lists(WORDS, max_size=3),
    "description": WORDS,
    "evidence": st.none() | st.fixed_dictionaries({"source": WORDS, "band": st.just([70, 71.5])}),
}


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional=KEYS))
def test_every_recipe_is_read_back_as_it_was_written(tmp_path_factory, chosen):
    overrides = [f"{key}={yaml.dump(value, Dumper=Dumper)}" for key, value in chosen.items()]
    recipe = load(["recipe=resnet50_imagenet_tv2", *overrides]).recipe
    for key, value in chosen.items():
        if isinstance(value, str) and key != "checkpoint.every":
            group, _, leaf = key.rpartition(".")
            assert getattr(getattr(recipe, group) if group else recipe, leaf) == value
    path = tmp_path_factory.mktemp("written") / "recipe.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    again = load_file(path).recipe
    assert again == recipe
    assert digest(again) == digest(recipe)


def test_digest_is_of_the_training_only(small):
    same = ["wandb.project=x", "wandb.tags=[a]", "run.name=y", "run.root=z", "resume=never", "progress=off", "name=n"]
    assert digest(small(*same, "log_every=7", "description=d").recipe) == digest(small().recipe)
    others = ["seed=1", "optimizer.lr=0.4", "optimizer.name=adam", "ema=off", "model.name=resnet34", "epochs=3"]
    assert len({digest(small(change).recipe) for change in ["seed=0", *others]}) == 1 + len(others)


def test_digest_is_pinned_and_does_not_change_with_explicit_defaults(small):
    defaults = ["seed=0", "augment.train_size=224", "optimizer.lr_for_batch_size=null", "eval={every: 1}"]
    assert digest(small(*defaults).recipe) == digest(small().recipe) == "abb0d6005005"


def test_recipes_are_frozen(small):
    recipe = small().recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 3
    assert isinstance(recipe, Recipe)


def test_loading_recipes_imports_no_torch():
    code = "import sys, recipes.load, recipes.plan, recipes.schema.json_schema; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_loader_leaves_pyyaml_itself_alone():
    assert yaml.safe_load("off") is False
    assert yaml.load("off", Loader) == "off"


@pytest.mark.parametrize("name", ["1.10", "2024_01", "1e-4", "007"])
def test_text_that_looks_like_a_number_keeps_its_spelling(name):
    assert load(["recipe=quickstart", f"run.name={name}"]).recipe.run.name == name


# Faults that were met by users


def test_text_in_lists_keeps_its_spelling(tmp_path):
    assert load(["recipe=quickstart", "wandb.tags=[1e-4, 1.10, 2024_01]"]).recipe.wandb.tags == [
        "1e-4",
        "1.10",
        "2024_01",
    ]
    file = tmp_path / "tagged.yaml"
    file.write_text("base: quickstart\nwandb: {tags: [1e-4, 007], notes: 1.10}\naugment: {scale: [1e-1, 1]}\n")
    recipe = load([f"recipe={file}"]).recipe
    assert (recipe.wandb.tags, recipe.wandb.notes, recipe.augment.scale) == (["1e-4", "007"], "1.10", (0.1, 1.0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["optimizer.name=sdg"],
            "optimizer.name=sdg (command line) is none of adam, adamw, lamb, lars, nadamw, rmsprop, rmsprop_tf, sgd: "
            "did you mean sgd?",
        ),
        (["data.source=imagefolder"], "did you mean image_folder?"),
        (["schedule.name=cosin"], "did you mean cosine or cosine_restarts?"),
        (["epochs=3", "swa={start_epoch: 2, every: 2}"], "swa takes the weights after epoch 2 alone"),
        (["schedule.name=polynomial"], "did you mean poly?"),
        (["grad_clip_adaptive=0.01", "grad_clip_norm=1"], "set them to off, or it"),
        (["optimizer={layer_decay: 0.8, backbone_lr_scale: 0.1}"], "set backbone_lr_scale=1, or layer_decay=1"),
        (["optimizer=sdg"], "must be a group of keys: did you mean optimizer.name=sgd?"),
        (["model=resnet51"], "must be a group of keys: did you mean model.name=resnet50?"),
        (["ema=true"], "must be a group of keys: ema={} takes its defaults"),
        (["device=gpu"], "is none of auto, cuda, cpu: did you mean cuda?"),
        (["warmup_epochs=2"], "did you mean schedule.warmup_epochs?"),
        (["gamma=0.1"], "did you mean schedule.gamma?"),
        (["batch=8"], "did you mean batch_size?"),
        (["image_size=64"], "did you mean augment.train_size?"),
        (["model={name: resnet18, pretrained: IMAGENET1K_V2}"], "torchvision's weights for resnet18 are IMAGENET1K_V1"),
        (["learning_rate=0.1"], "unknown key learning_rate (command line): did you mean optimizer.lr?"),
        (["weight_decay=0.1"], "did you mean optimizer.weight_decay?"),
        (["model.activation=swish"], "model.activation=swish (command line): torch calls it silu"),
        (
            ["model.activation=leaky_relu", "model.activation_args={negative_slope:0.1}"],
            "write model.activation_args.negative_slope=0.1, or a space after the colon",
        ),
        (["model.name=null", "model.block=basic", "model.layers=[1,1,1]", "model.pretrained=V1"], "give a file"),
        (["model.num_classes=7"], "model.num_classes=7, but data.source=shapes has 10 classes here"),
        (
            ["model.activation=hardtanh", "model.activation_args.min_val=2"],
            "fit hardtanh: min_val 2 is not below max_val 1",
        ),
        (["model.activation=rrelu", "model.activation_args.lower=0.5"], "lower 0.5 is not below upper 0.333333"),
        (["model.activation=softshrink", "model.activation_args.lambd=-1"], "lambd must be 0 or more"),
        (["model.activation=celu", "model.activation_args.alpha=0"], "alpha must not be 0"),
        (["device=cpu", "precision=fp16"], "precision=fp16 needs a GPU"),
        (["data.val=x"], "val has no effect with source=shapes"),
    ],
)
def test_mistakes_say_what_would_be_right(words, message):
    with pytest.raises(RecipeError) as error:
        load(["recipe=quickstart", *words])
    assert message in str(error.value)


def test_a_frozen_backbone_says_which_key_to_change():
    with pytest.raises(RecipeError, match=r"set optimizer\.backbone_lr_scale=1"):
        load(["recipe=finetune_resnet50", "model.freeze_backbone=true"])
    frozen = ["recipe=finetune_resnet50", "model.freeze_backbone=true", "optimizer.backbone_lr_scale=1"]
    for word, message in (("optimizer.layer_decay=0.8", "layer_decay=1"), ("grad_clip_adaptive=0.01", "adaptive=off")):
        with pytest.raises(RecipeError, match=f"set .*{message}"):
            load([*frozen, word])


def test_a_recipe_beside_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("base: quickstart\n")
    (tmp_path / "other.yaml").write_text("base: mine\n")
    assert mistakes(load, ["recipe=other.yaml"]).endswith("other.yaml:1): did you mean mine.yaml?")
    with pytest.raises(RecipeError, match=r"no recipe 'mine': did you mean recipe=mine\.yaml\?"):
        load(["recipe=mine"])


def test_every_name_that_is_usual_elsewhere_leads_to_a_key():
    assert all(fields_of(key) for key in SIMILAR.values())
    assert not any(fields_of(name) for name in SIMILAR)


def test_names_of_recipes_are_told_apart_whatever_folder_they_lie_in():
    assert len(SHIPPED) == len(set(SHIPPED)) == len(names())


# A run's own recipe.yaml


def test_a_runs_recipe_of_another_version_is_read(tmp_path):
    """Of 0.1.0, with a key that is gone; and of a version to come, with keys that are not known yet."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text("{}")
    recipe = load(["recipe=quickstart", "run.name=run"]).recipe
    (run / "recipe.yaml").write_text(dump(recipe).replace("  keep: 2\n", "  keep: 2\n  max_failures: 5\n"))
    loaded = load_file(run / "recipe.yaml")
    assert (loaded.recipe, loaded.notes) == (recipe, ())

    text = run_recipe_text(recipe, run / "none.yaml")
    assert text.startswith("format: 1\n")
    newer = text.replace("format: 1", "format: 2\nfuture: {depth: 3}").replace(
        "  keep: 2\n", "  keep: 2\n  where: far\n"
    )
    (run / "recipe.yaml").write_text(newer)
    loaded = load([f"recipe={run}", "epochs=5"])
    assert loaded.recipe == recipe.model_copy(update={"epochs": 5.0})
    assert loaded.notes == ("ignored, as this version does not know them: checkpoint.where, future",)
    rewritten = yaml.safe_load(run_recipe_text(recipe, run / "recipe.yaml"))
    assert (rewritten["future"], rewritten["checkpoint"]["where"]) == ({"depth": 3}, "far")
    with pytest.raises(RecipeError, match=r"unknown key checkpoint\.were"):
        load([f"recipe={run}", "checkpoint.were=1"])


def test_unknown_keys_in_lists_and_in_groups_that_go_are_not_kept(tmp_path):
    file = tmp_path / "recipe.yaml"
    (tmp_path / "status.json").write_text("{}")
    recipe = load(["recipe=quickstart", "ema={}", "augment.progressive=[{epoch: 0, size: 32}]"]).recipe
    newer = dump(recipe).replace("    size: 32\n", "    size: 32\n    soft: 1\n").replace("ema:\n", "ema:\n  warm: 2\n")
    file.write_text(newer)
    loaded = load_file(file)
    assert (loaded.recipe, len(loaded.notes)) == (recipe, 1)
    assert "augment.progressive.0.soft, ema.warm" in loaded.notes[0]
    for changed in (recipe, recipe.model_copy(update={"ema": None})):
        file.write_text(newer)
        file.write_text(run_recipe_text(changed, file))
        assert load_file(file).recipe == changed


@pytest.mark.parametrize("text", ["future: 3", "format: 1\nfuture: 3", "format: 2\nfuture: 3", "format: x"])
def test_an_unknown_key_of_a_users_recipe_stays_a_mistake(recipe_file, text):
    path = recipe_file(f"base: quickstart\n{text}\n")
    (path.parent / "status.json").write_text("{}")
    with pytest.raises(RecipeError, match="unknown key f"):
        load([f"recipe={path}"])


def test_a_copy_of_a_runs_recipe_is_a_users(recipe_file):
    """As for any other recipe a mistyped key is a mistake; of a newer version's copy it need not be one."""
    recipe = load(["recipe=quickstart"]).recipe
    text = run_recipe_text(recipe, Path("nowhere")).replace("label_smoothing", "label_smothing")
    assert "did you mean label_smoothing?" in mistakes(load, [f"recipe={recipe_file(text)}"])
    loaded = load([f"recipe={recipe_file(text.replace('format: 1', 'format: 2'))}"])
    assert loaded.notes == ("ignored, as this version does not know them: label_smothing",)


def test_a_users_recipe_of_an_earlier_version_is_read(recipe_file):
    """`launch show recipe=NAME > mine.yaml` and a sweep's best.yaml hold every key that there was."""
    recipe = load(["recipe=quickstart"]).recipe
    path = recipe_file(dump(recipe).replace("  keep: 2\n", "  keep: 2\n  max_failures: 3\n"))
    assert load([f"recipe={path}"]).recipe == recipe
    assert "unknown key checkpoint.max_failures" in mistakes(load, ["recipe=quickstart", "checkpoint.max_failures=3"])
