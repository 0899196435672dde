"""The losses against torch's, torchvision's and the papers' formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from recipes.load import load
from resnet.data.on_device import Mix, mix, soft_targets
from resnet.losses import class_weights, focal_loss, training_loss
from resnet.training_input import TrainingInput

NAMES = ["cat", "dog", "owl"]
LABELS = torch.tensor([0] * 12 + [1] * 3 + [2])
SIZES = np.bincount(LABELS)
LOGITS = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) * 3


def recipe(*words):
    return load(["recipe=cifar10_resnet18", *words]).recipe


def weights_by(*words, sizes=SIZES):
    found = class_weights(recipe(*words), NAMES, sizes)
    assert found is not None
    return found


def loss_of(*words, rows=slice(None), targets=None, weights=None):
    """The loss of some of the images, mixed where targets are given."""
    made, labels = recipe(*words), LABELS[rows]
    if targets is None:
        targets = soft_targets(labels, 3, made.label_smoothing)
    unused = torch.zeros(())
    given = TrainingInput(unused, labels, targets, None, unused)
    return training_loss(LOGITS[rows], given, made, weights).item()


def test_weights_are_those_of_scikit_learn_and_of_the_paper():
    # sklearn.utils.class_weight.compute_class_weight: n_samples / (n_classes * np.bincount(y))
    assert weights_by("class_weights=balanced").tolist() == pytest.approx([16 / 36, 16 / 9, 16 / 3])
    beta = 0.9
    own = [(1 - beta) / (1 - beta**size) for size in (12, 3, 1)]
    scale = 16 / sum(weight * size for weight, size in zip(own, (12, 3, 1), strict=True))
    found = weights_by("class_weights=effective", "class_weights_beta=0.9").tolist()
    assert found == pytest.approx([weight * scale for weight in own])
    assert weights_by("class_weights={owl: 5}").tolist() == pytest.approx([0.8, 0.8, 4.0])
    assert weights_by("class_weights=balanced", sizes=np.array([3, 0, 1])).tolist() == pytest.approx([4 / 6, 0, 2])
    with pytest.raises(ValueError, match="class_weights names bird, and the classes are cat, dog, owl"):
        weights_by("class_weights={bird: 5}")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("word", ["class_weights=balanced", "class_weights={owl: 5}"])
def test_weighted_cross_entropy_is_torch_s_of_all_images_in_whatever_batches(word, smoothing):
    words, weights = (word, f"label_smoothing={smoothing}"), weights_by(word)
    whole = F.cross_entropy(LOGITS, LABELS, weight=weights, label_smoothing=smoothing).item()
    assert loss_of(*words, weights=weights) == pytest.approx(whole, rel=1e-6)
    parts = [loss_of(*words, rows=slice(first, first + 4), weights=weights) for first in range(0, 16, 4)]
    assert sum(parts) / 4 == pytest.approx(whole, rel=1e-6)
    of_torch = [
        F.cross_entropy(LOGITS[rows], LABELS[rows], weight=weights, label_smoothing=smoothing).item()
        for rows in (slice(first, first + 4) for first in range(0, 16, 4))
    ]
    assert sum(of_torch) / 4 != pytest.approx(whole, rel=1e-2), "what this is not: a mean of means"


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_mixed_targets_have_each_class_s_loss_by_its_share_and_weight(loss):
    weights = weights_by("class_weights=balanced")
    images = torch.zeros(16, 3, 2, 2)
    _, targets = mix(images, soft_targets(LABELS, 3, 0.1), Mix(0.7, None))
    expected = []
    for logits, shares in zip(LOGITS.double().tolist(), targets.tolist(), strict=True):
        total = sum(map(math.exp, logits))
        p = [math.exp(logit) / total for logit in logits]
        factors = [(1 - one) ** 1.5 if loss == "focal" else 1.0 for one in p]
        terms = zip(shares, weights.tolist(), factors, p, strict=True)
        expected.append(sum(-share * weight * factor * math.log(one) for share, weight, factor, one in terms))
    words = (f"loss={loss}", *(["focal_gamma=1.5"] if loss == "focal" else []))
    found = loss_of(*words, "class_weights=balanced", targets=targets, weights=weights)
    assert found == pytest.approx(sum(expected) / 16, rel=1e-5)


def test_focal_loss_of_two_classes_is_torchvision_s():
    z, y = LOGITS[:, 0], (LABELS == 0).float()
    theirs = sigmoid_focal_loss(z, y, alpha=-1, gamma=2, reduction="mean")
    ours = focal_loss(torch.stack([torch.zeros(16), z], 1), F.one_hot(y.long(), 2).float(), 2.0)
    torch.testing.assert_close(ours, theirs)
    assert loss_of("loss=focal", "focal_gamma=0") == pytest.approx(loss_of("loss=cross_entropy"))


def test_focal_loss_has_a_slope_where_the_network_is_certain():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([[0.9, 0.1]]), 0.5).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_binary_cross_entropy_weighs_images_by_their_classes():
    weights = weights_by("class_weights=balanced")
    one_hot = F.one_hot(LABELS, 3).float()
    # As in the code of Cui et al. 2019: the weight of an image's class, for all the classes' terms.
    theirs = F.binary_cross_entropy_with_logits(LOGITS, one_hot, weight=weights[LABELS][:, None].expand(16, 3))
    assert loss_of("loss=bce", "class_weights=balanced", weights=weights) == pytest.approx(theirs.item())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["focal_gamma=1"], "focal_gamma needs loss=focal"),
        (["class_weights_beta=0.9"], "class_weights_beta needs class_weights=effective"),
        (["class_weights=balanced", "data.balance=oversample"], "which draws all classes equally often: use one"),
        (["class_weights=x"], "class_weights=x (command line): must be balanced, effective, or weights by the names"),
        (["class_weights={cat: -1}"], "the weight of cat must be a number of 0 or more, not -1"),
    ],
)
def test_what_has_no_effect_is_refused(words, message):
    with pytest.raises(ValueError) as error:
        recipe(*words)
    assert message in str(error.value)
