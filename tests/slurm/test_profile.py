"""What the keys of a cluster's profile take."""

import pytest

from slurm import sbatch
from slurm.profile import Profile, ProfileError, load_profile
from slurm.room import Room


@pytest.mark.parametrize(
    ("written", "nodes", "least", "most"),
    [("3", 3, 3, 3), ("1-8", "1-8", 1, 8), ("'2-4'", "2-4", 2, 4), ("2-2", 2, 2, 2), ("01-10", "1-10", 1, 10)],
)
def test_nodes_are_a_number_or_a_range(tmp_path, written, nodes, least, most):
    file = tmp_path / "cluster.yaml"
    file.write_text(f"nodes: {written}\ngpus_per_node: 4\n")
    for profile in (load_profile(str(file)), load_profile("local-test", [f"slurm.nodes={written}"])):
        assert (profile.nodes, profile.least_nodes, profile.most_nodes) == (nodes, least, most)
        assert profile.ranks == most * profile.local_ranks
        assert profile.is_range == (least < most)
        assert Profile.model_validate(profile.model_dump(mode="json")) == profile


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nodes=4-2"], "slurm.nodes=4-2 (command line): the least comes first: 2-4"),
        (["nodes=0-2"], "slurm.nodes=0-2 (command line): must be a number of nodes, 1 or more, or the least and the"),
        *(
            (["nodes=" + wrong], "must be a number of nodes, 1 or more")
            for wrong in ("0", "-1", "1-", "1.5", "all", "[1]")
        ),
        (["nodes=1-4", "spare_nodes=1"], "spare_nodes=1 is for one number of nodes"),
    ],
)
def test_other_nodes_are_refused(words, said):
    with pytest.raises(ProfileError, match=r"slurm\.nodes|spare") as refused:
        load_profile("local-test", [f"slurm.{word}" for word in words])
    assert said in str(refused.value)


def test_slices_have_a_longest_where_it_is_given():
    found = {
        time: (profile.is_sliced, profile.longest_slice, profile.fixed_time)
        for time in ("auto", "auto:12:00:00", "auto:90", "1-00:00:00")
        for profile in [load_profile("local-test", [f"slurm.time={time}"])]
    }
    assert found == {
        "auto": (True, None, "24:00:00"),
        "auto:12:00:00": (True, 720, "12:00:00"),
        "auto:90": (True, 90, "90"),
        "1-00:00:00": (False, None, "1-00:00:00"),
    }
    for wrong in ("auto:soon", "auto:1-", "automatic"):
        with pytest.raises(ProfileError, match=r"must be minutes.*auto:12:00:00"):
            load_profile("local-test", [f"slurm.time={wrong}"])
    with pytest.raises(ProfileError, match=r"signal_lead \(120 s\) must be less than time \(60 s\)"):
        load_profile("local-test", ["slurm.time=auto:1", "slurm.signal_lead=120"])


def test_the_longest_slice_is_asked_for(monkeypatch):
    """Also where the partition allows more; the site's own limits are not seen, and are told of where they refuse."""
    monkeypatch.setattr(sbatch, "room", lambda *_: Room(2880, 3))
    profile = load_profile("local-test", ["slurm.time=auto:12:00:00"])
    assert sbatch.partition_of(profile) == Room(720, 3)
    assert sbatch.partition_of(load_profile("local-test", ["slurm.time=auto"])) == Room(2880, 3)
    said = sbatch.refusal("sbatch: error: QOSMaxWallDurationPerJobLimit", profile)
    assert "slurm.time=auto:12:00:00 asks for what the partition allows" in said
    assert "asks for" not in sbatch.refusal("sbatch: error: QOSMaxWallDurationPerJobLimit", load_profile("local-test"))


def test_a_lead_that_is_given_is_the_least():
    assert [load_profile("local-test", [f"slurm.signal_lead={lead}"]).least_lead for lead in (200, 120)] == [200, 0]
