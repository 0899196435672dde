import math
import random
import re
import statistics
import string
import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.sweep.grammar import expand, number_text, split_commas
from launch.sweep.points import grid, sample, search_bounds, size, text_of
from launch.sweep.sweep_types import Distribution, HalvingRule, Values
from launch.sweep.trials import to_words, trials
from launch.sweep.wandb_read import DISTRIBUTIONS, from_file
from launch.sweep.words import from_words
from recipes.errors import RecipeError
from recipes.load import load, parse_value


def mistakes(call, *arguments):
    with pytest.raises(RecipeError) as error:
        call(*arguments)
    return str(error.value)


# The values after key=


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.25,0.5,1.0", ["0.25", "0.5", "1.0"]),
        ("a", ["a"]),
        ("", [""]),
        ("resnet50, resnet101", ["resnet50", "resnet101"]),
        ("[1,1,1],[2,2,2]", ["[1,1,1]", "[2,2,2]"]),
        ("{source: synthetic, samples: 400}", ["{source: synthetic, samples: 400}"]),
        ("{source: shapes, train: 'a,}b'},{source: csv}", ["{source: shapes, train: 'a,}b'}", "{source: csv}"]),
        ("'a, b',\"c, d\"", ["'a, b'", '"c, d"']),
        ("'it''s, so',x", ["'it''s, so'", "x"]),
        ('"a\\", b",x', ['"a\\", b"', "x"]),
        ("it's,that's", ["it's", "that's"]),
        ("a) b,c]", ["a) b", "c]"]),
        ("range(0,3)", ["0", "1", "2"]),
        ("range(3)", ["0", "1", "2"]),
        ("range(5,0,-2)", ["5", "3", "1"]),
        ("range(0.1, 0.4, 0.1)", ["0.1", "0.2", "0.3"]),
        ("range(0,1,0.25)", ["0", "0.25", "0.5", "0.75"]),
        ("range(1e-4,4e-4,1e-4)", ["0.0001", "0.0002", "0.0003"]),
        ("range(9223372036854775805,9223372036854775808)", [f"922337203685477580{digit}" for digit in "567"]),
        ("log(1e-4,1e-1,4)", ["0.0001", "0.001", "0.01", "0.1"]),
        ("log(8,1,4)", ["8", "4", "2", "1"]),
        ("log(0.1,1,3)", ["0.1", "0.316227766017", "1"]),
        ("linspace(0,1,5)", ["0", "0.25", "0.5", "0.75", "1"]),
        ("linspace(0.1,0.3,3)", ["0.1", "0.2", "0.3"]),
        ("0.05,log(0.1,10,3)", ["0.05", "0.1", "1", "10"]),
    ],
)  # fmt: skip
def test_values_of_a_word(text, values):
    assert expand("optimizer.lr", text) == values


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=0,,1", "cannot read seed=0,,1 (command line): there is nothing before or after a comma"),
        ("seed=0,", "there is nothing before or after a comma"),
        ("model.layers=[1,2", "cannot read model.layers=[1,2 (command line): [ is not closed by ]"),
        ("seed=range(0,3", "( is not closed by )"),
        ("data={source: 'a,b}", "the quote ' is not closed"),
        ("seed=range(0,3,0)", "cannot read seed=range(0,3,0) (command line): the step of range must not be 0"),
        ("seed=range(3,0)", "range(3,0,1) is empty: it goes from its start up to below its stop"),
        ("seed=range(a,b)", "range(a,b) must have the form range(start,stop,step), of numbers"),
        ("seed=range()", "range() must have the form range(start,stop,step), of numbers"),
        ("seed=range(1,2,3,4)", "must have the form range(start,stop,step)"),
        ("seed=range(0,1e9)", "range has 1000000000 values: at most 100000"),
        ("seed=range(0,1e999999999)", "must have the form range(start,stop,step), of numbers"),
        ("seed=range(0,.inf)", "must have the form range(start,stop,step), of numbers"),
        ("optimizer.lr=log(0,1,3)", "log(a,b,n) needs a and b above 0"),
        ("optimizer.lr=log(1,2)", "log(1,2) must have the form log(a,b,n), of numbers"),
        ("optimizer.lr=linspace(1,2,1)", "linspace(a,b,n) needs a whole number n of 2 or more: both ends count"),
        ("optimizer.lr=log(1,2,2.5)", "log(a,b,n) needs a whole number n of 2 or more"),
        ("optimizer.lr=uniform(0,1)", "there is no uniform(...): use range(start,stop,step), log(a,b,n), lins"),
        ("wandb.notes=a, b", "wandb.notes does not change the training; give one value, or in quotes if the"),
        ("log_every=1,2", "log_every=1,2 (command line): log_every does not change the training; give one value"),
        ("--seed=1,2", "did you mean seed=1,2?"),
        ("seed", "cannot read 'seed', arguments have the form key=value"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_word(word, message):
    text = mistakes(from_words, ["recipe=quickstart", word])
    assert message in text
    assert "\n" not in text


def test_mistakes_of_several_words_come_together():
    text = mistakes(from_words, ["seed=0,,1", "recipe=quickstart", "optimizer.lr=log(1,2)"])
    assert [line.split("=")[0] for line in text.splitlines()] == ["cannot read seed", "cannot read optimizer.lr"]


def test_no_recipe_or_a_key_given_twice():
    assert "give recipe=NAME, or several as in recipe=A,B; there are: cats" in mistakes(from_words, ["seed=1,2"])
    for words in (["recipe=a", "recipe=b"], ["seed=1", "seed=2,3"], ["seed=1,2", "seed=3"]):
        assert "is given twice: give all its values at once" in mistakes(from_words, ["recipe=quickstart", *words])
    assert from_words(["recipe=quickstart", "seed=1", "seed=2"]).fixed["seed"] == "2"


def test_commas_in_text_that_is_one_value():
    words = ["recipe=quickstart", "wandb.notes='a, b (c'", "description=say(x)", "data.train=a(b)", "wandb.tags=[a,b]"]
    sweep = from_words(words)
    assert not sweep.parameters
    assert to_words(sweep, {}) == words
    assert load(to_words(sweep, {})).recipe.wandb.notes == "a, b (c"


PIECES = st.one_of(
    st.text(string.ascii_letters + string.digits + "._- :'/", min_size=1).filter(lambda text: text.strip()[:1] != "'"),
    st.text("ab, ][)(}{'", max_size=8).map(lambda text: "'" + text.replace("'", "''") + "'"),
    st.text('ab, ][)(}{"\\', max_size=8).map(lambda text: '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'),
    st.lists(st.integers(), max_size=3).map(str),
    st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(), max_size=2), max_size=3).map(str),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES.filter(lambda text: ": '" not in text and ":'" not in text), min_size=1, max_size=4))
def test_splitting_takes_apart_what_commas_joined(pieces):
    assert split_commas(",".join(pieces)) == pieces


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63))
def test_numbers_are_read_back_as_they_were(number):
    assert parse_value(number_text(number)) == number
    assert len(number_text(number)) <= max(len(repr(number)), 20)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-7, 7).filter(bool))
def test_range_is_pythons(start, stop, step):
    expected = [str(number) for number in range(start, stop, step)]
    if expected:
        assert expand("seed", f"range({start},{stop},{step})") == expected
        assert expand("seed", f"range({start / 8},{stop / 8},{step / 8})") == [
            number_text(number / 8) for number in range(start, stop, step)
        ]


# The grid


def test_grid_varies_the_last_key_fastest_and_keeps_what_has_one_value():
    sweep = from_words(["recipe=quickstart", "optimizer.lr=0.1,0.2", "epochs=2", "seed=0,1,0"])
    assert (sweep.method, sweep.fixed) == ("grid", {"recipe": "quickstart", "epochs": "2"})
    assert sweep.parameters == {"optimizer.lr": Values(("0.1", "0.2")), "seed": Values(("0", "1"))}
    assert sweep.notes == ("seed=0,1,0: a value is given twice and tried once",)
    assert size(sweep) == 4
    assert [(point["optimizer.lr"], point["seed"]) for point in grid(sweep)] == [*product(["0.1", "0.2"], "01")]
    assert to_words(sweep, next(grid(sweep))) == ["recipe=quickstart", "optimizer.lr=0.1", "epochs=2", "seed=0"]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), min_size=1, max_size=4))
def test_grid_is_the_product(lists):
    keys = ["seed", "epochs", "batch_size", "max_steps"][: len(lists)]
    words = [f"{key}={','.join(map(str, values))}" for key, values in zip(keys, lists, strict=True)]
    sweep = from_words(["recipe=quickstart", *words])
    points = [*grid(sweep)]
    assert len(points) == size(sweep) == math.prod(map(len, lists))
    wanted = [[f"{key}={value}" for key, value in zip(keys, point, strict=True)] for point in product(*lists)]
    assert [to_words(sweep, point)[1:] for point in points] == wanted


def test_several_recipes_and_groups_are_swept():
    data = "data={source: synthetic, samples: 400},{source: shapes}"
    sweep = from_words(["recipe=quickstart,cifar10_resnet18", data, "model.name=resnet18,resnet34"])
    found, notes = trials(sweep, grid(sweep))
    assert len(found) == 8
    assert not notes
    assert {(t.recipe.name, t.recipe.data.source, t.recipe.model.name) for t in found} == {
        *product(["quickstart", "cifar10_resnet18"], ["synthetic", "shapes"], ["resnet18", "resnet34"])
    }


def test_the_order_of_the_words_decides_what_overrides_what():
    first = from_words(["recipe=quickstart", "ema.decay=0.9", "ema=off,{decay: 0.5}"])
    assert [trial.recipe.ema and trial.recipe.ema.decay for trial in trials(first, grid(first))[0]] == [None, 0.5]
    second = from_words(["recipe=quickstart", "ema=off,{decay: 0.5}", "ema.decay=0.9"])
    assert [trial.recipe.ema and trial.recipe.ema.decay for trial in trials(second, grid(second))[0]] == [0.9]


# Trials


def test_a_trial_is_what_load_makes_of_its_words():
    sweep = from_words(["recipe=quickstart", "optimizer.lr=0.5,1", "seed=1,2", "wandb.group=g"])
    found, notes = trials(sweep, grid(sweep))
    assert not notes
    assert [re.fullmatch(r"lr=(0.5|1),seed=[12]-[0-9a-f]{6}", trial.name) is not None for trial in found] == [True] * 4
    assert len({trial.name for trial in found}) == len({trial.digest for trial in found}) == 4
    for trial in found:
        assert trial.recipe == load(trial.words).recipe
        assert trial.name.endswith(trial.digest[:6])
        assert (str(trial.recipe.seed), trial.recipe.wandb.group) == (trial.point["seed"], "g")


def test_a_trials_name_does_not_depend_on_the_other_trials():
    names = []
    for seeds in ("0,1", "2,1,3"):
        sweep = from_words(["recipe=quickstart", f"seed={seeds}", "optimizer.lr=0.1,0.2"])
        names.append({trial.name for trial in trials(sweep, grid(sweep))[0]})
    assert len(names[0] & names[1]) == 2


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["seed=1"], "quickstart"),
        (["optimizer.name=sgd,adam"], "optimizer=sgd"),
        (["optimizer.weight_decay=0.123456789,1", "optimizer.lr=1e-5,1"], "weight_decay=0.1235,lr=1e-5"),
        (["model.name=resnet18,resnet34", "optimizer.name=sgd,adam"], "model=resnet18,optimizer=sgd"),
        (["eval.every=1,2", "checkpoint.every=1 epoch,2 steps"], "eval.every=1,checkpoint.every=1_epoch"),
        (["model.name=null", "model.block=basic", "model.layers=[1,1,1],[2,2,2]"], "layers=1_1_1"),
        (["data={source: synthetic, samples: 400},{source: shapes}"], "data=source_synthetic_samples_400"),
    ],
)
def test_names_of_trials_are_short_and_safe(words, name):
    sweep = from_words(["recipe=quickstart", *words])
    assert trials(sweep, grid(sweep))[0][0].name[:-7] == name


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abA/\\ é$'\"\n\t~é*.", min_size=1, max_size=60), min_size=2, max_size=4, unique=True))
def test_no_value_makes_a_name_that_is_no_file_name(texts):
    sweep = from_words(["recipe=quickstart", "data.source=shapes", "seed=1,2"])
    points = [{"data.train": f"'{text.replace(chr(39), chr(39) * 2)}'", "seed": "1"} for text in texts]
    wide = type(sweep)("grid", sweep.fixed, sweep.parameters, (*sweep.order, "data.train"))
    found, _ = trials(wide, points)
    assert all(re.fullmatch(r"[A-Za-z0-9._+=,-]{8,100}", trial.name) for trial in found)
    assert len({trial.name for trial in found}) == len(found)


def test_points_of_the_same_training_are_one_trial():
    sweep = from_words(["recipe=quickstart", "optimizer.lr=0.1,0.10,1e-1,0.2"])
    found, notes = trials(sweep, grid(sweep))
    assert [trial.point["optimizer.lr"] for trial in found] == ["0.1", "0.2"]
    first = "optimizer.lr=0.10 is the same training as optimizer.lr=0.1: one trial, and 1 more of the kind"
    assert notes == [first]


def test_mistakes_of_all_trials_are_reported_once_with_their_number():
    sweep = from_words(["recipe=quickstart", "optimizer.lr=-1,0.1,x", "seed=0,1", "labl_smoothing=0.1"])
    assert mistakes(trials, sweep, grid(sweep)).splitlines() == [
        "optimizer.lr=-1 (command line): must be more than 0 (in 2 of 6 trials)",
        "unknown key labl_smoothing (command line): did you mean label_smoothing? (in 6 of 6 trials)",
        "optimizer.lr=x (command line): must be a number (in 2 of 6 trials)",
    ]
    many = from_words(["recipe=quickstart", "optimizer.lr=range(-40,0)"])
    lines = mistakes(trials, many, grid(many)).splitlines()
    assert (len(lines), lines[-1]) == (21, "... and 20 more mistakes")
    alone = from_words(["recipe=quickstat"])
    assert mistakes(trials, alone, grid(alone)) == "no recipe 'quickstat': did you mean quickstart?"


# W&B's files


@pytest.fixture
def sweep_file(tmp_path):
    def write(text):
        path = tmp_path / "sweep.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def parameter(sweep_file):
    """Read a file with one parameter, written in braces, and give what it is."""

    def read(text, method="random", key="optimizer.lr"):
        more = "metric: {name: val/loss}\n" if method == "bayes" else ""
        path = sweep_file(f"method: {method}\n{more}parameters:\n  {key}: {text}\n")
        sweep = from_file(path, ["recipe=quickstart"])
        return sweep.parameters[key] if key in sweep.parameters else sweep.fixed[key]

    return read


EXAMPLES = {
    "grid": """\
program: train.py
method: grid
metric: {name: val_loss, goal: minimize}
parameters:
  learning_rate:
    values: [0.1, 1e-2]
  epochs:
    value: 2
  optimizer:
    parameters:
      momentum: {values: [0.8, 0.9]}
early_terminate: {type: hyperband, min_iter: 3}
""",
    "random": """\
program: train.py
name: sweepdemo
project: demo
method: random
metric: {name: accuracy, goal: maximize, target: 0.9}
parameters:
  recipe: {value: cifar10_resnet18}
  batch_size: {distribution: q_log_uniform_values, max: 256, min: 32, q: 8}
  epochs: {value: 1}
  learning_rate: {distribution: uniform, max: 0.1, min: 0}
  optimizer: {values: ["adam", "sgd"]}
  seed: {min: 0, max: 9}
command: ["${env}", python]
run_cap: 20
""",
    "bayes": """\
program: train.py
method: bayes
metric: {name: validation.loss, goal: minimize}
parameters:
  lr: {distribution: log_uniform, min: -9.2, max: -2.3}
  weight_decay: {min: 0.0, max: 1e-3}
early_terminate: {type: hyperband, s: 2, eta: 3, max_iter: 27, strict: true}
""",
}


def test_a_grid_file(sweep_file):
    sweep = from_file(sweep_file(EXAMPLES["grid"]), ["recipe=quickstart", "seed=0,1"])
    assert sweep.parameters == {
        "optimizer.lr": Values(("0.1", "0.01")),
        "optimizer.momentum": Values(("0.8", "0.9")),
        "seed": Values(("0", "1")),
    }
    assert sweep.fixed == {"epochs": "2", "recipe": "quickstart"}
    assert sweep.metric == "loss"
    assert sweep.early_stop is not None
    assert sweep.early_stop.rungs[:4] == (3, 9, 27, 81)
    assert sweep.notes == (
        "program: not used, the recipe says what is run",
        "learning_rate is read as optimizer.lr",
        "metric val_loss is read as val/loss",
    )
    found, _ = trials(sweep, grid(sweep))
    assert [(trial.recipe.optimizer.lr, trial.recipe.seed) for trial in found] == [
        (0.1, 0), (0.1, 1), (0.1, 0), (0.1, 1), (0.01, 0), (0.01, 1), (0.01, 0), (0.01, 1),
    ]  # fmt: skip


def test_a_random_file(sweep_file):
    path = sweep_file(EXAMPLES["random"])
    sweep = from_file(path)
    assert (sweep.method, sweep.run_cap, sweep.name) == ("random", 20, "sweepdemo")
    assert sweep.fixed == {"recipe": "cifar10_resnet18", "epochs": "1", "wandb.project": "demo"}
    assert sweep.metric == "top1"
    assert sweep.origins["optimizer.name"] == f"{path}:11"
    found, _ = trials(sweep, [sample(sweep, 0, number) for number in range(20)])
    assert {trial.recipe.optimizer.name for trial in found} == {"adam", "sgd"}
    assert all(trial.recipe.batch_size % 8 == 0 and 32 <= trial.recipe.batch_size <= 256 for trial in found)
    assert all(0 < trial.recipe.optimizer.lr <= 0.1 and trial.recipe.wandb.project == "demo" for trial in found)


def test_a_bayes_file_with_hyperband(sweep_file):
    sweep = from_file(sweep_file(EXAMPLES["bayes"]), ["recipe=quickstart"])
    assert sweep.early_stop == HalvingRule((3, 9), 3.0, strict=True)
    rate = sweep.parameters["optimizer.lr"]
    assert isinstance(rate, Distribution)
    assert search_bounds(rate) == pytest.approx((math.exp(-9.2), math.exp(-2.3)))
    assert rate.log
    assert sweep.parameters["optimizer.weight_decay"] == Distribution("uniform", 0.0, 1e-3)
    assert "lr: min and max of log_uniform are exponents of e, the values are 0.000101 to 0.1003" in sweep.notes


def test_words_of_the_command_line_replace_the_files(sweep_file):
    words = ["recipe=quickstart", "optimizer.lr=0.3", "wandb.project=mine", "optimizer.name=adam"]
    sweep = from_file(sweep_file(EXAMPLES["random"]), words)
    assert sweep.fixed == {"epochs": "1", **dict(word.split("=") for word in words)}
    assert [*sweep.parameters] == ["batch_size", "seed"]
    assert not {"optimizer.lr", "recipe", "wandb.project"} & sweep.origins.keys()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{value: 3}", "3"),
        ("{values: [3]}", "3"),
        ("{values: [1, 0.5, 1e-5, 16.0, 1]}", Values(("1", "0.5", "1e-05", "16"))),
        ("{values: [true, null, off, '1e-4']}", Values(("true", "null", "'off'", "'1e-4'"))),
        ("{values: [[1, 2.5], {a: 1}]}", Values(("[1, 2.5]", "{a: 1}"))),
        ("{values: [a, b], probabilities: [0.25, 0.75]}", Values(("a", "b"), (0.25, 0.75))),
        ("{distribution: categorical, values: [a, b]}", Values(("a", "b"))),
        ("{distribution: constant, value: a}", "a"),
        ("{min: 1, max: 5}", Distribution("int_uniform", 1, 5)),
        ("{min: 1, max: 5.0}", Distribution("uniform", 1, 5.0)),
        ("{distribution: uniform, min: 1, max: 5}", Distribution("uniform", 1, 5)),
        ("{distribution: q_uniform, min: 1, max: 5}", Distribution("uniform", 1, 5, step=1)),
        ("{distribution: log_uniform_values, min: !!float 1e-5, max: 1}", Distribution("uniform", 1e-5, 1, log=True)),
        ("{distribution: inv_log_uniform_values, min: 0.5, max: 8}", Distribution("uniform", 0.5, 8, log=True)),
        ("{distribution: log_uniform, min: 0, max: 1}", Distribution("uniform", 1.0, math.e, log=True)),
        ("{distribution: inv_log_uniform, min: 0, max: 1}", Distribution("uniform", math.exp(-1), 1.0, log=True)),
        ("{distribution: q_log_uniform, min: 0, max: 1, q: 2}", Distribution("uniform", 1.0, math.e, log=True, step=2)),
        ("{distribution: normal}", Distribution("normal")),
        ("{distribution: q_log_normal, mu: 2, q: 0.5}", Distribution("normal", log=True, mu=2, sigma=1, step=0.5)),
        ("{distribution: q_beta, a: 2, b: 3}", Distribution("beta", a=2, b=3, step=1)),
    ],
)  # fmt: skip
def test_a_parameter_of_a_file(parameter, text, found):
    assert parameter(text) == found


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{min: 1, max: 4}", ("1", "2", "3", "4")),
        ("{distribution: q_uniform, min: 0.1, max: 0.5, q: 0.1}", ("0.1", "0.2", "0.3", "0.4")),
    ],
)
def test_a_grid_lists_whole_numbers_and_steps_as_wandb_does(parameter, text, values):
    assert parameter(text, method="grid") == Values(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1", "parameters.optimizer.lr ({path}:3): 0.1 must be written as {{value: 0.1}}"),
        ("[1, 2]", "must be written as {{values: [1, 2]}}"),
        ("{}", "give value, values, min and max, or a distribution"),
        ("{min: 1}", "give value, values, min and max, or a distribution"),
        ("{mu: 1}", "give value, values, min and max, or a distribution"),
        ("{values: 3}", "values must be a list"),
        ("{values: []}", "values must be a list"),
        ("{value: 1, vals: 2}", "unknown key vals: did you mean value?"),
        ("{min: 1, max: 2, q: 1}", "unknown key q: int_uniform has distribution, min, max"),
        ("{distribution: log_unifrom, min: 1, max: 2}", "no distribution log_unifrom: did you mean log_uniform"),
        ("{distribution: uniform, min: 1}", "uniform needs max"),
        ("{min: 2, max: 2}", "min 2 must be below max 2"),
        ("{min: a, max: 2}", "min: a must be a number"),
        ("{distribution: int_uniform, min: 0.5, max: 2}", "min and max of int_uniform must be whole numbers"),
        ("{distribution: log_uniform_values, min: 0, max: 2}", "min 0 of log_uniform_values must be above 0"),
        ("{distribution: log_uniform, min: 0, max: 2000}", "log_uniform reaches numbers that are too large"),
        ("{distribution: q_uniform, min: 0, max: 2, q: 0}", "q: 0 is too small"),
        ("{distribution: normal, sigma: -1}", "sigma: -1 is too small"),
        ("{values: [1, 2], probabilities: [1]}", "probabilities must be a list of 2 numbers"),
        ("{values: [1, 2], probabilities: [1, 1]}", "probabilities have the sum 2, not 1"),
        ("{values: [1, 2], probabilities: [0.5, 0.5]}", "probabilities have no meaning with method: grid"),
        ("{min: 0.0, max: 1.0}", "method: grid needs values, uniform has no end of them (method: random takes it)"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_parameter(parameter, tmp_path, text, message):
    method = "grid" if "grid" in message else "random"
    assert message.format(path=tmp_path / "sweep.yaml") in mistakes(parameter, text, method)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameter: {}", "unknown key parameter ({path}:1): did you mean parameters?"),
        ("method: custom", "method ({path}:1): custom is none of grid, random, bayes"),
        ("name: x", "method: null is none of grid, random, bayes"),
        ("method: grid", "parameters must say what is swept"),
        ("method: bayes", "method ({path}:1) needs a metric, as in metric: {name: val/top1, goal: maximize}"),
        ("method: grid\nearly_terminate: {type: hyperband}", "early_terminate ({path}:2) needs a metric"),
        ("early_terminate: {type: hyperband}", "early_terminate ({path}:1): give min_iter, or max_iter and s"),
        ("early_terminate: {type: hyperband, max_iter: 27}", "give min_iter, or max_iter and s"),
        ("early_terminate: {type: median}", "must have type: hyperband, with min_iter, or max_iter and s"),
        ("early_terminate: {type: hyperband, min_iter: 0}", "min_iter: 0 must be a whole number above 0"),
        ("early_terminate: {type: hyperband, min_iter: 1, eta: 1}", "eta: 1 must be a number above 1"),
        ("early_terminate: {type: hyperband, max_iter: 2, s: 1}", "max_iter 2 leaves no evaluation"),
        ("early_terminate: {type: hyperband, min_itr: 1}", "unknown key min_itr: did you mean min_iter"),
        ("metric: val_loss", "metric ({path}:1) must have a name"),
        ("metric: {name: train_loss}", "train_loss is none of val/loss, val/top1, val/top5"),
        ("metric: {name: val_loss, goal: maximize}", "goal maximize does not go with val_loss: minimize"),
        ("metric: {name: val_loss, gaol: minimize}", "unknown key gaol: did you mean goal?"),
        ("run_cap: 0", "run_cap ({path}:1): 0 must be a whole number above 0"),
        ("parameters: {lr: {value: 1}, optimizer.lr: {value: 2}}", "optimizer.lr ({path}:1) gives optimizer.lr again"),
        ("parameters: {learning-rate: {value: 1}}", "keys are of letters, digits, _ and dots"),
        ("parameters: {wandb.group: {values: [a, b]}}", "wandb.group does not change the training"),
        ("- 1", "{path} holds no keys: a sweep is a YAML mapping"),
        ("a: [", "cannot read sweep {path}: "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file(sweep_file, text, message):
    path = sweep_file(text + "\n")
    assert message.replace("{path}", str(path)) in mistakes(from_file, path, ["recipe=quickstart"])


def test_a_file_that_is_not_there_and_one_without_a_recipe(sweep_file, tmp_path):
    assert f"cannot read sweep {tmp_path / 'none.yaml'}: " in mistakes(from_file, tmp_path / "none.yaml")
    assert "give recipe=NAME" in mistakes(from_file, sweep_file(EXAMPLES["grid"]))


def test_mistakes_of_a_file_come_together_and_the_trials_name_the_file(sweep_file):
    path = sweep_file("method: grit\nparameters: {seed: 1, epochs: {values: []}}\nmetric: {name: x}\n")
    assert len(mistakes(from_file, path, ["recipe=quickstart", "seed=1,,2"]).splitlines()) == 5
    path = sweep_file("method: grid\nparameters:\n  dropout: {values: [0.1, 0.2]}\n  label_smothing: {value: 0.1}\n")
    sweep = from_file(path, ["recipe=quickstart", "optimizer.lr=-1"])
    assert mistakes(trials, sweep, grid(sweep)).splitlines() == [
        "optimizer.lr=-1 (command line): must be more than 0 (in 2 of 2 trials)",
        f"unknown key dropout ({path}:3): did you mean model.dropout? (in 2 of 2 trials)",
        f"unknown key label_smothing ({path}:4): did you mean label_smoothing? (in 2 of 2 trials)",
    ]


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("val_loss", "loss"), ("val/loss", "loss"), ("validation_loss", "loss"), ("epoch/val_loss", "loss"),
        ("loss", "loss"),
        ("valid.acc", "top1"), ("val_accuracy", "top1"), ("best_val_acc1", "top1"), ("test/acc@1", "top1"),
        ("top_1", "top1"), ("val/top1", "top1"), ("val/top5", "top5"), ("val_top5_accuracy", "top5"),
    ],
)  # fmt: skip
def test_names_of_metrics(sweep_file, name, metric):
    path = sweep_file(f"method: grid\nparameters: {{seed: {{values: [1, 2]}}}}\nmetric: {{name: {name}}}\n")
    sweep = from_file(path, ["recipe=quickstart"])
    assert sweep.metric == metric
    assert any("is read as" in note for note in sweep.notes) == (name != f"val/{metric}")


def test_run_cap_ends_a_grid(sweep_file):
    path = sweep_file("method: grid\nparameters: {seed: {min: 0, max: 9}}\nrun_cap: 3\n")
    sweep = from_file(path, ["recipe=quickstart"])
    assert [point["seed"] for point in grid(sweep)] == ["0", "1", "2"]
    assert size(sweep) == 3


# Random search


def distribution(name, settings):
    """A file's text of a distribution that W&B knows."""
    more = ", ".join(f"{key}: {settings[key]!r}" for key in DISTRIBUTIONS[name])
    return f"{{distribution: {name}, {more}}}"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([name for name, keys in DISTRIBUTIONS.items() if "min" in keys and name != "int_uniform"]),
    st.floats(0.01, 4), st.floats(0.01, 4), st.sampled_from([1, 8, 0.25, 0.1]), st.integers(0, 10**6),
)  # fmt: skip
def test_samples_are_within_bounds_and_the_same_for_the_same_number(tmp_path_factory, name, low, width, step, number):
    path = tmp_path_factory.mktemp("sweep") / "sweep.yaml"
    text = distribution(name, {"min": low, "max": low + width, "q": step})
    path.write_text(f"method: random\nparameters: {{optimizer.lr: {text}}}\n", encoding="utf-8")
    sweep = from_file(path, ["recipe=quickstart"])
    point = sample(sweep, 3, number)
    assert point == sample(sweep, 3, number)
    value = parse_value(point["optimizer.lr"])
    bottom, top = low, low + width
    if name.endswith("log_uniform"):
        bottom, top = (math.exp(-top), math.exp(-bottom)) if name.startswith("inv_") else (math.exp(low), math.exp(top))
    room = step / 2 if name.startswith("q_") else 0
    assert bottom - room - 1e-9 <= value <= top + room + 1e-9
    if name.startswith("q_"):
        assert value / step == pytest.approx(round(value / step))
        assert len(point["optimizer.lr"]) < 8


DRAWN = [
    ("uniform", {"min": 2.0, "max": 4.0}, 3.0),
    ("log_uniform", {"min": -4, "max": 0}, math.exp(-2)),
    ("inv_log_uniform", {"min": -4, "max": 0}, math.exp(2)),
    ("log_uniform_values", {"min": 0.01, "max": 1}, 0.1),
    ("inv_log_uniform_values", {"min": 0.01, "max": 1}, 0.1),
    ("int_uniform", {"min": 0, "max": 10}, 5),
    ("normal", {"mu": 3, "sigma": 2}, 3),
    ("log_normal", {"mu": 1, "sigma": 0.5}, math.e),
    ("beta", {"a": 2, "b": 2}, 0.5),
]


@pytest.mark.parametrize(("name", "settings", "median"), DRAWN)
def test_the_middle_of_a_distribution(parameter, name, settings, median):
    found = parameter(distribution(name, settings))
    sweep = from_words(["recipe=quickstart", "seed=1,2"])
    sweep = type(sweep)("random", sweep.fixed, {"optimizer.lr": found}, sweep.order)
    drawn = [parse_value(sample(sweep, 0, number)["optimizer.lr"]) for number in range(2000)]
    assert statistics.median(drawn) == pytest.approx(median, rel=0.12)
    low, high = search_bounds(found)
    assert sum(low <= value <= high for value in drawn) >= 1980
    assert math.isfinite(low)
    assert math.isfinite(high)


def test_probabilities_and_whole_numbers_are_kept(parameter):
    values = parameter("{values: [1, 2, 3], probabilities: [0.7, 0.3, 0]}")
    sweep = from_words(["recipe=quickstart"])
    sweep = type(sweep)("random", sweep.fixed, {"a": values, "b": parameter("{min: 1, max: 3}")}, sweep.order)
    points = [sample(sweep, 0, number) for number in range(1000)]
    assert {point["a"] for point in points} == {"1", "2"}
    assert 650 < sum(point["a"] == "1" for point in points) < 750
    assert {point["b"] for point in points} == {"1", "2", "3"}


def test_a_sample_of_one_key_does_not_depend_on_the_others_nor_on_the_state_of_random():
    sweep = from_words(["recipe=quickstart", "seed=range(1000)", "optimizer.lr=range(1,1000)"])
    less = from_words(["recipe=quickstart", "seed=range(1000)"])
    random.seed(1)
    first = [sample(sweep, 0, number)["seed"] for number in range(5)]
    random.seed(2)
    assert [sample(less, 0, number)["seed"] for number in range(5)] == first
    assert [sample(less, 1, number)["seed"] for number in range(5)] != first
    assert len(set(first)) == 5


def test_values_that_a_search_suggests_become_text():
    assert text_of(Distribution("uniform", 32, 256, log=True, step=8), 57.3) == "56"
    assert text_of(Distribution("uniform", 0, 1, step=0.1), 0.31) == "0.3"
    assert text_of(Distribution("uniform", 0.1, 1), 0.123456789123) == "0.12345679"
    assert text_of(Distribution("uniform", 0.123456783, 1), 0.123456783) == "0.123456783"
    assert text_of(Distribution("int_uniform", 0, 9), 3.0) == "3"


# What sweeps ask of `recipes.load`


def test_a_key_can_be_said_to_come_from_elsewhere():
    loaded = load(["recipe=quickstart", "seed=3", "epochs=2"], {"seed": "sweep.yaml:3"})
    assert (loaded.origins["seed"], loaded.origins["epochs"]) == ("sweep.yaml:3", "command line")


def test_files_that_change_are_read_again_and_what_is_kept_of_them_stays_as_it_was(tmp_path):
    path = tmp_path / "small.yaml"
    text = "base: quickstart\noptimizer: {name: sgd, lr: 0.5}\n"
    path.write_text(text, encoding="utf-8")
    first = load([f"recipe={path}"])
    load([f"recipe={path}", "optimizer={name: adam, eps: 1}", "optimizer.lr=0.25"])
    load([f"recipe={path}", "optimizer={name: adam, eps: 1}", "optimizer.lr=1"])
    assert load([f"recipe={path}"]) == first
    path.write_text(text.replace("0.5", "0.7"), encoding="utf-8")
    assert load([f"recipe={path}"]).recipe.optimizer.lr == 0.7


def test_sweeps_import_nothing_heavy():
    code = (
        "import sys, launch.sweep.points, launch.sweep.wandb_read; print({'torch', 'wandb', 'optuna'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
