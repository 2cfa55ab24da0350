"""The contract on the flat tables, as Great Expectations suites in code, and its Data Docs.

The only module that imports great_expectations, inside the function that needs it: the import takes seconds.
Index columns are never asked of it (``unexpected_index_column_names`` costs 15 times more); row numbers come back
instead. Results come in another order than the suite, so they are matched by the expectation's id.
"""

from __future__ import annotations

import html
import logging
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from retroformer.errors import DataError
from retroformer.quality.assembly import OPTIONAL
from retroformer.quality.predicates import Limits, Reason
from retroformer.storage import EPISODES, STEPS
from retroformer.types import Outcome, StopReason

RUN_TIME = datetime(2000, 1, 1, tzinfo=UTC)
"""Stands for the time of the run in Data Docs, so that the same data gives the same bytes."""
FLAT_STEPS = [name for name in STEPS.names if name not in ("admissible_actions", "token_ids")]
"""Columns of ``steps`` that are not nested."""


@dataclass(frozen=True, slots=True)
class ContractReport:
    """What the contract found."""

    expectations: list[dict[str, Any]]
    """``{name, success, unexpected}`` of each expectation, in the order of the suites."""
    failures: dict[str, dict[int, list[Reason]]]
    """By table (``episodes``, ``steps``) and row number: the reasons."""


def expectations(limits: Limits) -> dict[str, list[Any]]:
    """The two suites; each column expectation carries the reason that its rows are given."""
    import great_expectations.expectations
    from great_expectations.expectations.row_conditions import Column

    gxe: Any = great_expectations.expectations

    def because(reason: str) -> dict[str, Any]:
        return {"meta": {"reason": reason}}

    episodes = [
        gxe.ExpectTableRowCountToBeBetween(min_value=1),
        gxe.ExpectTableColumnsToMatchSet(column_set=EPISODES.names, exact_match=True),
        *(
            gxe.ExpectColumnValuesToNotBeNull(column=name, **because("missing_value"))
            for name in EPISODES.names
            if name not in {*OPTIONAL, "total_reward"}
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="total_reward", **because("reward_not_finite")),
        gxe.ExpectColumnValuesToBeUnique(column="trajectory_id", **because("duplicate_id")),
        gxe.ExpectColumnValuesToBeInSet(
            column="outcome", value_set=[one.value for one in Outcome], **because("unknown_value")
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="stop_reason", value_set=[one.value for one in StopReason], **because("unknown_value")
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="steps", min_value=1, row_condition=Column("outcome") != Outcome.ERROR.value, **because("no_steps")
        ),
        gxe.ExpectColumnValuesToBeBetween(column="steps", max_value=limits.max_steps, **because("too_many_steps")),
        gxe.ExpectColumnValuesToBeBetween(
            column="temperature",
            min_value=0,
            strict_min=True,
            max_value=sys.float_info.max,
            **because("invalid_temperature"),
        ),
        gxe.ExpectColumnValuesToBeBetween(column="attempt", min_value=0, **because("invalid_attempt")),
    ]
    steps = [
        gxe.ExpectTableColumnsToMatchSet(column_set=FLAT_STEPS, exact_match=True),
        gxe.ExpectColumnValuesToNotBeNull(column="trajectory_id", **because("steps_without_episode")),
        gxe.ExpectColumnValuesToBeBetween(
            column="t", min_value=0, max_value=limits.max_steps - 1, **because("too_many_steps")
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="t", **because("steps_out_of_order")),
        gxe.ExpectColumnValuesToNotBeNull(column="reward", **because("reward_not_finite")),
        gxe.ExpectColumnValuesToBeBetween(
            column="reward", min_value=limits.min_reward, max_value=limits.max_reward, **because("reward_out_of_range")
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="logprob", min_value=-sys.float_info.max, max_value=0, **because("invalid_logprob")
        ),
    ]
    for name in ("observation", "action"):
        steps += [
            gxe.ExpectColumnValuesToNotBeNull(column=name, **because("empty_text")),
            gxe.ExpectColumnValueLengthsToBeBetween(column=name, min_value=1, **because("empty_text")),
        ]
    return {"episodes": episodes, "steps": steps}


def check(episodes: pd.DataFrame, steps: pd.DataFrame, limits: Limits, docs: Path | None = None) -> ContractReport:
    """Run both suites; with `docs`, build Data Docs into that folder (``index.html`` opens without a server).

    Of rows that share an id, the first is not reported. Raises DataError where a table as a whole is not what the
    contract says, or an expectation could not be evaluated.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    source = context.data_sources.add_pandas("rollouts")
    tables = {"episodes": episodes.reset_index(drop=True), "steps": steps[FLAT_STEPS].reset_index(drop=True)}
    report = ContractReport([], {"episodes": defaultdict(list), "steps": defaultdict(list)})
    for table, members in expectations(limits).items():
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(gx.ExpectationSuite(name=table, expectations=members))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=table, data=batch, suite=suite))
        results = definition.run(
            batch_parameters={"dataframe": escaped(tables[table])},
            result_format="COMPLETE",
            run_id=RunIdentifier(run_name="validate", run_time=RUN_TIME),
        )
        by_id = {getattr(result.expectation_config, "id", None): result for result in results.results}
        for expectation in suite.expectations:
            record_result(report, table, tables[table], by_id[expectation.id])
    if docs is not None:
        build_docs(context, Path(docs), report)
    return report


def escaped(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with their text escaped: Great Expectations writes the values that it shows into HTML raw."""
    text = {
        name: frame[name].map(html.escape, na_action="ignore") for name in frame.select_dtypes(["object", "string"])
    }
    return frame.assign(**text)


def record_result(report: ContractReport, table: str, frame: pd.DataFrame, result: Any) -> None:
    """Add one expectation's result to the report."""
    config = result.expectation_config
    column = config.kwargs.get("column")
    name = f"{table}{'.' + column if column else ''} {config.type.removeprefix('expect_').replace('_', ' ')}"
    if config.meta:
        name += f" ({config.meta['reason']})"
    rows = [] if result.success else result.result.get("unexpected_index_list")
    if rows is None:
        seen = result.result.get("observed_value") or result.exception_info
        raise DataError(f"the table {table} breaks the contract ({name}): {seen}")
    if config.type == "expect_column_values_to_be_unique":
        repeated = frame[column].duplicated().to_numpy()
        rows = [row for row in rows if repeated[row]]
    for row in rows:
        value = str(frame[column].iloc[row])
        detail = f"{column} = {value[:80]}"
        if "t" in frame and column != "t":
            detail += f" at step {frame['t'].iloc[row]:g}"
        report.failures[table][row].append(Reason(config.meta["reason"], detail))
    report.expectations.append({"name": name, "success": bool(result.success), "unexpected": len(rows)})


def build_docs(context: Any, docs: Path, report: ContractReport) -> None:
    """Great Expectations' own pages, made reproducible, behind an index that needs no script from elsewhere."""
    site = "retroformer"
    context.add_data_docs_site(
        site,
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )
    failures: list[BaseException | str | None] = []

    def note(entry: logging.LogRecord) -> bool:
        # A page that cannot be written is logged with its whole traceback, and left out or cut short.
        if failed := entry.levelno >= logging.ERROR:
            failures.append(sys.exc_info()[1] or entry.getMessage())
        return not failed

    logger = logging.getLogger("great_expectations.render.renderer.site_builder")
    logger.addFilter(note)
    try:
        context.build_data_docs(site_names=[site])
    finally:
        logger.removeFilter(note)
    if failures:
        raise DataError(f"Data Docs, the pages of the contract, cannot be written: {failures[0]}")
    for picture in docs.glob("static/images/*.gif"):
        picture.unlink()  # megabytes of how-to that no page shows
    stamp = RUN_TIME.strftime("%Y%m%dT%H%M%S.%fZ")
    for page in docs.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"\d{8}T\d{6}\.\d{6}Z", stamp, text)
        text = re.sub(r"(collapse-body-)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", r"\g<1>0", text)
        page.write_text(text, encoding="utf-8")
    pages = sorted(path.relative_to(docs).as_posix() for path in docs.glob("validations/**/*.html"))
    if len(pages) != len(report.failures):
        raise DataError(f"Data Docs have {len(pages)} pages of the contract, expected one a table")
    links = "".join(f'<li><a href="{page}">{page.split("/")[1]}: all results</a></li>' for page in pages)
    rows = "".join(
        f"<tr><td>{html.escape(one['name'])}</td><td>{'met' if one['success'] else '<b>broken</b>'}</td>"
        f"<td>{one['unexpected']}</td></tr>"
        for one in report.expectations
    )
    (docs / "index.html").write_text(INDEX.format(links=links, rows=rows), encoding="utf-8")


INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Contract of the trajectories</title>
<style>body {{ font: 15px sans-serif; margin: 2em }} td, th {{ text-align: left; padding: 3px 14px 3px 0 }}</style>
</head><body><h1>Contract of the trajectories</h1><ul>{links}</ul>
<table><tr><th>expectation</th><th>result</th><th>rows</th></tr>{rows}</table>
</body></html>
"""
