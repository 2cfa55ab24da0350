from retroformer.evaluation.episodes import Played
from retroformer.evaluation.success import labels, success_tables


def test_a_tasks_name_may_have_colons():
    task = "openenv:localhost:8000"
    assert labels([task]) == {task: "localhost:8000"}
    episodes = [Played("challenger", "gate", "true", "sampled", "guessing", task, seed, 1.0) for seed in range(4)]
    (table,) = success_tables(episodes, {("guessing", "localhost:8000"): [0.0, 1.0]}, 0.95)
    means = {one.policy: cell.mean for one, cell in zip(table["columns"], table["rows"][0]["cells"], strict=True)}
    assert means == {"behaviour": 0.5, "challenger": 1.0}
