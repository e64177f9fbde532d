"""The benchmark's own judgement; no benchmark is run."""

from __future__ import annotations

import sys

import pytest

from lab.servers import PROJECT

sys.path.insert(0, str(PROJECT / "python" / "lab"))
import peers

ANN, BOB = ["a", "Ann"], ["b", "Bob\\tO'Brien"]


@pytest.mark.parametrize("copied, said", [
    ([BOB, ANN], "right"),
    ([ANN], "1 missing"),
    ([ANN, BOB, ["c", "Cat"]], "1 too many"),
    ([ANN, BOB, BOB], "1 twice"),
    ([["a", "Anne"], BOB], "1 wrong, 'Ann' became 'Anne'"),
    ([["a", "\\N"], BOB], "1 wrong, 'Ann' became NULL"),
])
def test_a_peers_dimension_is_compared_athlete_by_athlete(copied, said):
    assert peers.differences([ANN, BOB], copied) == said


def test_a_peer_that_cannot_be_had_is_left_out_with_a_reason(monkeypatch, tmp_path, capsys):
    nowhere = peers.Peer("nowhere", "no such package", "python", [], "analytics.athlete")
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(peers, "PEERS", [nowhere])
    assert peers.peers_to_be_had() == []
    assert "nowhere is left out: " in capsys.readouterr().out


def test_the_page_shows_how_each_peer_is_configured():
    page = (PROJECT / "python" / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "```yaml\n%s```" % peers.SLING_REPLICATION.lstrip() in page
    for name in ("peer_dlt.py", "peer_execute_values.py"):
        program = (PROJECT / "python" / "lab" / name).read_text(encoding="utf-8")
        assert "```python\n%s```" % program.split('"""\n\n', 1)[1] in page
