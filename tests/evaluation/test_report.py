import csv
import json
import math
import random
import re
import shutil
from html.parser import HTMLParser

import pytest

from browser import PAYLOADS, inspect, needs_browser
from retroformer.curriculum.catalogue import COLUMNS as CATALOGUE
from retroformer.errors import DataError
from retroformer.evaluation.episodes import COLUMNS
from retroformer.evaluation.report import write_report

STRICT = {"P5N2": 0.5, "P6N3": 0.44, "P6N4": 0.41, "D6N4": 0.47}
MINIGRID = {
    "GoToLocalS5N2": 0.72,
    "GoToLocalS6N4": 0.63,
    "PickupDist": 0.5,
    "GoToDoor": 0.6,
}
LEVELS = {"strict": STRICT, "minigrid": MINIGRID}
HELD_OUT = {"strict": {"P7N3": 0.38, "P8N5": 0.3}, "minigrid": {"GoToLocalS7N4": 0.55}}
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle")


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def figure(success, n=800):
    return {"success": success, "lower": success - 0.03, "upper": success + 0.03, "n": n}


def make_round(data, *, number=3, each=24):
    """A plausible round: what the stages before `decide` leave, and the closed rounds."""
    chance = random.Random(0)
    sure = {"champion": 0.2, "challenger": 0.3, "random": -0.4, "imitation": 0.0, "imitation_of_successes": 0.1}

    def episodes(range_, levels, policy, mission="true", decoding="sampled"):
        for family, tasks in levels.items():
            for task, base in tasks.items():
                for seed in range(each):
                    rate = base + sure[policy] + 0.03 * (decoding == "greedy")
                    rate *= {"true": 1, "shuffled": 0.2 if family == "strict" else 0.5, "other": 0.05}[mission]
                    won = chance.random() < rate
                    lost = chance.random() < 0.002
                    outcome = "error" if lost else "success" if won else "failure"
                    yield policy, range_, mission, decoding, family, task, seed, "" if lost else int(won), outcome, 7

    rows = []
    for policy in ("champion", "challenger"):
        for mission in ("true", "shuffled", "other"):
            rows += episodes("gate", LEVELS, policy, mission)
        rows += episodes("gate", LEVELS, policy, decoding="greedy")
        rows += episodes("final", LEVELS, policy)
        for mission in ("true", "shuffled"):
            rows += episodes("transfer", HELD_OUT, policy, mission)
    rows += episodes("gate", LEVELS, "random")
    rows += episodes("final", LEVELS, "challenger", decoding="greedy")
    for policy in ("imitation", "imitation_of_successes"):
        for decoding in ("sampled", "greedy"):
            rows += episodes("final", LEVELS, policy, decoding=decoding)
    write_csv(data / "evaluation/episodes.csv", COLUMNS, rows)
    looks = [
        {"n": 256 * 2**k, "difference": 0.09 + 0.02 / (k + 1), "lower": 0.1 - 0.16 / 2**k, "upper": 0.11 + 0.15 / 2**k}
        for k in range(3)
    ]
    report = {"round": number, "confidence": 0.95, "looks": looks, "errors": 4, "summary": []}
    write(
        data / "evaluation/evaluation.json", report | {"champion": "3f2a9c01d4e5b677", "challenger": "b8810fe2aa93c455"}
    )
    steps = []
    for t in range(6):
        weights = [chance.random() ** 4 + 0.001 for _ in ACTIONS]
        shares = {action: weight / sum(weights) for action, weight in zip(ACTIONS, weights, strict=True)}
        seen = f"wall{4 - t % 3} grey_ball@f{5 - t % 4}r1 blue_key@f1l2 red_door_open@f3 > red_ball"
        steps.append(
            {
                "observation": seen,
                "action": max(shares, key=shares.get),
                "reward": float(t == 5),
                "probabilities": shares,
            }
        )
    told = {"seed": 30300017, "mission": "true", "description": "pick red_ball", "steps": steps}
    samples = [
        {"policy": "challenger", "task": "P6N3", "outcome": "success"} | told,
        {"policy": "challenger", "task": "D6N4", "outcome": "failure"} | told,
        {"policy": "champion", "task": "P6N3", "outcome": "failure"} | told,
    ]
    write(data / "evaluation/samples/trajectories.json", samples)

    curve = []
    for update in range(0, 2500, 5):
        x = update / 2500
        noise = [chance.gauss(0, 1) for _ in range(6)]
        score = 0.5 + 0.3 * x - 0.25 * max(0, x - 0.8) if update % 500 == 495 else ""
        policy_loss = 0.6 * math.exp(-3 * x) + 0.03 * noise[0]
        value_loss = 0.2 * math.exp(-x) + 0.01 * noise[1]
        entropy, kl = 1.2 * math.exp(-1.5 * x) + 0.02 * noise[2], 0.3 * x + 0.01 * abs(noise[3])
        ess, norm, rate = 0.9 - 0.4 * x + 0.02 * noise[4], abs(1.5 + 0.6 * noise[5]), 0.003 * (1 - x)
        losses = (policy_loss + value_loss / 2, policy_loss, value_loss, 2 * math.exp(-x))
        curve.append([update, *losses, entropy, kl, ess, 0.1 + 0.2 * x, norm, rate, 1 + int(x * 4), score])
    names = (
        "update loss policy_loss value_loss observation_loss entropy kl ess clipped grad_norm learning_rate tiers score"
    )
    write_csv(data / "training/curve.csv", names.split(), curve)
    schedule = [[u, min(3, 1 + u // 800), -1.6 + 0.8 * (1 - math.exp(-u / 600))] for u in range(0, 2500, 50)]
    write_csv(data / "training/schedule.csv", ("update", "tiers_admitted", "signal"), schedule)
    trained = {
        "objective": "topr",
        "baseline": "value",
        "updates": 2500,
        "trajectories": 3960,
        "steps": 41033,
        "tokens": 512340,
        "parameters": 184321,
        "chosen_update": 1995,
        "checkpoints": [{"update": u, "score": 0.5 + u / 9000} for u in range(495, 2500, 500)],
        "stopped": None,
        "diagnostics": {"kl": 0.21, "ess": 0.61, "clipped": 0.22, "entropy": 0.41, "grad_norm": 1.4},
        "threads": 1,
        "dtype": "float32",
        "condition_on_return": False,
        "learning_rate": 0.003,
        "start": "fresh",
    }
    write(data / "training/train.json", trained)

    catalogue, outcomes = [], []
    for family, tasks in LEVELS.items():
        for task, base in tasks.items():
            for k in range(120):
                outcome = "truncated" if k == 0 else "success" if chance.random() < base else "failure"
                outcomes.append(outcome)
                quality = min(1, max(0, (0.75 if outcome == "success" else 0.2) + chance.gauss(0, 0.1)))
                row = [f"{len(catalogue):016x}", number, family, task, "train", outcome, 1.0, 7, quality]
                catalogue.append([*row, 1 + int(3 * (1 - quality) * 0.99), 1 / 120, "3f2a9c01d4e5b677"])
    write_csv(data / "batches/catalogue.csv", list(CATALOGUE), catalogue)
    counts = {name: outcomes.count(name) for name in ("success", "failure", "truncated")}
    expectations = [{"expectation": f"column {k} is there", "success": True, "failed": 0} for k in range(14)]
    validated = {
        "read": 4400,
        "accepted": 4388,
        "quarantined": 12,
        "reasons": {"reward_out_of_range": 9, "no_steps": 3},
    }
    write(data / "validated/validate.json", validated | {"outcomes": counts, "expectations": expectations})
    tasks = {task: {"n": 550, "success": base} for levels in LEVELS.values() for task, base in levels.items()}
    collected = {
        "episodes": 4400,
        "steps": 41899,
        "policy": "scripted:babyai-bot?noise=0.7",
        "outcomes": counts,
        "tasks": tasks,
    }
    write(data / "rollouts/collect.json", collected)

    for k in range(1, number):
        champion, challenger = 0.5 + 0.14 * (k - 1), 0.62 + 0.13 * (k - 1)
        record = {
            "round": k,
            "verdict": "promote",
            "reason": f"The challenger is better by +0.1{k}0 (interval +0.05 to +0.16, 800 pairs), proven above 0.",
            "swapped_success": 0.2,
            "levels": [
                {
                    "task": None,
                    "behaviour": figure(0.48 + 0.1 * (k - 1)),
                    "champion": figure(champion),
                    "challenger": figure(challenger),
                }
            ],
        }
        write(data / f"history/round-{k:04d}/round.json", record)
        line = {
            "policy": "challenger",
            "range": "gate",
            "mission": "shuffled",
            "decoding": "sampled",
            "family": None,
            "task": None,
        }
        write(data / f"history/round-{k:04d}/evaluation/evaluation.json", {"summary": [line | figure(0.19 + 0.02 * k)]})
    return data


def make_verdict(number=3, **overrides):
    tasks = [task for levels in LEVELS.values() for task in levels]
    per_task = [
        {"task": task, "difference": 0.02 * k - 0.03, "lower": 0.02 * k - 0.1, "upper": 0.02 * k + 0.05, "n": 256}
        for k, task in enumerate(tasks)
    ]
    verdict = {"round": number, "verdict": "promote", "reason": "The challenger is better.", "judged_worse": False}
    return verdict | {"difference": 0.102, "lower": 0.071, "upper": 0.133, "n": 2044, "per_task": per_task} | overrides


def report(data, verdict=None, name="report.html"):
    folders = ("evaluation", "training", "batches", "validated", "rollouts", "history")
    write_report(data / name, verdict=verdict or make_verdict(), **{folder: data / folder for folder in folders})
    return (data / name).read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words = set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def loads_nothing(page):
    assert not page.tags & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "img",
        "base",
        "form",
        "audio",
        "video",
        "use",
    }
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        assert name not in ("src", "srcset", "action", "formaction", "xlink:href", "srcdoc")
        assert name != "href" or value.startswith("#"), value
        assert name != "style" or re.fullmatch(r"--p: [01]\.\d{4}|padding: 0", value), value


def test_a_whole_round(tmp_path):
    page = Page(report(make_round(tmp_path)))
    loads_nothing(page)
    for words in (
        "Round 3 promote",
        "+0.102 +0.071 to +0.133, 2,044 pairs",
        "Transfer: held-out tasks, never trained on",
        "Final range: seeds that no gate ever used",
        "imitation of everythingthis round",
        "Challenger and baselines",
        "Score of the checkpoints",
        "Trajectories by tier",
        "look 3: n 1024",
        "no_steps",
        "wall4 grey_ball@f5r1",
    ):
        assert words in page.text
    assert "is not here" not in page.text


def test_success_stands_with_its_interval_and_n(tmp_path):
    # Champion 2 of 4, challenger 3 of 4 and one lost; Wilson's intervals: 2 of 4 is .15 to .85, 3 of 4 .30 to .95.
    rows = [
        (policy, "gate", "true", "sampled", "strict", "x:A", seed, "" if won == "e" else won, outcome, 5)
        for policy, told in (("champion", "1100"), ("challenger", "1110e"))
        for seed, won in enumerate(told)
        for outcome in [{"1": "success", "0": "failure", "e": "error"}[won]]
    ]
    write_csv(tmp_path / "evaluation/episodes.csv", COLUMNS, rows)
    write(tmp_path / "evaluation/evaluation.json", {"round": 3, "confidence": 0.95, "looks": []})
    text = Page(report(tmp_path, make_verdict(per_task=[]))).text
    assert ".50n 4 .15 \N{EN DASH} .85" in text
    assert ".75n 4 .30 \N{EN DASH} .95" in text


HOSTILE = (
    "<script>document.title='broken'</script>\"'><img src=x onerror=alert(1)> javascript:alert(1) {{ 7*7 }} \u202e ✓"
)


def make_hostile_round(data, bad=HOSTILE):
    """Every text that an environment, a log or a policy could have a say in."""
    rows = [
        (policy, "gate", mission, bad, bad, bad, seed, seed % 2, ("failure", "success")[seed % 2], 5)
        for policy in ("champion", "challenger", bad)
        for mission in ("true", bad)
        for seed in range(4)
    ]
    rows += [("champion", bad, "true", "sampled", bad, name, 1, 1, "success", 5) for name in (bad, f"x:{bad}")]
    write_csv(data / "evaluation/episodes.csv", COLUMNS, rows)
    looks = [{"n": bad, "difference": 0.1, "lower": 0.0, "upper": 0.2}]
    told = {"champion": {bad: bad}, "challenger": bad, "errors": bad}
    write(data / "evaluation/evaluation.json", {"round": 3, "confidence": 0.95, "looks": looks, **told})
    names = dict.fromkeys(("policy", "task", "seed", "mission", "description", "outcome"), bad)
    step = {
        "observation": bad + "\x00",
        "action": bad,
        "reward": bad,
        "probabilities": {bad: 0.9, "1; color: red": bad},
    }
    write(data / "evaluation/samples/trajectories.json", [names | {"steps": [step, {**step, "probabilities": None}]}])
    write(data / "training/train.json", {bad: bad, "stopped": bad})
    write_csv(data / "training/curve.csv", ("update", "loss", bad), [(1, 0.5, bad), (bad, 0.4, bad)])
    row = ["a", 3, bad, bad, "train", "success", 1.0, 7, 0.5, 1, 0.1, bad]
    write_csv(data / "batches/catalogue.csv", list(CATALOGUE), [row])
    write(data / "validated/validate.json", {"reasons": {bad: bad}, "expectations": [{bad: bad}] * 20})
    write(data / "rollouts/collect.json", {bad: bad, "tasks": {bad: {bad: bad}}})
    write(data / "history/round-0001/round.json", {"verdict": bad, "reason": bad, "champion_success": 0.5})
    return data


def test_hostile_text_is_text(tmp_path):
    make_hostile_round(tmp_path)
    one = {"task": HOSTILE, "difference": 0.1, "lower": 0.0, "upper": 0.2, "n": 4}
    html = report(tmp_path, make_verdict(reason=HOSTILE, per_task=[one]))
    page = Page(html)
    loads_nothing(page)
    assert "<script" not in html.lower()
    assert html.count("&lt;script&gt;document.title=") > 40
    assert "{{ 7*7 }}" in page.text


@needs_browser
def test_no_hostile_text_runs_in_a_browser(tmp_path):
    made = []
    for place, payload in enumerate(PAYLOADS):
        data = make_hostile_round(tmp_path / str(place), payload)
        one = {"task": payload, "difference": 0.1, "lower": 0.0, "upper": 0.2, "n": 4}
        made.append(report(data, make_verdict(reason=payload, per_task=[one])))
    # The page's own policy forbids scripts; without it, escaping alone must do.
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert all(policy.search(page) for page in made)
    *found, bare, ran = inspect(
        [*made, *(policy.sub("", page) for page in made), "<p>x</p>", f"<p>{' '.join(PAYLOADS)}</p>"], tmp_path
    )
    assert (ran["ran"], bool(ran["links"]), bare["ran"]) == ("1", True, None), "the browser runs what may run"
    for place, page in enumerate(found):
        payload = PAYLOADS[place % len(PAYLOADS)]
        assert (page["ran"], page["scripts"], page["handlers"], page["links"]) == (None, 0, 0, 0), payload
        assert page["elements"] > 200
        assert payload in page["text"]


def test_very_long_and_broken_text(tmp_path):
    make_round(tmp_path)
    path = tmp_path / "evaluation/samples/trajectories.json"
    samples = json.loads(path.read_text())
    long = {"observation": "x" * 50_000 + "\ud800", "probabilities": {"left": "much", "\ud800": 7}}
    samples[0]["steps"] = [long, *samples[0]["steps"] * 40]
    write(path, [samples[0], *samples[1:] * 10])
    html = report(tmp_path)
    assert len(html) < 2_000_000
    text = Page(html).text
    assert "(48,001 characters more)" in text
    assert "141 more steps are left out" in text
    assert text.count("true mission, seed") == 12


def test_numbers_that_are_none(tmp_path):
    make_round(tmp_path)
    write(tmp_path / "training/curve.csv", "update,loss,kl,score\n1,nan,0.1,\n2,inf,x,\n3,0.5\n")
    write(tmp_path / "training/schedule.csv", "update,tiers_admitted,signal\n0,1,\n")
    page = Page(report(tmp_path))
    assert "Loss" in page.text
    assert "Score of the checkpoints" not in page.text
    drawn = [value for name, value in page.attributes if name in ("points", "x", "y", "cx", "cy", "x1", "y1", "width")]
    assert drawn
    assert not [value for value in drawn if "nan" in value or "inf" in value]


def test_the_same_files_make_the_same_page(tmp_path):
    make_round(tmp_path)
    assert report(tmp_path, name="first.html") == report(tmp_path, name="second.html")


def test_what_an_interrupted_closing_left_is_not_history(tmp_path):
    before = report(make_round(tmp_path))
    for number in (3, 4):
        write(tmp_path / f"history/round-{number:04d}/round.json", {"round": number, "challenger_success": 0.5})
    assert report(tmp_path) == before


def test_what_is_missing_is_named(tmp_path):
    make_round(tmp_path)
    for folder in ("training", "batches", "validated", "rollouts"):
        shutil.rmtree(tmp_path / folder)
    shutil.rmtree(tmp_path / "evaluation/samples")
    (tmp_path / "history/round-0002/round.json").unlink()
    text = Page(report(tmp_path)).text
    for name in ("training/train.json", "training/curve.csv", "batches/catalogue.csv", "validate.json", "collect.json"):
        assert name in text
    assert "round-0002: round.json is not here; try dvc pull" in text
    assert "No sample trajectories were kept" in text


def test_what_must_be_there(tmp_path):
    with pytest.raises(DataError, match=r"episodes.csv does not exist"):
        report(tmp_path)
    make_round(tmp_path)
    write(tmp_path / "evaluation/evaluation.json", {"confidence": 95})
    with pytest.raises(DataError, match=r"evaluation.json lacks its confidence"):
        report(tmp_path)
    (tmp_path / "evaluation/evaluation.json").unlink()
    with pytest.raises(DataError, match=r"evaluation.json does not exist"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()
