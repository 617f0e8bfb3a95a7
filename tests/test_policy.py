"""Policy files: what is written is read back, what does not fit is named with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.errors import UsageError
from octavo.policy import Gain, KernelChoice, Policy, difference, find, policy_path, save

FACTS = {"octavo": "0.1.0", "cpu": "one", "features": ["avx2", "fma"], "cores": 2, "linears": ["30 x 576 x 576"]}
POLICY = Policy(
    FACTS, (KernelChoice({"n": 576, "k": 576}, 8, "wide", "general", Gain(0.1, 0.05, 0.15, 20)),), threads=1, max_batch_tokens=1024, max_batch=64,
    kv_cache="int8", confirmed={"decode, 1 user": Gain(0.08, 0.06, 0.1, 16)}, measured=({"what": "x", "gain": None},), made="2026-01-01")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = policy_path(tmp_path / "new", "a/b model", "W4g64A8; *x*=keep")
    save(path, POLICY.to_json())
    found, reason = find(path, FACTS)
    assert found == POLICY and reason == ""
    assert POLICY.settings == {"threads": 1, "max_batch_tokens": 1024, "max_batch": 64, "kv_cache": "int8"} and not POLICY.empty
    assert path.read_text().count("\n") > 20, "people read it"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert Policy(FACTS).empty


def test_a_file_name_is_plain_and_tells_schemes_apart(tmp_path: Path) -> None:
    one, other = policy_path(tmp_path, "../x", "W4"), policy_path(tmp_path, "../x", "W8")
    assert one.parent == tmp_path and one != other and not one.name.startswith(".")
    assert len(policy_path(tmp_path, "m" * 500, "W4").name) < 120


@pytest.mark.parametrize("change,reason", [
    ({"cores": 4}, "cores was 2, is 4"),
    ({"features": ["avx2", "fma", "amx_int8"]}, "features was avx2, fma, is avx2, fma, amx_int8"),
    ({"octavo": "0.2.0", "cpu": "other"}, "octavo was 0.1.0, is 0.2.0; cpu was one, is other"),
    ({"layout": "panel16.2"}, "layout was not recorded, is panel16.2"),
])
def test_a_stale_policy_is_named_with_the_reason(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    path = policy_path(tmp_path, "m", "W4")
    save(path, POLICY.to_json())
    found, why = find(path, {**FACTS, **change})
    assert found is None and "stale" in why and reason in why and str(path) in why


def test_many_differences_are_counted() -> None:
    text = difference({}, dict.fromkeys("abcde", 1))
    assert text is not None and text.endswith("and 2 more")
    assert difference(FACTS, json.loads(json.dumps(FACTS))) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00", "[" * 100000, '{"format": "octavo policy 0"}', '{"format": "octavo policy 1"}'])
def test_what_is_no_policy_is_not_used(tmp_path: Path, text: str) -> None:
    path = policy_path(tmp_path, "m", "W4")
    path.write_text(text)
    found, why = find(path, FACTS)
    assert found is None and str(path) in why
    path.unlink()
    assert "there is no policy" in find(path, FACTS)[1]


@pytest.mark.parametrize("change", [
    {"settings": {"threads": 0}}, {"settings": {"threads": True}}, {"settings": {"threads": "2"}}, {"settings": {"speed": 3}}, {"settings": [1]},
    {"kernels": [{}]}, {"kernels": [{"problem": {}, "rows": -1, "kernel": "x", "default": "y", "gain": POLICY.to_json()["kernels"][0]["gain"]}]},
    {"kernels": None}, {"confirmed": {"x": {}}}, {"measured": 3}, {"fingerprint": "x"},
])
def test_a_damaged_field_is_an_error_with_a_place(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"there: .*octavo tune"):
        Policy.from_json({**POLICY.to_json(), **change}, "there")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        save(tmp_path / "file" / "policy.json", replace(POLICY, kernels=()).to_json())
