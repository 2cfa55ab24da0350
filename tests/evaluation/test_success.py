from retroformer.evaluation.episodes import Played
from retroformer.evaluation.success import success_tables
from retroformer.types import Task


def test_the_behaviour_stands_beside_the_policies_by_the_name_that_both_have():
    task = Task("openenv", "guessing", "localhost:8000", "find it", 7, "gate").label
    episodes = [Played("challenger", "gate", "true", "sampled", "guessing", task, seed, 1.0) for seed in range(4)]
    (table,) = success_tables(episodes, {("guessing", task): [0.0, 1.0]}, 0.95)
    means = {one.policy: cell.mean for one, cell in zip(table["columns"], table["rows"][0]["cells"], strict=True)}
    assert means == {"behaviour": 0.5, "challenger": 1.0}


def test_a_task_without_a_name_of_its_own_is_called_by_its_environment():
    assert Task("mine.Parrot", "zoo", "default", "speak", 7, "gate").label == "mine.Parrot"
    assert Task("mine.Parrot", "zoo", "long", "speak", 7, "gate").label == "long"
