"""What a run's job is given to read."""

import launch.runs.send
from launch.runs.send import send
from recipes.load import dump, load, load_file
from slurm.profile import Profile


def test_a_retry_leaves_the_recipe_that_an_older_copy_of_the_program_reads(tmp_path, monkeypatch):
    """`launch retry` sends the copy that the job ran, which knows the keys of its own version only."""
    monkeypatch.setattr(launch.runs.send, "submit", lambda submission: ["7"])
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    file = run_dir / "slurm" / "recipe.yaml"

    def sent(recipe):
        send(run_dir, recipe, "test", Profile(), tmp_path, tmp_path)
        return file.read_text()

    recipe = load(["recipe=quickstart", f"run.root={tmp_path}", "run.name=run"]).recipe
    assert sent(recipe) == dump(recipe)
    older = dump(recipe).replace("  keep: 2\n", "  keep: 2\n  max_failures: 3\n")
    file.write_text(older)
    monkeypatch.setattr(launch.runs.send, "refuse_active", lambda run_dir: None)
    assert sent(load_file(file).recipe) == older
    changed = load([f"recipe={file}", "epochs=9"]).recipe
    assert sent(changed) == dump(changed)
