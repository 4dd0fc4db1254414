"""The report of measured pairs: its numbers, its files and its command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab_models import data
from trimtab_models.report.odds import main, markdown, report
from trimtab_models.validation import play


def _record(number: int, lengths: range, m: int, draw: np.random.Generator) -> dict[str, Any]:
    """A pair of 13 tokens a side whose value is settled by its seventh token."""
    measured, odds = [], []
    for n in lengths:
        sides = [
            (np.full(m, won) if n >= 7 else draw.integers(0, 2, m)).astype(float).tolist()
            for won in (1, 0)
        ]
        games = play(*sides)
        measured.append({"share": n / 13, "returns": sides, **games._asdict()})
        odds.append([n, n, games.odds])
    return {
        "prompt_token_ids": [number % 5],
        "chosen_token_ids": [*range(20, 33)],
        "rejected_token_ids": [*range(40, 53)],
        "score_chosen": 1.0,
        "score_rejected": 0.0,
        "odds": [*odds, [13, 13, 1.0]],
        "measured": measured,
    }


@pytest.fixture(scope="module")
def dense() -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [_record(i, range(1, 13), 64, draw) for i in range(30)]


class Names:
    def decode(self, ids: list[int]) -> str:
        return f"t{ids[0]}"


def test_the_settling_token_is_seen(dense: list[dict[str, Any]]) -> None:
    one = report(dense, Names())
    assert (one.pairs, one.prompts, one.ties, one.completions) == (30, 5, 0, 64)
    first, *_, last = one.wins
    assert first.wins.value == pytest.approx(0.5, abs=0.05)
    assert last.wins.value == 1
    assert one.credit is not None
    assert one.credit.replicated is not None
    assert one.credit.top.value < one.credit.replicated.value
    assert one.credit.top.value > 3 * one.credit.even
    assert {mover.token for mover in one.movers[:2]} == {"'t26'", "'t46'"}  # the seventh of each
    assert one.movers[0].size == pytest.approx(0.5, abs=0.1)
    assert one.step == 1
    text = markdown(one)
    assert f"| Gini's coefficient | {one.credit.gini} |" in text
    assert "| `'t26'` | 30 |" in text


def test_few_lengths_say_nothing_of_credit() -> None:
    draw = np.random.default_rng(0)
    one = report([_record(0, range(6, 10), 1, draw)])
    assert one.credit is None
    assert "`--lengths 1000` measures every token" in markdown(one)


def test_the_command(dense: list[dict[str, Any]], tmp_path: Path, capsys: Any) -> None:
    data.write(tmp_path / "odds.jsonl", dense)
    arguments = [str(tmp_path / "odds.jsonl"), "--out", str(tmp_path / "report")]
    main(arguments)
    main(arguments)  # it may be written again
    out = tmp_path / "report"
    names = {"report.md", "report.json", "report-odds.png", "report-credit.png"}
    assert {path.name for path in out.iterdir() if path.suffix in (".md", ".json", ".png")} >= names
    assert capsys.readouterr().out.endswith((out / "report.md").read_text())
    assert json.loads((out / "report.json").read_text())["pairs"] == 30
    for broken in ([{"prompt_token_ids": [1]}], [{**dense[0], "measured": 3}], []):
        data.write(tmp_path / "broken.jsonl", broken)
        with pytest.raises(SystemExit, match="measured pair"):
            main([str(tmp_path / "broken.jsonl"), "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
