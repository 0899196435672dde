"""`resnet eval`: as a user calls it, on a run of a few seconds."""

import csv
import io
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torchcodec.decoders import decode_image
from torchvision.transforms import v2

import resnet
from recipes.load import load
from resnet.net import build_model
from resnet.tally import Tally
from resnet.tools.cli import main
from tests.helpers import TINY, cores, evaluation, train
from tests.processes import start_ranks, wait_ranks

BATCH = "eval.batch_size=7"
"""Does not divide the 40 images."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> SimpleNamespace:
    """A run of four epochs with an average, its validation images, and what its best evaluation found."""
    folder = tmp_path_factory.mktemp("eval")
    words = ["epochs=4", "ema.decay=0.7", "checkpoint.keep=3", f"run.root={folder}", "run.name=r"]
    assert train(*TINY, *words, f"data.train={folder / 'shapes'}") == 0
    run = folder / "r"
    return SimpleNamespace(run=run, root=folder, images=folder / "shapes" / "val", evaluation=evaluation(run))


@pytest.fixture
def images(finished, tmp_path) -> Path:
    """A copy of the validation images, a folder a class."""
    return shutil.copytree(finished.images, tmp_path / "val")


@pytest.fixture(autouse=True)
def one_core():
    with cores(1):
        yield


def evaluate(capsys, *words: object) -> list[dict]:
    main(["eval", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def mistake(capsys, *words: object) -> str:
    """The message of an evaluation that ends as the user's mistake."""
    with pytest.raises(SystemExit) as ended:
        main(["eval", *map(str, words)])
    out, error = capsys.readouterr()
    assert (ended.value.code, out) == (2, ""), error
    assert "Traceback" not in error
    return error


FIGURES = ("top1", "top5", "loss", "ece", "samples")


def figures(result: dict) -> list[float]:
    return [result[name] for name in FIGURES]


def test_evaluating_again_gives_the_figures_of_the_run(finished, capsys):
    [result] = evaluate(capsys, finished.run, "--per-class")
    assert figures(result) == [finished.evaluation[name] for name in FIGURES]
    assert result["samples"] == 40
    assert (result["kind"], result["size"], result["flip"], result["unreadable"]) == ("ema", 32, False, 0)
    assert (result["weights"], result["run"]) == (str(finished.run / "final.safetensors"), str(finished.run))
    assert result["calibration"] == finished.evaluation["calibration"]
    assert result["per_class"] == finished.evaluation["per_class"]
    assert result["images_per_second"] > 0


def test_several_in_one_table_are_each_what_they_are_alone(finished, capsys, monkeypatch):
    newest = finished.run / "checkpoints" / "step-00000040" / "model.safetensors"
    names = [f"r@{which}" for which in ("final", "last", "step-30", "40")] + [str(newest), "r"]
    root = ["--root", finished.root]
    alone = [evaluate(capsys, name, *root)[0] for name in names]
    read = []
    real = resnet.data.batches.read_image
    monkeypatch.setattr(resnet.data.batches, "read_image", lambda *given: read.append(given[1]) or real(*given))
    together = evaluate(capsys, *names, *root)
    assert sorted(read) == list(range(40)), "each image is decoded once"
    assert [one["name"] for one in together] == names
    assert [figures(one) for one in together] == [figures(one) for one in alone]
    assert len({one["loss"] for one in together}) >= 3
    assert [one["kind"] for one in together] == ["ema", "ema", "ema", "ema", "plain", "ema"]
    [plain] = evaluate(capsys, "r@40", "--plain", *root)
    assert figures(plain) == figures(together[4])
    main(["eval", *names, "--root", str(finished.root)])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "top-1", "top-5", "loss", "ECE", "images", "images/s", "weights"]
    assert lines[1].split()[:2] == ["r@last", f"{together[1]['top1']:.2f}%"]
    assert lines[4].endswith("plain, 32 px")
    assert lines[6].startswith("r@final, r@last, r@40, r: top-1 is not comparable with the recipe's: model.name=null")


def test_machines_read_stable_names(finished, tmp_path, capsys):
    main(["eval", str(finished.run), "--csv"])
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(row)[:6] == ["name", "top1", "top5", "loss", "ece", "samples"]
    assert float(row["loss"]) == finished.evaluation["loss"]
    main(["eval", str(finished.run), "--per-class", "--csv", str(tmp_path / "out.csv")])
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [(row["class"], int(row["correct"])) for row in rows] == [
        (one["class"], one["correct"]) for one in finished.evaluation["per_class"]
    ]


def test_classes_side_by_side_the_worst_first(finished, capsys):
    main(["eval", "r", "r@30", "--per-class", "--root", str(finished.root)])
    lines = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    assert lines[0].split() == ["class", "images", "r", "r@30"]
    means = [sum(float(share.rstrip("%")) for share in line.split()[2:]) for line in lines[1:]]
    assert len(means) == 10
    assert means == sorted(means)


def test_changes_to_the_recipe(finished, capsys):
    loss = finished.evaluation["loss"]
    assert evaluate(capsys, finished.run, "data.max_val=7")[0]["samples"] == 7
    [flipped] = evaluate(capsys, finished.run, "eval.flip=true")
    assert flipped["flip"]
    assert flipped["loss"] != pytest.approx(loss, rel=1e-5)
    [larger] = evaluate(capsys, finished.run, "augment.val_size=36")
    assert larger["size"] == 36
    assert larger["loss"] != pytest.approx(loss, rel=1e-5)
    [same] = evaluate(capsys, finished.run, "eval.batch_size=3", "data.num_workers=2")
    assert same["loss"] == pytest.approx(loss, rel=1e-6)


# Prediction by prediction


@pytest.fixture(scope="module")
def foreign(finished) -> Path:
    """Weights as torchvision lays them out, which say nothing of themselves."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.5)
    file = finished.root / "foreign.pth"
    torch.save(network.state_dict(), file)
    return file


def plain_torchvision(file: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (40, 10) and labels, image by image in sorted order: shorter side 36, centre 32, ImageNet's mean."""
    network = torchvision.models.resnet18(num_classes=10)
    network.load_state_dict(torch.load(file), strict=True)
    steps = [v2.Resize(36, antialias=True), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*steps, v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    files = sorted(folder.glob("*/*.jpg"))
    classes = sorted({one.parent.name for one in files})
    with torch.inference_mode():
        logits = torch.cat([network.eval()(transform(decode_image(str(one)))[None]) for one in files])
    return logits, torch.tensor([classes.index(one.parent.name) for one in files])


@pytest.mark.parametrize("ranks", [1, 2])
def test_predictions_are_those_of_plain_torchvision(finished, foreign, ranks, tmp_path, capsys, monkeypatch):
    number, add = itertools.count(), Tally.add

    def noted(tally, loss, logits, scores, labels, indices):
        torch.save((indices, logits, labels), tmp_path / f"{os.getpid()}-{next(number)}.batch")
        add(tally, loss, logits, scores, labels, indices)

    monkeypatch.setattr(Tally, "add", noted)
    source = [f"data.train={finished.root / 'shapes'}", "data.per_class=16", "data.size=40", "device=cpu"]
    sizes = ["augment.train_size=32", "augment.val_resize=36", "augment.val_size=32", "data.num_workers=0"]
    words = [str(foreign), "recipe=quickstart", "model.name=resnet18", *source, *sizes, BATCH, "--json"]
    if ranks == 1:
        main(["eval", *words])
        text = capsys.readouterr().out
    else:
        children = start_ranks(["eval", *words], ranks, tmp_path / "out.txt", program=main)
        assert wait_ranks(children, 60) == [0] * ranks, (tmp_path / "out.txt").read_text()
        text = (tmp_path / "out.txt").read_text()
        text = text[text.index("[\n") :]
    [result] = json.loads(text)
    batches = [torch.load(file) for file in tmp_path.glob("*.batch")]
    indices, logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len(batches) == 6
    order = indices.argsort()
    assert indices[order].tolist() == list(range(40)), "every image once"
    expected, true = plain_torchvision(foreign, finished.images)
    torch.testing.assert_close(logits[order], expected, rtol=1e-3, atol=1e-3)
    assert logits[order].argmax(1).tolist() == expected.argmax(1).tolist()
    assert labels[order].tolist() == true.tolist()
    assert result["loss"] == pytest.approx(torch.nn.functional.cross_entropy(expected, true).item(), rel=1e-4)
    assert result["top1"] == pytest.approx(100 * (expected.argmax(1) == true).double().mean().item())
    assert (result["samples"], result["kind"], result["run"]) == (40, None, None)


def test_of_two_ranks_the_first_opens_the_data_before_the_other_and_a_mistake_is_told_once(
    finished, images, tmp_path, monkeypatch
):
    for file in images.glob("*/*.jpg"):
        file.write_bytes(b"")
    real, log = resnet.tools.evaluate.open_eval_data, tmp_path / "log"

    def note(text: str) -> None:
        with log.open("a") as file:
            print(os.environ["RANK"], text, file=file)

    def slowly(*given):
        note("begins")
        time.sleep(0.3)
        opened = real(*given)
        note("ends")
        return opened

    monkeypatch.setattr("resnet.tools.evaluate.open_eval_data", slowly)
    words = [str(finished.run), "--data", str(images)]
    children = start_ranks(["eval", *words], 2, tmp_path / "out.txt", program=main)
    wait_ranks(children, 60)
    assert log.read_text().splitlines() == ["0 begins", "0 ends", "1 begins", "1 ends"]
    assert (tmp_path / "out.txt").read_text().count("none of the 40 images could be read") == 1


def test_what_only_another_rank_finds_wrong_is_told(finished, tmp_path, monkeypatch):
    def broken(*given):
        if os.environ["RANK"] == "1":
            raise OSError("no more files can be opened")
        return []

    monkeypatch.setattr("resnet.tools.evaluate.batches_of", broken)
    children = start_ranks(["eval", str(finished.run)], 2, tmp_path / "out.txt", program=main)
    wait_ranks(children, 60)
    assert "resnet eval: no more files can be opened" in (tmp_path / "out.txt").read_text()


def test_what_only_a_gpu_can_train_a_cpu_evaluates(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [str(finished.run), f"{finished.run}@last", "precision=fp16", "device=auto", "--json"]
    main(["eval", *words])
    out, told = capsys.readouterr()
    assert figures(json.loads(out)[0]) == [finished.evaluation[name] for name in FIGURES]
    assert told.count("precision=fp16 needs a GPU: computed in float32 here") == 1
    for device in ("auto", "cpu"):
        main(["eval", str(finished.run), "data.decode=gpu", f"device={device}", "--json"])
        out, told = capsys.readouterr()
        assert figures(json.loads(out)[0]) == [finished.evaluation[name] for name in FIGURES]
        assert told.count("data.decode=gpu: decoded by the CPU here") == 1
    children = start_ranks(["eval", *words], 2, tmp_path / "out.txt", program=main)
    assert wait_ranks(children, 60) == [0, 0], (tmp_path / "out.txt").read_text()


def test_two_ranks_find_the_same_to_the_last_bit(finished, tmp_path, capsys):
    words = ["r", "r@30", BATCH, "--root", str(finished.root), "--per-class", "--json"]
    main(["eval", *words])
    alone = json.loads(capsys.readouterr().out)
    children = start_ranks(["eval", *words], 2, tmp_path / "out.txt", program=main)
    assert wait_ranks(children, 60) == [0, 0]
    text = (tmp_path / "out.txt").read_text()
    both = json.loads(text[text.index("[\n") :])
    for one in (*alone, *both):
        del one["images_per_second"]
    assert both == alone


# Files that say nothing, or something else


def test_a_file_by_itself(finished, foreign, tmp_path, capsys):
    alone = shutil.copy(finished.run / "final.safetensors", tmp_path / "alone.safetensors")
    [result] = evaluate(capsys, alone, "--data", finished.images)
    assert result["loss"] == pytest.approx(finished.evaluation["loss"], rel=1e-6)
    assert (result["run"], result["classes"]) == (None, 10)
    assert "does not say which network it is of: add recipe=NAME" in mistake(capsys, foreign)
    tensors = safetensors.torch.load_file(alone)
    safetensors.torch.save_file({f"x.{name}": value for name, value in tensors.items()}, tmp_path / "x.safetensors")
    said = mistake(capsys, tmp_path / "x.safetensors", "recipe=quickstart", "--data", finished.images)
    assert "x.safetensors" in said
    said = mistake(capsys, alone, "recipe=quickstart", "--data", finished.images)
    assert "is of another network: block basic, layers [1,1,1]; here: resnet18. It needs model.name=null" in said
    picture = next(finished.images.glob("*/*.jpg"))
    assert f"{picture} is an image: give a run or a file of weights there" in mistake(capsys, picture, finished.run)
    assert "there is no file nowhere.pth" in mistake(capsys, "nowhere.pth")


def test_mistakes(finished, tmp_path, capsys):
    run = shutil.copytree(finished.run, tmp_path / "copy")
    assert "did you mean eval.flip" in mistake(capsys, run, "eval.flop=true")
    said = mistake(capsys, run, "model.layers=[1,1,2]")
    assert "is of another network: layers [1,1,1]; here: layers [1,1,2]. It needs model.layers=[1,1,1]" in said
    assert "give one recipe" in mistake(capsys, run, "recipe=quickstart")
    assert "no weights 'step-7': give best, last, final" in mistake(capsys, f"{run}@step-7")
    for words in (["data.source=image_folder", f"data.val={finished.images}"], [f"data.val={finished.images}"]):
        assert mistake(capsys, run, *words).endswith("\nTo evaluate on other images give them as --data PATH\n")
    assert "give a run, or a file of weights" in mistake(capsys, "eval.flip=true")
    assert "give a file that ends in .csv" in mistake(capsys, run, "--csv", "other")
    assert "which --data names" in mistake(capsys, run, "--known-only")
    (run / "final.safetensors").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000040")
    assert "has no final.safetensors, which a finished run leaves" in mistake(capsys, f"{run}@final")
    (run / "checkpoints" / "best").write_text("step-00000030")
    assert figures(evaluate(capsys, run)[0])[4] == 40, "of a run that is not finished: its best checkpoint"
    shutil.rmtree(run / "checkpoints")
    for name in (run, f"{run}@last", f"{run}@step-7"):
        assert f"{run} has no checkpoint yet, and so no weights\n" in mistake(capsys, name)
    shutil.copy(finished.run / "final.safetensors", run)
    assert "has no checkpoint 'last': give best or final" in mistake(capsys, f"{run}@last")


# Against what the recipe is known to reach


def test_only_the_recipes_own_evaluation_is_held_against_its_evidence(finished, images, tmp_path, capsys):
    run = shutil.copytree(finished.run, tmp_path / "copy")
    text = (run / "recipe.yaml").read_text().replace("name: quickstart", "name: mine", 1)
    text = text.replace("train_samples: 2000", "train_samples: 160")
    evidence = "evidence: {source: a paper, top1: 99.5, band: [99, 100]}"
    (run / "recipe.yaml").write_text(f"{text.partition('evidence:')[0]}{evidence}\n")
    below = "below the expected 99 to 100%"
    assert evaluate(capsys, run)[0]["evidence"] == below
    assert evaluate(capsys, run, "eval.batch_size=3")[0]["evidence"] == below
    main(["eval", str(run)])
    assert capsys.readouterr().out.splitlines()[-1] == f"{run}: top-1 is {below}"
    others = (["eval.flip=true"], ["--plain"], ["--data", images], ["augment.val_size=36"], ["--only-present"])
    assert [evaluate(capsys, run, *words)[0]["evidence"] for words in others] == [None] * 5
    best = f"{run}@step-{finished.evaluation['step']}"
    assert [one["evidence"] for one in evaluate(capsys, best, f"{run}@30")] == [below, None]
    status = run / "status.json"
    status.write_text(status.read_text().replace('"finished"', '"running"'))
    assert evaluate(capsys, run)[0]["evidence"] is None


# Other data


def test_unreadable_images_are_named_and_counted_and_move_no_other(finished, images, capsys):
    (images / "dots" / "0001.jpg").write_bytes(b"\xff\xd8 cut short")
    main(["eval", str(finished.run), "--data", str(images), BATCH, "--json"])
    out, err = capsys.readouterr()
    [result] = json.loads(out)
    assert (result["samples"], result["unreadable"]) == (39, 1)
    assert f"warning: cannot read {images / 'dots' / '0001.jpg'}: " in err
    [found] = resnet.evaluate([finished.run], {"eval.batch_size": 7}, data=images)
    assert found.mistakes
    for one in found.mistakes:
        assert Path(one["image"]).parent.name == found.classes[one["true"]]
    shutil.rmtree(images)
    (images / "ring").mkdir(parents=True)
    (images / "ring" / "a.jpg").write_bytes(b"")
    assert "none of the 1 image could be read" in mistake(capsys, finished.run, "--data", images)


@pytest.mark.parametrize("cache", ["none", "device"])
def test_training_names_the_mistakes_right_where_an_image_is_broken(finished, tmp_path, cache):
    data = shutil.copytree(finished.root / "shapes", tmp_path / "shapes")
    (data / "val" / "circle" / "0002.jpg").write_bytes(b"\xff\xd8 cut short")
    words = [*TINY, "augment.crop=pad", f"data.cache={cache}", "data.max_broken=0.1", "max_steps=2", BATCH]
    assert train(*words, f"data.train={data}", f"run.root={tmp_path}", "run.name=r") == 0
    found = evaluation(tmp_path / "r")
    assert found["samples"] == 39
    assert len(found["mistakes"]) > 20
    for one in found["mistakes"]:
        assert Path(one["image"]).parent.name == found["classes"][one["true"]]
        assert "circle/0002" not in one["image"]
    assert sum(count for _, _, count in found["confused"]) == 39 - sum(one["correct"] for one in found["per_class"])


def logits_of(finished, images: Path) -> tuple[torch.Tensor, list[Path]]:
    """The run's logits of all images below a folder, and their files, by a path of its own."""
    network = resnet.Run(finished.run).load()
    steps = [v2.Resize(36, antialias=True), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*steps, v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    files = sorted(images.glob("*/*.jpg"))
    with torch.inference_mode():
        return network(torch.stack([transform(decode_image(str(file))) for file in files])), files


def test_a_subset_of_classes_by_name_and_answers_among_them_only(finished, images, capsys):
    """As ImageNet-A and -R: folders of some classes."""
    kept = ["ring", "circle", "dots"]
    for folder in images.iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
    logits, files = logits_of(finished, images)
    classes = finished.evaluation["classes"]
    labels = np.array([classes.index(file.parent.name) for file in files])
    main(["eval", str(finished.run), "--data", str(images), "--json"])
    out, err = capsys.readouterr()
    assert "classes: 3 of the network's 10; the network may answer any of the 10" in err
    [free] = json.loads(out)
    assert free["top1"] == pytest.approx(100 * (logits.argmax(1).numpy() == labels).mean())
    assert (free["answered"], free["evidence"]) == (10, None)
    main(["eval", str(finished.run), "--data", str(images), "--only-present", "--json"])
    out, err = capsys.readouterr()
    assert "classes: 3 of the network's 10; only these are answered" in err
    [bound] = json.loads(out)
    present = np.array(sorted(classes.index(name) for name in kept))
    answers = present[logits[:, present].argmax(1).numpy()]
    assert bound["top1"] == pytest.approx(100 * (answers == labels).mean())
    places = torch.from_numpy(np.searchsorted(present, labels))
    expected = torch.nn.functional.cross_entropy(logits[:, present], places).item()
    assert bound["loss"] == pytest.approx(expected, rel=1e-4)
    assert bound["top1"] >= free["top1"]
    main(["eval", str(finished.run), "--data", str(images), "--only-present"])
    assert "top-5" not in capsys.readouterr().out


def test_a_network_of_imagenets_classes_that_names_none(finished, images, tmp_path, monkeypatch, capsys):
    """As torchvision's weights on ImageNet-A and -R: folders of some WordNet ids."""
    monkeypatch.chdir(tmp_path)  # The recipe's data is drawn here.
    words = ["recipe=quickstart", "model.name=null", "model.block=basic", "model.layers=[1,1,1]", "data.num_workers=0"]
    network = build_model(load(words).recipe.model, 1000)
    network.fc.bias.data[[7, 151]] = torch.tensor([60.0, 30.0])
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    (tmp_path / "a").mkdir()
    for name, wnid in {"ring": "n02085620", "circle": "n01440764", "dots": "n15075141"}.items():
        (images / name).rename(tmp_path / "a" / wnid)
    data = ["--data", tmp_path / "a"]
    [free] = evaluate(capsys, tmp_path / "theirs.pth", *words, *data)
    [bound] = evaluate(capsys, tmp_path / "theirs.pth", *words, *data, "--only-present")
    assert (free["top1"], free["samples"], free["answered"]) == (0, 12, 1000)
    assert (bound["top1"], bound["answered"]) == (pytest.approx(100 / 3), 3)
    image = tmp_path / "a" / "n02085620" / "0001.jpg"
    main(["predict", *map(str, (tmp_path / "theirs.pth", image, *words)), "--top", "2"])
    out, err = capsys.readouterr()
    assert ",cock,1.000000,Chihuahua,0.000000\n" in out
    assert "1,000 outputs and no names: ImageNet-1k's are taken, in torchvision's order" in err
    (images / "square").rename(tmp_path / "a" / "n99999999")
    assert "n99999999 (4). --known-only leaves them out" in mistake(capsys, tmp_path / "theirs.pth", *words, *data)
    said = mistake(capsys, tmp_path / "theirs.pth", *words, "--data", images)
    assert "names none of its 1000 classes, the data has 6, and the recipe's data 10: name its folders by" in said
    for folder in sorted(images.iterdir())[:3]:
        folder.rename(tmp_path / "a" / folder.name)
    said = mistake(capsys, tmp_path / "theirs.pth", *words, *data, "--known-only")
    assert "names none of its 1000 classes, the data has 7, and" in said
    for number in range(993):
        (tmp_path / "a" / f"m{number:03}").mkdir()
        os.link(image, tmp_path / "a" / f"m{number:03}" / "0001.jpg")
    main(["eval", *map(str, (tmp_path / "theirs.pth", *words, *data, "--json"))])
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["samples"] == 28 + 993
    assert "the weights name no classes: those of the data are taken, in their order" in err


def test_folders_named_by_number_are_the_networks_outputs(finished, images, capsys):
    """As ImageNet-V2: a folder a class index."""
    for number, name in enumerate(finished.evaluation["classes"]):
        (images / name).rename(images / str(number))
    main(["eval", str(finished.run), "--data", str(images), "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["loss"] == pytest.approx(finished.evaluation["loss"], rel=1e-6)
    assert "numbers" in err


def test_a_list_with_labels(finished, images, tmp_path, capsys):
    files = sorted(images.glob("*/*.jpg"))[::-1]
    lines = ["image,kind", *(f"{file.relative_to(images)},{file.parent.name}" for file in files)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    words = ["--data", tmp_path / "list.csv", "--images", images]
    assert evaluate(capsys, finished.run, *words)[0]["loss"] == pytest.approx(finished.evaluation["loss"], rel=1e-6)
    assert "list.csv is read here" in mistake(capsys, finished.run, *words, "--csv", tmp_path / "list.csv")
    own = ["data.source=csv", f"data.train={tmp_path}/list.csv", f"data.val={tmp_path}/list.csv"]
    assert "list.csv is read here" in mistake(capsys, finished.run, *own, "--csv", tmp_path / "list.csv")


def test_unknown_classes_are_refused_or_left_out(finished, images, capsys):
    (images / "ring").rename(images / "zebra")
    said = mistake(capsys, finished.run, "--data", images)
    assert "1 class of the data is none of the network's: zebra (4)" in said
    assert "--known-only leaves them out" in said
    main(["eval", str(finished.run), "--data", str(images), "--known-only", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["samples"] == 36
    assert "left out: 4 images of 1 class unknown" in err
    data = json.dumps({"source": "image_folder", "train": str(images), "val": str(images)})
    assert "classes of the data that the network does not have: zebra" in mistake(capsys, finished.run, f"data={data}")


def test_reassessed_labels(finished, images, tmp_path, capsys):
    """As ImageNet-ReaL: images named by their number, a list of right classes each, empty for those left out."""
    logits, files = logits_of(finished, images)
    random = np.random.default_rng(0)
    lists = [random.choice(10, size=random.integers(0, 4), replace=False).tolist() for _ in range(50)]
    numbers = random.permutation(50)[: len(files)]
    for file, number in zip(files, numbers, strict=True):
        file.rename(file.with_name(f"ILSVRC2012_val_{number + 1:08d}.JPEG"))
    (tmp_path / "real.json").write_text(json.dumps(lists))
    answers = logits.argmax(1).tolist()
    right = [answer in lists[number] for answer, number in zip(answers, numbers, strict=True) if lists[number]]
    words = [finished.run, "--data", images, "--real", tmp_path / "real.json"]
    [result] = evaluate(capsys, *words)
    assert result["samples"] == len(right) < 40
    assert result["top1"] == pytest.approx(100 * np.mean(right))
    assert (result["top5"], result["loss"]) == (None, None)
    (tmp_path / "real.json").write_text(json.dumps([[1, 10]] * 50))
    assert "has the class 10, and the network has 10" in mistake(capsys, *words)
    (tmp_path / "real.json").write_text("{}")
    assert "no list of lists" in mistake(capsys, *words)
    (tmp_path / "real.json").write_text("[[1]]")
    assert "has 1 list, and none for" in mistake(capsys, *words)
    assert "is not named as ILSVRC2012_val_" in mistake(capsys, finished.run, "--real", tmp_path / "real.json")


def test_python_gives_all_of_it(finished, images):
    first, last = resnet.evaluate(["r", "r@30"], {"data.max_val": 20}, root=finished.root)
    assert (first.samples, first.name, last.name) == (20, "r", "r@30")
    assert first.confusion is not None
    assert int(first.confusion.sum()) == sum(one["samples"] for one in first.per_class) == 20
    assert 100 * int(first.confusion.diagonal().sum()) / 20 == first.top1
    (images / "ring").rename(images / "zebra")
    [only] = resnet.evaluate([resnet.Run("r", finished.root)], data=images, only_present=True, known_only=True)
    assert (only.answered, only.samples) == (9, 36)
    with pytest.raises(ValueError, match="all 4 images of --data are without a label: give a folder for each class"):
        resnet.evaluate(["r"], data=images / "dots", root=finished.root)
    found = resnet.Run("r", finished.root).evaluate(30)
    [same] = resnet.evaluate(["r@30"], root=finished.root)
    assert (found.top1, found.loss, found.ece) == (same.top1, same.loss, same.ece)
