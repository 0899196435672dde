import sys
from pathlib import Path

import pytest

from resnet.tools import verify_resume

PROGRAM = Path(__file__).parents[2]
TINY = (
    "recipe=quickstart device=cpu data.per_class=8 data.size=40 data.num_workers=0 model.name=null model.block=basic "
    "model.layers=[1,1,1] augment.train_size=32 augment.val_resize=36 augment.val_size=32 batch_size=16 epochs=4 "
    "optimizer.lr=0.02 ema.decay=0.7 eval.flip=true wandb.mode=disabled progress=off run.name=r"
)


def test_verifying_a_resume_on_one_rank_starts_the_trainer(monkeypatch, tmp_path):
    started = []

    def noted(command: list[str], folder: Path, name: str) -> None:
        started.append(command)
        raise ValueError("enough")

    monkeypatch.setattr(verify_resume, "_finish", noted)
    with pytest.raises(ValueError, match="enough"):
        verify_resume.verify_resume(TINY.split(), keep=tmp_path)
    assert started[0][:2] == [sys.executable, str(PROGRAM / "train.py")]
    assert started[0][2] == "recipe=quickstart"
