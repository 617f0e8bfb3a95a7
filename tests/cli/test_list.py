"""`octavo list`: the registries as tables, and the tables in docs/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli import list as listing
from octavo.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("kind", sorted(listing.KINDS))
def test_every_kind_prints_as_text_json_and_markdown(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    text = capsys.readouterr().out
    assert main(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all(row[next(iter(row))] in text for row in rows)
    assert main(["list", kind, "--markdown"]) == 0
    assert len(capsys.readouterr().out.strip().split("\n")) == len(rows) + 2


def test_what_the_lists_hold() -> None:
    names = {row["format"] for row in listing.formats()}
    assert {"fp32", "fp16", "bf16", "fp8e4m3", "fp8e5m2", "int8", "int4", "int3", "int2", "nf4", "fp4", "mxfp4", "mxfp8", "nvfp4"} <= names
    assert all(row["what it is"] and row["when"] for row in listing.formats())
    assert {row["name"]: row["means"] for row in listing.schemes()}["FP8_BLOCK"] == "Wfp8b128x128Afp8g128C16"
    assert listing.methods()[0]["name"] == "rtn" and "reference" in {row["name"] for row in listing.kernels()}


@pytest.mark.parametrize("kind", ["formats", "schemes", "checkpoints", "findings", "methods"])
def test_docs_hold_the_generated_tables(kind: str) -> None:
    """After a change: `octavo list KIND --markdown` into the page, below its marker."""
    page = (DOCS / {"findings": "doctor.md", "methods": "quantize.md"}.get(kind, f"{kind}.md")).read_text()
    table = page.partition("<!-- generated -->\n")[2].strip()
    assert table == listing.markdown(listing.KINDS[kind]()), f"docs/{kind}.md is stale: run `octavo list {kind} --markdown`"


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "shoes"]) == 2
    assert "shoes" in capsys.readouterr().err
