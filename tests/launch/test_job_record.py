import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.runs.job_record import Job, job_text, read_job
from slurm.claim import follow, newest_claim
from slurm.profile import Profile
from slurm.requests import note_job

OLD = {
    "job_id": "12_3", "name": "study.1-abc", "cluster": "local-test", "profile": {"nodes": 1}, "nodes": 1, "ranks": 2,
    "gpus_per_node": 2, "snapshot": "/runs/.code/1", "folder": "/home/me", "command": "launch sweep", "submitted": 1.5,
}  # fmt: skip
"""As version 0.1.0 wrote it."""


def write(run: Path, content: dict) -> Path:
    (run / "slurm").mkdir()
    (run / "slurm" / "job.json").write_text(json.dumps(content))
    return run


def test_a_record_of_another_version_is_read(tmp_path):
    old = read_job(write(tmp_path, OLD))
    assert old is not None
    assert (old.job_id, old.ranks) == ("12_3", 2)
    (tmp_path / "slurm" / "job.json").write_text(json.dumps(OLD | {"format": 2, "colour": "red"}))
    assert read_job(tmp_path) == old


def test_a_record_is_read_back(tmp_path):
    job = Job.to_send("a", "mine", Profile(), tmp_path, tmp_path)
    text = job_text(job, "7")
    assert json.loads(text)["format"] == 1
    read = read_job(write(tmp_path, json.loads(text)))
    assert read is not None
    assert (read.job_id, read.profile) == ("7", job.profile)


def test_of_several_jobs_the_one_that_has_the_run_or_had_it_last(tmp_path):
    names = ["request-1", "request-2"]
    for number, name in enumerate(names, 1):
        sent = replace(Job.to_send("a", name, Profile(), tmp_path, tmp_path), request=name)
        (tmp_path / "slurm" / name).mkdir(parents=True)
        (tmp_path / "slurm" / name / "job.json").write_text(job_text(sent, str(number)))
        if number == 1:
            (tmp_path / "slurm" / "job.json").write_text(job_text(replace(sent, requests=names), "1"))

    def known() -> tuple[str, str, list[str]]:
        job = read_job(tmp_path)
        assert job
        return job.request, job.job_id, job.requests

    def claim(**content: str) -> None:
        follow(tmp_path, newest_claim(tmp_path), content)

    assert known() == ("request-1", "1", names)
    claim(free="a token")
    assert known() == ("request-1", "1", names)
    claim(request="request-2", job_id="2")
    assert known() == ("request-2", "2", names)
    claim(free="request-2")
    # The others are sent again.
    note_job(tmp_path / "slurm" / "request-1", "7")
    assert known() == ("request-2", "2", names)
    claim(request="request-1", job_id="7")
    claim(request="request-1", job_id="7", over="failed")
    assert known() == ("request-1", "7", names)
    claim(free="a token")
    assert known() == ("request-1", "7", names)


def test_damage_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"job\.json is damaged"):
        read_job(write(tmp_path, {"job_id": "1"}))
    assert read_job(tmp_path / "never sent") is None
