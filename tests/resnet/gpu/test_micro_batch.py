"""`max_batch_per_device=auto` in the memory of a real GPU."""

import gc

import pytest
import torch

from resnet.checkpoint.commit import newest_first
from resnet.checkpoint.snapshot import read_rest
from tests.resnet.gpu.support import CUDA, run
from tests.resnet.gpu.test_steps import little_memory


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
def test_a_run_finds_what_its_memory_holds(tmp_path, capsys, device):
    words = ["data={source: synthetic, samples: 512, classes: 10, size: 224, num_workers: 0}", "batch_size=512"]
    words += ["augment.train_size=224", "augment.val_size=224", "augment.val_resize=224", "eval.batch_size=16"]
    with little_memory(1000):
        found = run(tmp_path, "r", f"device={device}", *words, "epochs=2", "max_batch_per_device=auto")
    micro_batch = read_rest(newest_first(found / "checkpoints")[0])["micro_batch"]
    assert 2 <= micro_batch < 512
    assert f"micro-batches of {micro_batch} fit into the GPU's memory" in capsys.readouterr().out
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() < 100e6
