"""Grey images and images of many bands: the pixels, where they are refused, and whole runs of them."""

import io
import json
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.load import load
from resnet.build import build_data, build_order
from resnet.data import bands
from resnet.data.arrays import BrokenImage, UnfitImage
from resnet.data.bands import decode_channels
from resnet.data.batches import Key, MicroBatches, read_image
from resnet.data.cache import DrawnBatches, fill
from resnet.data.decode import decode
from resnet.data.kept import kept_batches, memory_for
from resnet.data.loader import Loader
from resnet.data.operations import apply_to_one
from resnet.data.undecoded import opened
from resnet.tools.cli import main
from tests.helpers import evaluation, train
from tests.resnet.test_decode import FILES, PIXELS, RGB, saved

CPU = torch.device("cpu")
BANDS = 12
MEANS = [f"augment.{key}=[{','.join(['0.3'] * BANDS)}]" for key in ("mean", "std")]


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> list[str]:
    """12 bands of 16 bits, in either order of axes; the class is in one band: the words that open them."""
    folder, random = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        for label, name in enumerate(("dry", "wet")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                values = random.integers(2000, 4000, (*random.integers(36, 48, 2), BANDS), dtype=np.uint16)
                values[..., 7] += 5000 * label
                np.save(folder / split / name / f"{number}.npy", values.transpose(2, 0, 1) if number % 2 else values)
    data = [f"data.{split}={folder / split}" for split in ("train", "val")]
    return ["data.source=image_folder", *data, f"model.in_channels={BANDS}", "data.pixel_max=10000", *MEANS]


SMALL = ("recipe=quickstart", "augment.train_size=32", "augment.val_resize=36", "augment.val_size=32")


def recipe_of(*words: str):
    return load([*SMALL, "batch_size=8", *words]).recipe


@pytest.mark.parametrize("kind", FILES)
def test_grey_is_pillows_luma(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.array(Image.open(io.BytesIO(FILES[kind])).convert("RGB").convert("L"))
    found = decode_channels(FILES[kind], 1, None)
    assert found.shape == (1, 40, 60)
    assert np.abs(found[0].numpy().astype(int) - expected).max() <= 3 * ("jpeg" in kind)


def test_grey_of_16_bits_is_scaled_by_its_largest_value():
    file = saved(Image.fromarray(np.array([[0, 500, 1000, 2000]], dtype=np.uint16)), "PNG")
    assert decode_channels(file, 1, 1000)[0, 0].tolist() == [0, 128, 255, 255]
    assert decode_channels(file, 1, None)[0, 0].tolist() == [0, 2, 4, 8]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("channels", [2, 5])
def test_arrays_are_told_by_which_axis_the_channels_are(channels, axes, order):
    values = np.random.default_rng(0).integers(0, 65536, (6, 7, channels), dtype=np.uint16)
    stored = np.asarray(values.transpose(axes), order=order).astype(">u2")
    expected = np.round(values.clip(0, 4000) / 4000 * 255)
    found = decode_channels(npy(stored), channels, 4000)
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1, "halves are rounded in either way"
    assert (found.permute(1, 2, 0).numpy() != expected).mean() < 0.01
    low = values.astype(np.uint8)
    stored = np.asarray(low.transpose(axes), order=order)
    assert torch.equal(decode_channels(npy(stored), channels, None), torch.from_numpy(low).permute(2, 0, 1))


def test_pictures_give_the_bands_they_have():
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    assert np.array_equal(decode_channels(saved(Image.fromarray(values), "PNG"), 4, None).permute(1, 2, 0), values)
    pair = decode_channels(saved(Image.fromarray(values[..., :2], "LA"), "PNG"), 2, None)
    assert np.array_equal(pair.permute(1, 2, 0), values[..., :2])
    assert torch.equal(decode_channels(FILES["jpeg"], 3, 900), decode(FILES["jpeg"]))


@pytest.mark.parametrize(
    ("data", "channels", "told"),
    [
        (saved(RGB, "PNG"), 4, "has 3 channels, and model.in_channels is 4"),
        (FILES["grey png"], 2, "has 1 channel, and model.in_channels is 2"),
        (npy(PIXELS), 4, "has the shape 40 x 60 x 3, in which neither the first axis nor the last is 4 channels"),
        (npy(np.zeros((4, 4, 4), dtype=np.uint16)), 4, "has values of 16 bits: set data.pixel_max"),
        (npy(np.zeros((4, 4, 4), dtype=np.float32)), 4, "has values of type float32: uint8 and uint16 are read"),
        (npy(np.array([[[None] * 4]])), 4, "holds Python objects, which are not loaded"),
    ],
)
def test_images_that_are_not_as_the_keys_say_tell_how_they_are(data, channels, told):
    with pytest.raises(UnfitImage) as raised:
        decode_channels(data, channels, None)
    assert told in str(raised.value)


HOSTILE = {
    "'|u1'": ("'|S0'", "'|V0'", "('|u1', (3,))", "[('a', '|u1')]"),
    "(8, 8, 5)": (f"(0, {10**30}, 3)", "(True, 8, 5)", "()", f"({'1, ' * 70})", "(-8,-8,5)",
                  f"(0x{'f' * 5000}, 8, 5)", f"({10**30}, {10**30}, 5)"),
}  # fmt: skip
"""What a header may say in the place of what it says."""


@pytest.mark.parametrize(("said", "instead"), [(said, one) for said, several in HOSTILE.items() for one in several])
def test_arrays_that_are_no_images_are_broken_whatever_they_say(said, instead):
    values = {"descr": "|u1", "fortran_order": False, "shape": (8, 8, 5)}
    header = str(values).replace(said, instead).encode()
    assert header != str(values).encode()
    data = b"\x93NUMPY\2\0" + len(header).to_bytes(4, "little") + header + bytes(320)
    with pytest.raises(BrokenImage) as raised:
        decode_channels(data, 5, None)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("bad", ["short", "header", "huge", "tiff"])
def test_damaged_arrays_are_broken_before_memory_is_taken(bad):
    whole = npy(np.zeros((8, 8, 5), dtype=np.uint8))
    huge = whole.replace(b"(8, 8, 5), }", b"(9999999, 9999999, 5), }")
    damaged = {"short": whole[:-1], "header": whole[:40], "huge": huge, "tiff": b"II*\0" + bytes(40)}
    with pytest.raises(BrokenImage):
        decode_channels(damaged[bad], 5, None)


def test_a_tiff_of_many_bands_is_read(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 8), dtype=np.uint8)
    for planar, stored in (("contig", values), ("separate", values.transpose(2, 0, 1))):
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar)
        found = decode_channels((tmp_path / "a.tif").read_bytes(), 8, None)
        assert np.array_equal(found.permute(1, 2, 0), values)
    tifffile.imwrite(tmp_path / "a.tif", values.astype(np.float64), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnfitImage, match="has values of type float64"):
        decode_channels((tmp_path / "a.tif").read_bytes(), 8, None)


def test_a_tiff_reads_no_other_file(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    values, monkey = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8), tmp_path / "other.ome.tif"
    tifffile.imwrite(monkey, values[::-1], ome=True, metadata={"axes": "CYX"}, photometric="minisblack")
    described = tifffile.TiffFile(monkey).ome_metadata
    planes = "".join(
        f'<TiffData FirstC="{c}" IFD="{c}" PlaneCount="1"><UUID FileName="other.ome.tif">urn:uuid:1</UUID></TiffData>'
        for c in range(4)
    )
    described = re.sub(r"<TiffData.*?(/>|</TiffData>)", "", described, flags=re.DOTALL)
    described = described.replace("</Pixels>", f"{planes}</Pixels>")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", description=described, metadata=None)
    monkeypatch.chdir(tmp_path)
    found = decode_channels((tmp_path / "a.tif").read_bytes(), 4, None)
    assert np.array_equal(found, values)


def test_arrays_of_three_bands_are_read_among_pictures(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "0.png")
    np.save(tmp_path / "1.npy", PIXELS.transpose(2, 0, 1))
    (tmp_path / "list.csv").write_text("image,label\n0.png,a\n1.npy,b\n")
    data = ["data.source=csv", f"data.train={tmp_path}/list.csv", f"data.val={tmp_path}/list.csv"]
    for source in build_data(recipe_of(*data)):
        assert torch.equal(read_image(source, 0), read_image(source, 1))
    by_gpus_way = opened(npy(PIXELS))
    assert isinstance(by_gpus_way, torch.Tensor)
    assert torch.equal(by_gpus_way, torch.from_numpy(PIXELS).permute(2, 0, 1))
    np.save(tmp_path / "1.npy", PIXELS.astype(np.uint16))
    with pytest.raises(ValueError, match=r"1\.npy has values of 16 bits: set data.pixel_max"):
        build_data(recipe_of(*data))


def test_turning_bands_is_turning_each_as_a_picture():
    for side in (40, 60):
        image = torch.randint(0, 256, (side, side, 6), dtype=torch.uint8).permute(2, 0, 1)
        turned = apply_to_one(image, [("Rotation", 25.0)])
        for first in (0, 3):
            part = apply_to_one(image[first : first + 3], [("Rotation", 25.0)])
            assert torch.equal(turned[first : first + 3], part)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.in_channels=2"], "augment.mean has 3 values, and model.in_channels is 2: give one a channel"),
        (["augment.std=[1]"], "augment.std has 1 values, and model.in_channels is 3"),
        (
            ["model.in_channels=1", "augment.policy=randaugment"],
            "augment.policy=randaugment is for red, green and blue",
        ),
        (["model.in_channels=1", "augment.color_jitter=0.4"], "augment.color_jitter=0.4 is for red, green and blue"),
        (["model.in_channels=1", "data.decode=gpu"], "data.decode=gpu makes RGB of 8 bits, and model.in_channels is 1"),
        (
            ["data.pixel_max=9", "data.decode=region"],
            "data.decode=region makes RGB of 8 bits, and data.pixel_max is set",
        ),
        (
            [f"model.in_channels={BANDS}", *MEANS],
            "data.source=shapes gives RGB, of which model.in_channels takes 3 or 1",
        ),
    ],
)
def test_keys_that_do_not_fit_the_channels_are_refused(words, told):
    with pytest.raises(ValueError) as raised:
        recipe_of(*words)
    assert told in str(raised.value)


def test_grey_images_have_means_of_their_own_where_none_are_given():
    luma = 0.299, 0.587, 0.114
    plain, grey = recipe_of().augment, recipe_of("model.in_channels=1").augment
    assert grey.mean[0] == pytest.approx(np.dot(luma, plain.mean), abs=5e-4)
    assert grey.std[0] == pytest.approx(np.dot(luma, plain.std), abs=5e-4)
    assert recipe_of("model.in_channels=1", "augment.mean=[0.2]").augment.mean == (0.2,)


def test_the_first_images_tell_that_there_are_others_than_the_recipe_says(fields):
    without = [word for word in fields if "pixel_max" not in word]
    with pytest.raises(ValueError, match=r"dry/.*\.npy has values of 16 bits: set data.pixel_max"):
        build_data(recipe_of(*without))
    two = [word for word in fields if "augment" not in word and "in_channels" not in word]
    with pytest.raises(
        ValueError, match=r"has the shape .*, in which neither the first axis nor the last is 3 channels"
    ):
        build_data(recipe_of(*two))


def test_a_later_odd_image_is_a_broken_one(tmp_path):
    for number in range(32):
        (tmp_path / "a").mkdir(exist_ok=True)
        odd = number == 5
        Image.new("RGB" if odd else "RGBA", (20, 20)).save(tmp_path / "a" / f"{number:02}.png")
    means = ["augment.mean=[0,0,0,0]", "augment.std=[1,1,1,1]"]
    data = ["data.source=image_folder", f"data.train={tmp_path}", f"data.val={tmp_path}"]
    recipe = recipe_of(*data, *means, "model.in_channels=4")
    train, val = build_data(recipe)
    batch = MicroBatches(train, val, build_order(recipe, train), recipe.augment)[Key(None, 0, 8, 32)]
    assert batch.broken == [f"{tmp_path}/a/05.png: has 3 channels, and model.in_channels is 4"]
    assert batch.images.shape == (7, 4, 32, 32)


@pytest.mark.parametrize("cache", ["memory", "files", "device"])
def test_caches_keep_bands_as_they_are(fields, cache):
    crop = () if cache == "files" else ("augment.crop=pad", "augment.padding=2")
    recipe = recipe_of(*fields, *crop, f"data.cache={'device' if cache == 'device' else 'memory'}")
    opened, keys = build_data(recipe), [Key(0, 0, 8, 32), Key(None, 0, 8, 32)]
    order, loader = build_order(recipe, opened[0]), lambda batches, keys: Loader(batches, keys, CPU, 0, 2)
    plain = [MicroBatches(*opened, order, recipe.augment)[key] for key in keys]
    if cache == "device":
        *_, filled = fill(*opened, recipe.augment, loader, 16)
        assert filled is not None
        drawn = DrawnBatches(filled.train, filled.val, order, recipe.augment)
        found = list(filled.cache.look_up(iter(loader(drawn, keys))))
    else:
        kept = kept_batches(recipe, *opened, order, CPU, memory_for(recipe, *opened))
        found = [[kept[key] for key in keys] for _ in range(2)][-1]
    for one, other in zip(plain, found, strict=True):
        assert one.images.shape[1] == BANDS
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_a_run_of_many_bands_is_evaluated_and_predicts_what_it_was_evaluated_to(fields, tmp_path, capsys):
    net = ["model.name=null", "model.block=basic", "model.layers=[1,1]", "model.widths=[8,16]", "optimizer.lr=0.05"]
    run = [*SMALL, *fields, *net, "batch_size=8", "epochs=4", "data.num_workers=0", "device=cpu", "wandb.mode=disabled"]
    assert (
        train(*run, f"run.root={tmp_path}", "run.name=r", "augment.rotation=10", "augment.mixup=0.1", report=True) == 0
    )
    reached = evaluation(tmp_path / "r")
    assert reached["top1"] == 100, "the class is in one band"
    pictures = json.loads((tmp_path / "r" / "pictures.json").read_text())
    assert len(pictures["training"]) == 8
    alone, val = tmp_path / "alone.safetensors", fields[2].partition("=")[2]
    (tmp_path / "r" / "final.safetensors").rename(alone)
    capsys.readouterr()
    assert not main(["predict", str(alone), val, "--json", "--device", "cpu"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 16
    assert sum(row["true"] == row["label"] for row in rows) == 16


def test_prepared_pixels_and_looks_of_grey_images(shapes, tmp_path, capsys):
    words = ["recipe=quickstart", f"data.train={shapes}", "data.per_class=16", "data.size=40", "model.in_channels=1"]
    assert not main(["prepare", *words, str(tmp_path / "raw"), "--raw", "400", "--workers", "1"])
    raw = recipe_of("model.in_channels=1", "data.source=shards", f"data.train={tmp_path}/raw")
    (given, _), (stored, _) = build_data(load(words).recipe), build_data(raw)
    assert all(torch.equal(read_image(given, index), read_image(stored, index)) for index in (0, 80, 159))
    assert len(read_image(stored.files, 0)) == 1, "a third of the bytes"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(
        ValueError, match=r"train-00000-of-00001.parquet:.*\.jpg has 1 channel, and model.in_channels is 3"
    ):
        build_data(recipe_of("data.source=shards", f"data.train={tmp_path}/raw"))
    assert not main(["look", *words, "--out", str(tmp_path / "look.png"), "--count", "4"])
    capsys.readouterr()
    main(["check-data", *words])
    levels = np.stack([read_image(given, index).numpy().mean() for index in range(1, 160, 2)]) / 255
    found = capsys.readouterr().out.partition("augment.mean=[")[2].partition("]")[0]
    assert float(found) == pytest.approx(levels.mean(), abs=0.03)


def test_bands_are_looked_at_as_pictures():
    pixels = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    assert np.array_equal(bands.visible(pixels), pixels[..., :3])
    for channels in (1, 2):
        assert (bands.visible(pixels[..., :channels]) == pixels[..., :1]).all()
