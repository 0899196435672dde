"""What a run's job is given to read, and what is refused before it is sent."""

import pytest

from launch.runs import send as sending
from launch.runs.checks import check_paths
from launch.runs.requests import Place
from launch.runs.sizes import find_sizes
from recipes.load import dump, load, load_file
from slurm.profile import Profile


def test_a_retry_leaves_the_recipe_that_an_older_copy_of_the_program_reads(tmp_path, monkeypatch):
    """`launch retry` sends the copy that the job ran, which knows the keys of its own version only."""
    monkeypatch.setattr(sending, "submit_jobs", lambda submission: ["7"])
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    file = run_dir / "slurm" / "recipe.yaml"

    def sent(recipe):
        sending.send(run_dir, recipe, [Place("test", Profile())], tmp_path, tmp_path)
        return file.read_text()

    recipe = load(["recipe=quickstart", f"run.root={tmp_path}", "run.name=run"]).recipe
    assert sent(recipe) == dump(recipe)
    older = dump(recipe).replace("  keep: 2\n", "  keep: 2\n  max_failures: 3\n")
    file.write_text(older)
    monkeypatch.setattr(sending, "refuse_active", lambda run_dir: None)
    assert sent(load_file(file).recipe) == older
    changed = load([f"recipe={file}", "epochs=9"]).recipe
    assert sent(changed) == dump(changed)


@pytest.mark.parametrize("word", ["device=cuda", "precision=fp16", "model.sync_batchnorm=true"])
def test_what_needs_gpus_is_not_sent_to_cpus(word):
    recipe = load(["recipe=quickstart", word]).recipe
    find_sizes(recipe, Profile())
    with pytest.raises(ValueError, match=f"{word}, but slurm.gpus_per_node=0"):
        find_sizes(recipe, Profile(gpus_per_node=0))


def test_paths_on_the_disks_of_nodes_are_not_looked_for(monkeypatch):
    monkeypatch.setenv("FAST", "/not/here")
    recipe = load(["recipe=quickstart", "data={source: image_folder, train: $FAST/train, val: /not/here/val}"]).recipe
    for scratch in ("/not/here", "$FAST"):
        check_paths(recipe, scratch)
    with pytest.raises(ValueError, match=r"data.train="):
        check_paths(recipe, "/elsewhere")
