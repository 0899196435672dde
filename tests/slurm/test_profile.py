"""What the keys of a cluster's profile take."""

import pytest

from slurm.profile import Profile, ProfileError, load_profile


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
