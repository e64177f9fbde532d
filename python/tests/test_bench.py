"""The benchmark's own judgement; no benchmark is run."""

from __future__ import annotations

import sys

import pytest

from lab.servers import PROJECT

sys.path.insert(0, str(PROJECT / "python" / "lab"))
import peers


@pytest.mark.parametrize("lines, said", [
    ([], "right"),
    (["b\tBob\\tO'Brien"], "1 missing"),
    (["\tc\tCat"], "1 too many"),
    (["a\tAnn", "\ta\tAnne"], "1 wrong, 'Ann' became 'Anne'"),
    (["a\tAnn", "\ta\t\\N"], "1 wrong, 'Ann' became NULL"),
])
def test_what_only_one_side_has_is_told(lines, said):
    assert peers.differences(lines) == said


def test_a_copy_is_compared_athlete_by_athlete(world):
    world.app_has(("a" * 32, "Ann"), ("b" * 32, "Bob\t\n"), ("c" * 32, ""))
    world.warehouse.sql("CREATE TABLE public.copy AS SELECT * FROM (VALUES (%s, 'Ann'), (%s, E'Bob\t\n'), (%s, NULL)) AS x",
                        "a" * 32, "b" * 32, "c" * 32)
    try:
        assert peers.verdict(world.lab, "warehouse", "public.copy", "*") == "1 wrong, '' became NULL"
    finally:
        world.warehouse.sql("DROP TABLE public.copy")


def test_a_peer_that_cannot_be_had_is_left_out_with_a_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(peers, "PEERS", [peers.Peer("nowhere", "no such package", "python", [], "analytics.athlete")])
    assert peers.peers_to_be_had() == []
    assert "nowhere is left out: " in capsys.readouterr().out
