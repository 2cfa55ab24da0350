"""Check what was collected; quarantine what fails, with its reason."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retroformer.config import ValidateConfig
from retroformer.errors import ContractBroken, DataError
from retroformer.files import replacing, write_json
from retroformer.quality.assembly import Record, assemble
from retroformer.quality.predicates import Limits, Reason, judge, judge_together
from retroformer.storage import EPISODES, PACKED, STEPS, read_table


def validate(
    config: ValidateConfig,
    *,
    rollouts: Path = Path("data/rollouts"),
    out: Path = Path("data/validated"),
) -> dict[str, Any]:
    """Check what was collected; quarantine what fails, with its reason.

    Runs the contract on the two tables and the predicates on each trajectory. Rows are never changed: what is
    accepted and what is in quarantine together are what was read. Episodes that ended in an error or were truncated
    are sound records, and accepted.

    Returns read, accepted and quarantined, counts of trajectories. Raises DataError where a table cannot be read or
    holds nothing, ContractBroken where more than `max_quarantined` of the trajectories fail.
    """
    episodes = read_table(rollouts / "episodes.parquet", EPISODES)
    steps = read_table(rollouts / "steps.parquet", STEPS)
    if not len(episodes):
        raise DataError(f"no trajectories were read: {rollouts}/episodes.parquet has no rows; run collect again")
    limits = Limits(config.min_reward, config.max_reward, config.max_steps)
    records = assemble(episodes, steps)
    for record in records:
        # Where rows are missing or jumbled, what the rest looks like would only blur the reason.
        if record.trajectory and not record.reasons:
            record.reasons += judge(record.trajectory, limits)
    readable = [record for record in records if record.trajectory]
    together = judge_together([record.trajectory for record in readable if record.trajectory])
    for record, reasons in zip(readable, together, strict=True):
        record.reasons += reasons

    with replacing(out) as folder:
        expectations = run_contract(records, episodes, steps, limits, folder / "docs")
        accepted = [record for record in records if not record.reasons]
        quarantined = [record for record in records if record.reasons]
        counts = Counter(reason.name for record in quarantined for reason in record.reasons)
        if len(quarantined) > config.max_quarantined * len(records):
            top = ", ".join(f"{name} {number}" for name, number in counts.most_common(3))
            example = quarantined[0]
            raise ContractBroken(
                f"{len(quarantined)} of {len(records)} trajectories in {rollouts} failed, more than the share "
                f"validate.max_quarantined = {config.max_quarantined:g} allows ({top}; for example {example.id}: "
                f"{example.reasons[0].detail}); nothing was lost, they lie in {rollouts} as before"
            )
        write_rows(folder, accepted, episodes, steps)
        (folder / "quarantine").mkdir()
        write_rows(folder / "quarantine", quarantined, episodes, steps)
        with (folder / "quarantine" / "reasons.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["trajectory_id", "reason", "detail"])
            writer.writerows([record.id, *reason] for record in quarantined for reason in record.reasons)
        totals = {"read": len(records), "accepted": len(accepted), "quarantined": len(quarantined)}
        outcomes = Counter(record.trajectory.outcome.value for record in accepted if record.trajectory)
        report = {**totals, "reasons": dict(counts), "outcomes": dict(outcomes), "expectations": expectations}
        write_json(folder / "validate.json", report)
    return totals


def run_contract(
    records: list[Record], episodes: pa.Table, steps: pa.Table, limits: Limits, docs: Path
) -> list[dict[str, Any]]:
    """Add the contract's reasons to the records; a reason that a predicate has given is not given twice."""
    from retroformer.quality.contract import FLAT_STEPS, check

    report = check(episodes.to_pandas(), steps.select(FLAT_STEPS).to_pandas(), limits, docs)
    for record in records:
        found = [] if record.episode is None else list(report.failures["episodes"].get(record.episode, []))
        for row in record.steps:
            found += report.failures["steps"].get(row, [])
        for reason in found:
            if reason.name not in names(record.reasons):
                record.reasons.append(reason)
    return report.expectations


def names(reasons: list[Reason]) -> set[str]:
    """Names without the details; both kinds of repeated id count as one for the contract, which cannot tell them."""
    found = {reason.name for reason in reasons}
    return found | {"duplicate_id"} if "conflicting_id" in found else found


def write_rows(folder: Path, records: list[Record], episodes: pa.Table, steps: pa.Table) -> None:
    """Write the records' rows of both tables as they were read, in the order in which they were read."""
    episode_rows = [record.episode for record in records if record.episode is not None]
    step_rows = sorted(row for record in records for row in record.steps)
    for name, table, rows, schema in (
        ("episodes.parquet", episodes, episode_rows, EPISODES),
        ("steps.parquet", steps, step_rows, STEPS),
    ):
        kept = table.take(pa.array(rows, pa.int64()))
        pq.write_table(kept.cast(schema).combine_chunks(), folder / name, **PACKED)
