"""The keys that turn one net into another: what messages tell of weights of another network is what builds theirs."""

import math

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recipes.nets import NETS, keys_to
from recipes.schema.model import Model, keys_given, net_of

PLAIN = {"block": "basic", "layers": [1, 2, 1]}
VARIED = {
    "widths": [[24, 32, 48], [64, 128, 256, 512], [16, 32, 64]],
    "width_multiplier": [0.5, 1.3, 2],
    "kernels": [[1, 3, 1], [3, 3]],
    "groups": [2],
    "width_per_group": [32, 128],
    "stem": ["imagenet", "cifar", "deep"],
    "stem_width": [16, 64],
    "maxpool": [True, False, "conv"],
    "downsample": ["conv", "avgpool"],
    "shortcut": ["projection", "padded"],
    "attention": ["none", "se"],
    "se_ratio": [0.25],
}


@st.composite
def models(draw) -> Model:
    base = draw(st.sampled_from([PLAIN, *({"name": name} for name in NETS)]))
    changed = draw(st.sets(st.sampled_from([*VARIED]), max_size=3))
    try:
        return Model.model_validate(base | {key: draw(st.sampled_from(VARIED[key])) for key in sorted(changed)})
    except ValidationError:
        assume(False)
        raise


def keys_of(**keys) -> Model:
    return Model.model_validate(keys)


@settings(max_examples=150, deadline=None)
@given(models(), models())
@example(keys_of(name="resnet18", width_multiplier=2), keys_of(name="resnet18"))
@example(keys_of(**PLAIN, width_multiplier=0.5, stem_width=32), keys_of(name="resnet20_cifar"))
@example(keys_of(**PLAIN), keys_of(name="wide_resnet16_8", stem="cifar", maxpool=False))
@example(keys_of(name="resnet50"), keys_of(name="seresnet50", se_ratio=0.25))
def test_the_keys_that_are_told_build_the_other_net(there, here):
    told = keys_to(net_of(there), keys_given(here))
    made = Model.model_validate(here.model_dump(exclude_unset=True) | told)
    assert net_of(made)._replace(se_ratio=math.nan) == net_of(there)._replace(se_ratio=math.nan)
    assert net_of(there).attention == "none" or net_of(made).se_ratio == net_of(there).se_ratio
    assert keys_to(net_of(there), keys_given(there)) == {}
