"""The table of mode collapse: its cells, alone, killed, and on a cluster."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from conftest import ROOT
from minimax import recorded, reproduce
from minimax.collapse import (
    METHODS,
    TABLES,
    Cell,
    FlatJudge,
    budget_of,
    digit_reader,
    networks,
    play_cell,
    real_scores,
    record_cells,
    recorded_cell,
)
from minimax.coverage import PERFECT_QUALITY, reverse_kl_floor
from minimax.game import play, reinitialise
from minimax.game.engine import seed_of
from minimax.recorded import provenance

SHORT = {"rounds": 20, "size": 16, "hidden": 8}


def weights(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_plays_every_table(method):
    for table, modes in (("ring", 8), ("grid", 25), ("high_dimensional", 10)):
        scores, history = play_cell(Cell(table, method, pack=2), copies=2, **SHORT)
        assert len(scores) == 2 and all(0 <= one.modes <= modes for one in scores)
        assert all(torch.isfinite(loss).all() for loss in history.losses.values())


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_plays_stacked_digits(method):
    scores, history = play_cell(Cell("stacked_digits", method, pack=2), copies=1, **SHORT)
    assert 1 <= scores[0].modes <= 1000 and 0 <= scores[0].quality <= 1
    assert all(torch.isfinite(loss).all() for loss in history.losses.values())


def test_the_scores_of_a_game_are_watched_and_end_near_those_of_the_average():
    scores, history = play_cell(Cell("ring", "gan"), copies=2, **SHORT)
    watched = history.watched["scores"]
    assert watched.shape == (21, 2, 3) and history.rounds[-1] == 20
    assert {one.modes for one in scores} <= set(range(9))


@pytest.fixture
def first_step(monkeypatch):
    """Return how far D and G move in the first round: with Adam, the length of their steps."""
    seen = []

    def watched(players, *given, **options):
        seen[:] = [network for player in players for network in player.modules]
        return play(players, *given, **options)

    monkeypatch.setattr("minimax.collapse.play", watched)

    def moved(scale):
        play_cell(Cell("ring", "gan", scale=scale), copies=1, rounds=1, size=16, hidden=8)
        after = [parameters_to_vector(network.parameters()) for network in seen]
        torch.manual_seed(seed_of(0, 0))  # that of the first copy
        for network in seen:
            reinitialise(network)
        before = [parameters_to_vector(network.parameters()) for network in seen]
        return [(b - a).abs().max().item() for a, b in zip(after, before, strict=True)]

    return moved


def test_a_slow_discriminator_makes_steps_of_a_tenth(first_step):
    assert first_step("quick") == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert first_step("slow") == pytest.approx([1e-4, 1e-3], rel=1e-2)


@pytest.mark.parametrize(("pack", "size"), [(1, 128), (3, 126), (4, 128)])
def test_a_batch_is_made_of_whole_packs(pack, size):
    assert budget_of(Cell("ring", "gan", pack)).size == size


def test_images_have_budgets_of_their_own():
    with pytest.raises(ValueError, match="scale is 'slow'"):
        Cell("stacked_digits", "gan", 1, "slow").checked()


def test_a_flat_judge_sees_the_images_of_a_pack_as_channels_and_their_codes():
    torch.manual_seed(0)
    judge = FlatJudge(8, 4, pack=2, codes=5).eval()
    pixels, codes = torch.rand(6, 2, 3 * 64), torch.randn(6, 2, 5)
    got = judge(torch.cat([pixels, codes], 2).flatten(1))
    maps = judge.images.maps(pixels.view(6, 6, 8, 8))[-1].flatten(1)
    expected = judge.answer(torch.cat([maps, codes.flatten(1)], 1))
    assert got.shape == (6, 1) and torch.allclose(got, expected)


@pytest.mark.parametrize(("name", "modes"), [("ring", 8), ("grid", 25), ("high_dimensional", 10)])
def test_real_data_get_what_the_formula_says(name, modes):
    scores = real_scores(name)
    perfect = 1.0 if name == "high_dimensional" else PERFECT_QUALITY
    assert scores.modes == modes
    assert scores.quality == pytest.approx(perfect, abs=0.01)
    assert scores.reverse_kl < 3 * reverse_kl_floor(modes, TABLES[name].samples)


def test_real_data_in_120_dimensions_get_what_chi_squared_says():
    half = torch.tensor(35.0)  # 70 axes with noise; its mean square is to be in [0.8², 1.2²]
    low, high = (torch.special.gammainc(half, half * edge**2) for edge in (0.8, 1.2))
    # Of 10 modes 3 have neighbours 0.25 away, 4 in all: noise of sd √70 must not sum up to 15.
    lost = 4 / 10 * (1 - torch.special.ndtr(torch.tensor(15 / 70**0.5)))
    scores = real_scores("high_dimensional_120")
    assert scores.modes == 10
    assert scores.quality == pytest.approx(((high - low) * (1 - lost)).item(), abs=0.01)


def test_real_stacked_digits_show_every_number():
    _, accuracy = digit_reader("digits")
    scores = real_scores("stacked_digits")
    assert accuracy > 0.95
    assert scores.modes == 1000 and scores.quality > 0.6 and scores.reverse_kl < 0.2


@pytest.mark.data
def test_real_stacked_mnist_has_the_divergence_of_the_protocol():
    """26,000 real triples with their true labels have 0.0237 ± 0.0010; ours are read, not known."""
    _, accuracy = digit_reader("mnist")
    scores = real_scores("stacked_mnist")
    assert accuracy > 0.985
    assert scores.modes == 1000 and scores.reverse_kl == pytest.approx(0.0237, abs=0.004)


def test_the_networks_of_the_paper_have_their_size():
    D, G, _ = networks(Cell("ring", "gan", 1, "paper"))
    packed, _, _ = networks(Cell("ring", "gan", 3, "paper"))
    assert weights(G) == 484_802
    assert weights(D) == 405_201
    assert weights(packed) == 405_201 + 2 * 2_000


def test_the_width_of_the_layers_is_the_one_asked_for():
    _, narrow, _ = networks(Cell("ring", "gan"), hidden=8)
    assert narrow[0].out_features == 8
    _, wide, _ = networks(Cell("high_dimensional", "gan"))
    assert wide[0].out_features == 1024  # noise in 700 directions has to get through


def test_a_cell_that_does_not_exist_is_refused_by_name():
    for cell, name in [
        (Cell("rings", "gan"), "table is 'rings'"),
        (Cell("ring", "vegan"), "method is 'vegan'"),
        (Cell("ring", "gan", 0), "pack is 0"),
        (Cell("ring", "gan", 1, "huge"), "scale is 'huge'"),
        (Cell("ring", "gan", 500), "pack is 500; it has to be at most 128, the size of a batch"),
    ]:
        with pytest.raises(ValueError, match=name):
            play_cell(cell)


def test_a_recorded_cell_is_not_played_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # no checkpoints of other versions
    cell = Cell("ring", "gan")
    record_cells([cell], 2, tmp_path, **SHORT)
    path = tmp_path / "remedies/ring.json"
    record = recorded_cell(cell, tmp_path)
    assert {"date", "commit", "device", "torch", "seconds"} <= set(record)
    assert record["seeds"] == [0] and record["copies"] == 2
    assert len(record["measured"]["quality"]) == 2
    assert record["settings"]["rounds"] == 20
    assert provenance(record).split(" on ")[1].split(", ", 1)[1].startswith("seed 0, 2 copies, ")
    assert record["real"]["modes"] == 8 and len(record["curve"]["modes"]) == 21
    before = path.stat().st_mtime_ns
    record_cells([cell], 2, tmp_path, **SHORT)
    with pytest.raises(
        SystemExit, match=r"\(recorded with other settings: copies 2, now 3, rounds"
    ):
        record_cells([cell], 3, tmp_path, **SHORT | {"rounds": 30})
    assert path.stat().st_mtime_ns == before


def test_a_trial_does_not_become_the_record():
    """Nor does one of a DCGAN."""
    for command in (
        ["collapse", "--table", "ring", "--rounds", "9"],
        ["dcgan", "--data", "digits", "--rounds", "9"],
        ["dcgan", "--data", "digits", "--float32"],
    ):
        said = f"{command[3]} makes a trial and no record of the book: add --out FOLDER"
        with pytest.raises(SystemExit, match=said):
            reproduce.main([*command, "--dirty"])


def started(folder, *arguments):
    """Start the command line in a process whose checkpoints and records go to ``folder``."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "minimax.reproduce", "collapse", "--table", "ring"]
    command += ["--scale", "quick", "--copies", "2", "--out", str(folder), "--dirty", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(folder)})


def wait_for(condition, process):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_cell_goes_on_to_the_same_numbers(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    game = ("--method", "gan", "--rounds", "2500")
    process = started(killed, *game)
    wait_for(lambda: list(killed.rglob("*.safetensors")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(killed.rglob("ring.json")) and len(list(killed.glob("minimax-*"))) == 1
    records = []
    for folder in (killed, whole):
        assert started(folder, *game).wait() == 0
        records.append(recorded_cell(Cell("ring", "gan"), folder))
        assert not list(folder.glob("minimax-*"))  # the same were taken up, and are gone
    assert records[0]["measured"] == records[1]["measured"]


BAD, GOOD = Cell("ring", "gan", 500), Cell("ring", "gan")


def test_a_cell_that_fails_costs_only_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit, match=rf"^1 of 2 cells failed: {BAD.name} .ValueError: pack is"):
        record_cells([BAD, GOOD], 1, tmp_path, rounds=5)
    assert list(recorded.run("remedies/ring", tmp_path)) == [GOOD.row]
    assert "ValueError: pack is 500" in capsys.readouterr().err


def test_a_game_that_diverges_costs_only_its_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit, match=r"2 of 2 cells failed: .*_gan_.*NonFinite.*; .*_ali_"):
        record_cells([GOOD, Cell("ring", "ali")], 1, tmp_path, rounds=30, lr=1e30)
    assert recorded.run("remedies/ring", tmp_path) is None


def test_a_cell_that_fails_on_a_cluster_costs_only_itself(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options, processes=False) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(SystemExit, match=f"1 of 2 cells failed: {BAD.name}"):
            record_cells([BAD, GOOD], 1, tmp_path, address, rounds=5)
    assert list(recorded.run("remedies/ring", tmp_path)) == [GOOD.row]
    assert not list(tmp_path.glob("minimax-*/*.json"))


def test_a_cluster_plays_all_cells_though_a_worker_is_killed(tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options, local_directory=tmp_path) as cluster:
        process = started(tmp_path, "--rounds", "200", "--cluster", cluster.scheduler_address)
        wait_for(lambda: recorded.run("remedies/ring", tmp_path), process)
        victim = next(iter(cluster.workers.values()))
        os.kill(victim.pid, signal.SIGKILL)
        assert process.wait(timeout=280) == 0
    assert set(recorded.run("remedies/ring", tmp_path)) == {
        Cell("ring", method).row for method in METHODS
    }
