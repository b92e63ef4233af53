import html

import numpy as np
import pytest
import torch

from minimax import ClaimFailed, claim, recorded, table
from minimax.claims import number


def test_a_true_claim_shows_itself_with_its_evidence(shown):
    claim("Most <are> fooled", torch.tensor(True), error=torch.tensor(0.98765), n=3)
    ((data, metadata),) = shown
    assert data["text/plain"] == "✓ Most <are> fooled  [error = 0.9876, n = 3]"
    assert "Most &lt;are&gt; fooled" in data["text/html"]
    assert metadata["minimax_claim"]["evidence"] == {"error": "0.9876", "n": "3"}


def test_an_invariant_and_what_was_recorded_are_told_from_results(shown):
    for kind in ("measured", "invariant", "recorded"):
        claim("It is so", True, kind, n=3)
    assert [metadata["minimax_claim"]["kind"] for _, metadata in shown] == [
        "measured", "invariant", "recorded"
    ]  # fmt: skip
    texts = [data["text/plain"] for data, _ in shown]
    assert texts == [f"✓ It is so  [n = 3]{end}" for end in ("", "  (invariant)", "  (recorded)")]
    assert [data["text/html"].count(" · ") for data, _ in shown] == [0, 1, 1]
    with pytest.raises(ValueError, match="kind is 'proved'; it has to be one of 'measured', 'inv"):
        claim("It is so", True, "proved", n=3)


@pytest.mark.parametrize("holds", [False, np.False_, torch.tensor(False), float("nan") > 0])
def test_a_false_claim_raises_with_its_evidence(holds):
    with pytest.raises(ClaimFailed, match=r"✗ All fooled  \[share = 0.5\]"):
        claim("All fooled", holds, share=0.5)


def test_a_claim_needs_evidence():
    with pytest.raises(ValueError, match="'It is so' has no evidence"):
        claim("It is so", True)


@pytest.mark.parametrize(
    "holds",
    [
        float("nan"), np.float32("nan"), torch.tensor(float("nan")), torch.tensor([True, True]),
        np.array([True, False]), torch.tensor([]), torch.tensor([[float("nan")]]),
    ],
)  # fmt: skip
def test_a_claim_rests_on_one_truth_value(holds, shown):
    with pytest.raises(ValueError, match=r"claim 'It is so' rests on .* has to be true or false"):
        claim("It is so", holds, share=0.5)
    assert shown == []


@pytest.mark.parametrize("holds", [True, 1, np.True_, torch.tensor([True]), "yes", [0]])
def test_whatever_has_a_truth_value_can_hold(holds, shown):
    claim("It is so", holds, share=0.5)
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.123456, "0.1235"), (3, "3"), ("a", "a"), (np.float32(0.5), "0.5"),
        (torch.tensor([1.0, 2.0]), "1, 2"), ({"a": 1.0, 2: None}, "a: 1, 2: –"), ((1, "b"), "1, b"),
    ],
)  # fmt: skip
def test_numbers_as_the_book_prints_them(value, text):
    assert number(value) == text


def test_a_table_keeps_the_numbers_of_the_run(shown):
    table([{"what": "error", "paper": None, "ours": 0.25}], caption="T", measured={"e": 0.25})
    ((data, metadata),) = shown
    assert "<td>–</td>" in data["text/html"]
    assert metadata["minimax_table"]["measured"] == {"e": 0.25}


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="'T' has no rows"):
        table([], caption="T")


def test_compare_puts_mean_and_spread_of_the_record_beside_this_run(tmp_path, monkeypatch, shown):
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    origin = {"date": "2026-01-02", "commit": "abc", "device": "a CPU", "seconds": 9}
    measured = {"seeds": [0, 1], "measured": {"error": [0.1, 0.3]}}
    recorded.write("c/chapter", origin | measured)
    recorded.compare("c", [("error", "9 %", 0.5)], caption="T", this_run="digits")
    (_, metadata), (provenance, _) = shown
    row = ["error", "9 %", "0.2 ± 0.14 (2 seeds)", "0.5"]
    assert metadata["minimax_table"]["rows"] == [row]
    assert "commit abc on a CPU, seeds 0, 1, 9 s in all" in provenance["text/html"]


def test_a_damaged_record_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    (tmp_path / "c.json").write_text('{"date": ', "utf-8")
    with pytest.raises(ValueError, match=r"c\.json is damaged"):
        recorded.run("c")


def test_the_head_says_what_executes_the_chapter(shown):
    recorded.head()
    ((data, _),) = shown
    assert f"PyTorch {torch.__version__}" in data["text/html"]
    assert data["text/html"] == f"<p>{html.escape(data['text/plain'])}</p>"
