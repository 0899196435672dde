import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resnet.ema import Ema


def network(device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).to(device)


def train(model, steps, after_step, first=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(first, first + steps):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        after_step(step)


def floats(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def assert_same(first, second, exact=False):
    for name, tensor in second.items():
        torch.testing.assert_close(first[name], tensor, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6, msg=name)


def test_equals_a_plain_loop():
    model = network()
    ema, expected = Ema(model, 0.9, every=3), {}

    def update(step):
        ema.update(model, step)
        if step % 3 == 0:
            current = floats(model)
            for name, tensor in current.items():
                expected[name] = 0.9 * expected[name] + 0.1 * tensor if step else tensor

    train(model, 11, update)
    assert_same(ema.module.state_dict(), expected)
    assert "1.running_var" in expected
    assert ema.module[1].num_batches_tracked == 10
    assert not torch.equal(ema.module[3].weight, model[3].weight)


def test_equals_torchs_average():
    model = network()
    ours = Ema(model, 0.95)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)

    def update(step):
        ours.update(model, step)
        theirs.update_parameters(model)

    train(model, 8, update)
    assert_same(floats(ours.module), floats(theirs.module), exact=True)


def test_without_a_decay_equals_torchs_equal_average():
    model = network()
    ours, theirs = Ema(model, decay=None), AveragedModel(model, use_buffers=True)
    # SWA's first weights are copied; torch counts its own copy as the first of them.
    train(model, 3, lambda step: ours.update(model, step, copy=True))

    def update(step):
        ours.update(model, step)
        theirs.update_parameters(model)

    train(model, 5, update, first=3)
    assert ours.updates == 5
    assert_same(floats(ours.module), floats(theirs.module))


def test_copies_until_told_to_average():
    model, start = network(), 4
    ema = Ema(model, 0.5)
    train(model, start, lambda step: ema.update(model, step, copy=True))
    assert_same(floats(ema.module), floats(model), exact=True)
    fresh = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)

    def update(step):
        ema.update(model, step)
        fresh.update_parameters(model)

    train(model, 3, update, first=start)
    assert_same(floats(ema.module), floats(fresh.module), exact=True)


def test_average_is_in_evaluation_mode_and_apart():
    model = network().train()
    ema = Ema(model, 0.9)
    assert not ema.module.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_state_survives_a_restart():
    model, other = network(), network()
    through = Ema(model, 0.9, every=2)
    train(model, 9, lambda step: through.update(model, step))

    before = Ema(other, 0.9, every=2)
    train(other, 4, lambda step: before.update(other, step))
    after = Ema(network(), 0.9, every=2)
    after.module.load_state_dict(before.module.state_dict())
    after.updates = before.updates
    assert after.updates == 2
    train(other, 5, lambda step: after.update(other, step), first=4)
    assert_same(after.module.state_dict(), through.module.state_dict(), exact=True)


def test_weights_loaded_later_are_averaged():
    model = network()
    ema = Ema(model, 0.5)
    ema.update(model, 0)
    ema.module.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()})
    ema.update(model, 1)
    assert torch.equal(ema.module[3].weight, model[3].weight / 2)


def test_updates_never_wait_for_the_device():
    # A meta tensor has no value: any look at one from the host raises.
    model = network("meta")
    ema = Ema(model, 0.9)
    for step in range(3):
        ema.update(model, step)
    assert ema.updates == 3
