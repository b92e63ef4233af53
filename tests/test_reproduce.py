"""The command line for long runs: what a record says of its origin, and what is taken up again."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT
from minimax import chapters, collapse, dcgan, recorded, reproduce, robust
from minimax.attacks import fgsm
from minimax.collapse import Cell
from minimax.evaluation import predict_proba
from minimax.game.engine import bf16_pays
from minimax.listing import listing
from minimax.recorded import origin
from minimax.recorded.origin import changes, checkpoint_folder, commit, device_used

TINY = {"size": 16, "features": 4, "rounds": 3, "batch": 4}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository that looks like the book's, and the function that runs git in it."""
    root = tmp_path / "clone"
    (root / "src/minimax/recorded/dcgan").mkdir(parents=True)
    (root / "src/minimax/reproduce.py").write_text("", "utf-8")
    (root / "src/minimax/recorded/dcgan/mnist.json").write_text("{}", "utf-8")

    def git(*command, at=root):
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *who, *command], cwd=at, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(origin, "ROOT", root)
    return root, git


def test_the_commit_is_named_and_what_it_lacks_is_dirt(repository):
    root, _ = repository
    clean = commit()
    assert len(clean) == 10 and int(clean, 16) >= 0 and changes() == []
    (root / "notes.txt").write_text("not part of what is run", "utf-8")
    assert changes() == []
    (root / "src/minimax/new.py").write_text("", "utf-8")
    assert changes() == ["src/minimax/new.py"] and commit() == f"{clean}-dirty"
    (root / "src/minimax/new.py").unlink()
    (root / "src/minimax/reproduce.py").write_text("changed = True", "utf-8")
    assert changes() == ["src/minimax/reproduce.py"] and commit() == f"{clean}-dirty"


def test_records_of_earlier_runs_are_no_dirt(repository):
    root, _ = repository
    (root / "src/minimax/recorded/dcgan/mnist.json").write_text('{"newer": 1}', "utf-8")
    (root / "src/minimax/recorded/dcgan/mnist.safetensors").write_text("weights", "utf-8")
    (root / "src/minimax/recorded/dcgan/another.json").write_text("{}", "utf-8")
    assert changes() == [] and "dirty" not in commit()


def test_without_git_the_commit_is_unknown(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown" and changes() == []
    assert origin.origin()["commit"] == "unknown"


def test_in_another_repository_the_commit_is_unknown(repository, monkeypatch):
    root, git = repository
    shutil.rmtree(root / ".git")
    assert commit() == "unknown"
    git("init", at=root.parent)  # around the book
    git("add", ".", at=root.parent)
    git("commit", "-m", "theirs", at=root.parent)
    assert commit() == "unknown" and changes() == []
    shutil.rmtree(root.parent / ".git")
    git("init")  # at the same place, without the package
    git("commit", "--allow-empty", "-m", "theirs")
    assert commit() == "unknown"


def test_a_tree_with_changes_is_refused_unless_it_is_asked_for(repository, monkeypatch, tmp_path):
    root, _ = repository
    (root / "src/minimax/reproduce.py").write_text("changed = True", "utf-8")
    played = []
    monkeypatch.setattr(collapse, "record_cells", lambda *a, **k: played.append(a))
    command = ["collapse", "--table", "ring", "--scale", "quick"]
    with pytest.raises(
        SystemExit, match=r"No commit holds .*: src/minimax/reproduce\.py\. .*dirty"
    ):
        reproduce.main(command)
    assert not played
    reproduce.main([*command, "--dirty"])
    assert len(played) == 1


KINDS = "list chapter timings dcgan collapse robust fast attacks photographs colours camera".split()


@pytest.mark.parametrize("what", [*KINDS, "substitutes"])
def test_every_kind_of_run_says_what_it_takes(what, capsys):
    with pytest.raises(SystemExit, match="0"):
        reproduce.main([what, "--help"])
    said = capsys.readouterr().out
    assert f"minimax.reproduce {what}" in said and (what == "list") != ("--dirty" in said)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["timings", "--data", "mnist"], "unrecognized arguments: --data"),
        (["dcgan", "--table", "ring"], "the following arguments are required: --data"),
        (["chapter", "defences"], "invalid choice: 'defences'"),
        ([], "the following arguments are required: WHAT"),
        (["dcgan", "--data", "faces", "--rounds", "0"], "'0' is no whole number of at least 1"),
        (["collapse", "--table", "ring", "--copies", "-1"], "'-1' is no whole number of at"),
    ],
)
def test_an_option_of_another_run_is_refused(arguments, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        reproduce.main(arguments)
    assert says in capsys.readouterr().err


def test_what_goes_wrong_is_said_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMAX_DATA", str(tmp_path / "nowhere"))
    file = tmp_path / "file"
    file.write_text("", "utf-8")
    for command, said in (
        (
            ["chapter", "defenses", "--seeds", "0", "0"],
            r"seeds is \[0, 0\]; it has to be",
        ),
        (["chapter", "defenses", "--seeds", "-1"], r"seeds is \[-1\]"),
        (["dcgan", "--data", "mnist"], "MINIMAX_DATA is .*nowhere"),
        (["dcgan", "--data", "mnist", "--out", str(file)], "File exists"),
        (["collapse", "--table", "stacked_mnist", "--scale", "short"], "scale is 'short'"),
    ):
        with pytest.raises(SystemExit, match=said):
            reproduce.main([*command, "--dirty"])


def test_an_installed_package_has_a_command_line_too(monkeypatch, capsys, tmp_path):
    """Without a clone there are no chapters to run; all else can be asked for."""
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    assert chapters.chapters() == []
    with pytest.raises(SystemExit, match="0"):
        reproduce.main(["dcgan", "--help"])
    monkeypatch.setattr(reproduce, "changes", list)
    for command in ("timings", "chapter"):
        with pytest.raises(SystemExit, match=r"no chapter 'defenses' .* run this in a clone"):
            reproduce.main([command, "defenses"])
    with pytest.raises(SystemExit, match=r"There are no chapters in .* run this in a clone"):
        reproduce.main(["timings"])


def test_what_is_recorded_is_listed_with_its_origin_and_what_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    began = origin.origin() | {"seconds": 1.0}
    cell = Cell("ring", "gan")
    old = collapse.settings(cell) | {"rounds": 7}
    odd = Cell("ring", "began")._asdict()
    record = began | {"cell": odd, "settings": {}, "seeds": [0]}
    recorded.write_row("remedies/ring", "zero", record)
    for row, settings in (("now", collapse.settings(cell)), ("old", old)):
        record = began | {"cell": cell._asdict(), "settings": settings, "seeds": [0], "copies": 3}
        recorded.write_row("remedies/ring", row, record)
    recorded.write("defenses/robust_mnist", began | {"settings": robust.SETTINGS | {"old": 1}})
    now = chapters.paper_settings("defenses")
    recorded.write("defenses/chapter", began | {"settings": [*now[1:], "0"], "seeds": [0, 1]})
    recorded.write("dcgan/chapter", began | {"settings": chapters.paper_settings("dcgan")})
    recorded.write("defences/chapter", began | {"settings": []})
    used = {name: dcgan.settings(name) | {"bf16": True} for name in ("mnist", "faces")}
    recorded.write("dcgan/mnist", began | {"settings": used["mnist"] | {"features": 1}})
    recorded.write("dcgan/faces", began | {"settings": used["faces"]})
    recorded.write("dcgan/cats", began | {"settings": {}})
    recorded.write("adversarial_examples/squeezenet", began)
    shown = dict(line.split(maxsplit=1) for line in listing() if "ring" not in line)
    assert began["commit"] in shown["dcgan/mnist"] and began["date"] in shown["dcgan/mnist"]
    assert {name: line.partition("  STALE: ")[2] for name, line in shown.items()} == {
        "adversarial_examples/squeezenet": "",
        "dcgan/cats": f"data is 'cats'; it has to be one of {str(list(dcgan.DCGANS))[1:-1]}.",
        "dcgan/chapter": "",
        "dcgan/faces": "",
        "dcgan/mnist": "features 1, now 48",
        "defences/chapter": "the chapter is gone",
        "defenses/chapter": f"paper=0 is gone; paper={now[0]} is new",
        "defenses/robust_mnist": "old 1, now –",
    }
    now, before, odd = (line for line in listing() if "ring" in line)
    assert now.endswith("seeds 0 × 3 copies") and before.endswith("STALE: rounds 7, now 2000")
    assert "STALE: method is 'began'" in odd
    recorded.write_row("timings", "dcgan", {"cpu": began | {"commit": "0123456789"}})
    (timed,) = (line for line in listing() if "timings" in line)
    assert timed.endswith("  ?: its commit is not in this clone")
    monkeypatch.setattr("minimax.listing.ROOT", tmp_path)
    unknown = [line for line in listing() if "?: there is no clone to compare with" in line]
    assert len(unknown) == 4  # three chapters and a time


def test_the_settings_of_a_chapter_are_whole_calls(tmp_path, monkeypatch):
    """Also those that go over several lines, the second of a line, and equal ones."""
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    (tmp_path / "book").mkdir()
    cells = [
        "%pip install x\nf(at_scale(quick=1, paper=2), at_scale(\nquick=3,paper={'a': [4,\n 5]}))",
        "at_scale(quick=0, paper=2)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.cells.append(nbformat.v4.new_markdown_cell("at_scale(quick=1, paper=7)"))
    nbformat.write(notebook, tmp_path / "book/one.ipynb")
    assert sorted(chapters.paper_settings("one")) == ["2", "2", "{'a': [4, 5]}"]


def test_rows_of_a_table_are_merged_and_each_is_a_line(tmp_path):
    for key, value in (("b", 1), ("a", 2), ("b", 3)):
        recorded.write_row("t/table", key, {"value": value}, tmp_path)
    assert recorded.run("t/table", tmp_path) == {"a": {"value": 2}, "b": {"value": 3}}
    assert len((tmp_path / "t/table.json").read_text("utf-8").splitlines()) == 4
    command = "from minimax import recorded; from pathlib import Path; import sys\n"
    command += "for i in range(20): recorded.write_row('t/table', sys.argv[1] + str(i), {'v': i}, "
    command += f"Path({str(tmp_path)!r}))"
    both = [subprocess.Popen([sys.executable, "-c", command, who]) for who in "xy"]
    assert [process.wait() for process in both] == [0, 0]
    assert len(recorded.run("t/table", tmp_path)) == 42


# --- checkpoints --------------------------------------------------------------------------------


def test_checkpoints_belong_to_settings_and_commit(tmp_path, monkeypatch):
    settings = {"rounds": 10, "lr": 1e-3}
    first = checkpoint_folder(tmp_path, "dcgan-mnist", settings)
    assert first == checkpoint_folder(tmp_path, "dcgan-mnist", dict(reversed(settings.items())))
    assert first.parent == tmp_path and first.name.startswith("minimax-dcgan-mnist-")
    others = {
        checkpoint_folder(tmp_path, "dcgan-faces", settings),
        checkpoint_folder(tmp_path, "dcgan-mnist", settings | {"lr": 2e-3}),
        checkpoint_folder(tmp_path, "dcgan-mnist", settings | {"bf16": True}),
    }
    monkeypatch.setattr(origin, "commit", lambda: "0123456789")
    others.add(checkpoint_folder(tmp_path, "dcgan-mnist", settings))
    monkeypatch.setattr(origin, "commit", lambda: "9876543210")
    others.add(checkpoint_folder(tmp_path, "dcgan-mnist", settings))
    assert len(others | {first}) == 6


def test_checkpoints_of_other_source_files_are_left_alone(tmp_path, monkeypatch):
    """So that two trees with changes, or two of an unknown commit, share none."""
    package = tmp_path / "minimax"
    package.mkdir()
    monkeypatch.setattr(origin, "__file__", str(package / "recorded/origin.py"))
    monkeypatch.setattr(origin, "commit", lambda: "unknown")
    folders = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", ""), ("run.json", "no source")):
        (package / name).write_text(text, "utf-8")
        folders.append(checkpoint_folder(tmp_path, "ring", {}))
    assert len(set(folders)) == 3 and folders[2] == folders[3]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A DCGAN of a moment; its checkpoints go to an empty folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setitem(dcgan.DCGANS, "digits", TINY)
    return tmp_path


def test_a_recorded_dcgan_says_what_was_used_and_leaves_no_checkpoints(tiny):
    dcgan.record_dcgan("digits", tiny / "out", rounds=2)
    assert not list((tiny / "temporary").iterdir())
    record = json.loads((tiny / "out/dcgan/digits.json").read_text("utf-8"))
    assert record["settings"]["rounds"] == 2
    assert record["settings"]["bf16"] == bf16_pays(torch.device("cpu")) or torch.cuda.is_available()
    assert record["commit"] == commit() and record["device"] == device_used()
    assert load_file(tiny / "out/dcgan/digits.safetensors")


def test_a_dcgan_is_recorded_in_32_bits_where_bf16_is_slower(tiny, monkeypatch):
    monkeypatch.setattr(dcgan, "bf16_pays", lambda device: False)
    dcgan.record_dcgan("digits", tiny, bf16=True)
    record = json.loads((tiny / "dcgan/digits.json").read_text("utf-8"))
    assert record["settings"]["bf16"] is False


def test_a_run_is_not_taken_up_by_another_version(tiny, monkeypatch):
    """A record must not say "new commit" over old weights: the second run plays all its rounds."""
    monkeypatch.setattr(shutil, "rmtree", lambda folder: None)  # as if it was killed
    for name in ("0123456789", "0123456789", "9876543210"):
        monkeypatch.setattr(origin, "commit", lambda name=name: name)
        dcgan.record_dcgan("digits", tiny)
    kept = list((tiny / "temporary").iterdir())
    assert len(kept) == 2 and all(list(folder.glob("round-*.json")) for folder in kept)


def test_the_record_is_written_before_its_checkpoints_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cell, there = Cell("ring", "gan"), []
    remove = shutil.rmtree

    def removed(folder):
        there.append(collapse.recorded_cell(cell, tmp_path) is not None and folder.exists())
        remove(folder)

    monkeypatch.setattr(shutil, "rmtree", removed)
    collapse.record_cells([cell], 1, tmp_path, rounds=2, size=8, hidden=4)
    assert there == [True] and not list(tmp_path.glob("minimax-*"))


def test_a_killed_robust_network_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    """It is killed in the second of its three trainings; the first is not played again."""
    x, played, play = torch.rand(40, 1, 28, 28), [], robust.play
    data = type("Data", (), {"x": x, "y": (x.flatten(1).sum(1) > 392).long()})
    monkeypatch.setattr(robust, "load", lambda name, split="train": data)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)

    def short(players, batches, rounds, checkpoint):
        if len(played) == 1:
            played.append("killed")
            raise KeyboardInterrupt
        play(players, batches, rounds=min(rounds, 2), checkpoint=checkpoint)
        played.append(checkpoint.name)

    monkeypatch.setattr(robust, "play", short)
    weights = []
    for folder in ("whole", "whole", "other"):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
        with contextlib.suppress(KeyboardInterrupt):
            robust.record_robust_mnist(images=4)
            weights.append(recorded.tensors(robust.RECORD))
    assert played == ["0.1", "killed", *["0.1", "0.2", "0.3"] * 2]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not list(tmp_path.glob("*/minimax-*"))


def test_fast_training_goes_on_with_what_lacks_a_record(tmp_path, monkeypatch):
    x, played, play = torch.rand(200, 1, 28, 28), [], robust.play
    data = type("Data", (), {"x": x, "y": torch.randint(10, (200,)), "__len__": lambda _: 200})()
    monkeypatch.setattr(robust, "load", lambda name, split="train": data)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)

    def short(players, batches, rounds, every, **options):
        assert rounds == 20 and players[0].schedule(0.4) == 1 and players[0].schedule(1.0) == 0
        if len(played) == 2:
            played.append("killed")
            raise KeyboardInterrupt
        played.append(options["seed"])
        return play(players, batches, rounds=2, every=1, **options)

    monkeypatch.setattr(robust, "play", short)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            robust.record_fast_mnist([0], images=4)
    assert played == [0, 0, "killed", 0]
    rows = recorded.run(robust.FAST)
    assert sorted(row["start"] for row in rows.values()) == sorted(robust.STARTS)
    for row in rows.values():
        assert len(row["rounds"]) == len(row["course"]["ten steps"]) and row["images"] == 4


def test_each_start_of_fast_training_is_what_it_is_called(monkeypatch):
    data = type("Data", (), {"x": torch.zeros(500, 1, 8, 8), "y": torch.arange(500) % 10,
                             "__len__": lambda _: 500})()  # fmt: skip
    monkeypatch.setattr(robust, "load", lambda name, split="train": data)
    monkeypatch.setitem(robust.FAST_SETTINGS, "epochs", 4)
    asked = {}
    for start in robust.STARTS:
        low = []

        class Watched(torch.nn.Linear):
            def forward(self, x, low=low):
                if torch.is_grad_enabled() and self.training:
                    low.append(x.min().item())
                return super().forward(x)

        robust.train_fast_mnist(torch.nn.Sequential(torch.nn.Flatten(), Watched(64, 10)), start)
        asked[start] = min(low)
    assert asked["the ball"] < -0.25  # on black images only a start that is not clipped is below
    assert asked["the image"] == asked["the ball, clipped"] == 0


def test_in_l2_noise_finds_what_lies_above_a_threshold(monkeypatch):
    monkeypatch.setitem(robust.ATTACK_SETTINGS, "walks", 60)

    class Threshold(torch.nn.Module):
        def forward(self, x):
            above = (x.flatten(1) - 0.5).relu().sum(1)
            return torch.stack([torch.full_like(above, 0.5), above], 1)

    torch.manual_seed(0)
    x, bright = torch.zeros(4, 1, 28, 28), torch.ones(8, 1, 28, 28)
    others = torch.cat([x, bright])
    y, classes = torch.zeros(4).long(), torch.tensor([0] * 4 + [1] * 8)
    left = robust._in_l2(Threshold(), x, y, others, classes)
    assert left["PGD"][-1] == 1 > left["PGD through noise"][-1], left


def test_maxout_networks_are_recorded_with_both_trainings(tmp_path, monkeypatch):
    torch.manual_seed(0)
    x, y = torch.rand(40, 1, 28, 28) / 2 + 0.25, torch.arange(40) % 10
    data = type("Data", (), {"x": x, "y": y, "__len__": lambda _: 300})()
    seen = {"rounds": [], "rates": [], "by FGSM": [], "networks": [], "images": []}
    play, train, score = robust.play, robust.adversarial_training, robust.accuracy
    build = robust.maxout_network

    def played(players, batches, rounds, seed):
        for layer in players[0].modules[0].modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.data *= 10  # so that the bound has something to do
        seen["rounds"].append(rounds)
        seen["rates"].append([players[0].schedule(over) for over in (0.0, 0.5, 1.0)])
        return play(players, batches, rounds=4, seed=seed)

    def adversarial(network, epsilon, mix, **options):
        seen["by FGSM"].append((epsilon, mix))
        return train(network, epsilon, mix=mix, **options)

    def built(pixels):
        seen["networks"].append(build(pixels, units=4))
        return seen["networks"][-1]

    def scored(network, images, labels):
        seen["images"].append(images)
        return score(network, images, labels)

    for name, one in {
        "load": lambda name, split="train": data, "play": played, "accuracy": scored,
        "adversarial_training": adversarial, "maxout_network": built,
    }.items():  # fmt: skip
        monkeypatch.setattr(robust, name, one)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    robust.record_maxout_mnist([3])
    assert seen["rounds"] == [120, 120] and seen["rates"] == [[1, 0.5, 0]] * 2
    assert seen["by FGSM"] == [(0.25, 0.5)]
    rows = recorded.run(robust.MAXOUT)
    for row, network in zip(rows.values(), reversed(seen["networks"]), strict=True):
        moved = fgsm(network, x, y, 0.25)
        measured = row["measured"]
        assert measured["clean"] == 1 - score(network, x, y)
        assert measured["FGSM"] == pytest.approx(1 - score(network, moved, y))
        said = predict_proba(network, moved)
        wrong = said.argmax(1) != y
        assert measured["confidence when wrong"] == pytest.approx(said[wrong].amax(1).mean().item())
    for clean, noisy in zip(seen["images"][::2], seen["images"][1::2], strict=True):
        assert torch.equal(clean, x)
        assert torch.allclose((noisy - x).abs(), torch.tensor(0.25), atol=1e-6)
        for name, weight in network.named_parameters():
            norms = weight.detach().norm(dim=-1)
            assert "bias" in name or 1.9 < norms.max() < 1.9366
    assert sorted(rows) == ["FGSM, seed 3", "clean, seed 3"]
    robust.record_maxout_mnist([3])  # the rows are there
    assert len(seen["rounds"]) == 2


def test_in_l2_an_image_is_left_if_no_attack_finds_it(monkeypatch):
    monkeypatch.setitem(robust.ATTACK_SETTINGS, "walks", 60)
    monkeypatch.setitem(robust.ATTACK_SETTINGS, "steps", 5)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x, others = torch.rand(12, 1, 4, 4), torch.rand(40, 1, 4, 4)
    y, classes = (network(images).argmax(1) for images in (x, others))
    y[0] = (y[0] + 1) % 3  # misread from the start
    left = robust._in_l2(network, x, y, others, classes)
    best = left.pop("the best of them")
    assert set(left) == {"PGD", "PGD through noise", "HopSkipJump"} and best[0] < 1
    for kept in left.values():
        assert kept == sorted(kept, reverse=True) and max(kept) <= 11 / 12 + 1e-6
        assert all(b <= k for b, k in zip(best, kept, strict=True))


def test_a_chapter_is_recorded_seed_by_seed_and_with_its_device(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(recorded, "write", lambda name, record: records.append(record))
    records, executed = [], []

    def execute(chapter, environment):
        seed = environment["MINIMAX_SEED"]
        executed.append(seed)
        if executed == ["0", "1"]:
            raise KeyboardInterrupt  # the second seed is interrupted
        table = {"metadata": {"minimax_table": {"measured": {"error": float(seed)}}}}
        return type("Notebook", (), {"cells": [{"outputs": [table]}]}), 2.0, 0.5, "a GPU"

    monkeypatch.setattr(chapters, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        chapters.record_chapter("defenses", [0, 1])
    chapters.record_chapter("defenses", [0, 1])
    assert executed == ["0", "1", "1"]
    (record,) = records
    assert record["measured"] == {"error": [0.0, 1.0]} and record["device"] == "a GPU"
    assert not list((tmp_path / "temporary").iterdir())


def test_a_slow_cell_is_recorded_and_its_notebook_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "FOLDER", tmp_path / "src/minimax/recorded")
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    (tmp_path / "book/_tools").mkdir(parents=True)
    toc = {"parts": [{"chapters": [{"file": "book/one.ipynb"}]}]}
    (tmp_path / "_toc.yml").write_text(json.dumps(toc), "utf-8")
    (tmp_path / "_config.yml").write_text('repository: {url: ""}', "utf-8")
    shutil.copy(ROOT / "book/_tools/sync.py", tmp_path / "book/_tools")
    cells = [":tags: [hide-cell, solution]\n\nimport time\ntime.sleep(0.3)", "print('quick')"]
    code = "\n\n".join(f"```{{code-cell}} ipython3\n{cell}\n```" for cell in cells)
    kernel = "kernelspec: {display_name: Python 3, language: python, name: python3}"
    (tmp_path / "book/one.md").write_text(
        f"---\njupytext: {{text_representation: {{extension: .md, format_name: myst}}}}\n"
        f"{kernel}\n---\n\n# One\n\n{code}\n",
        "utf-8",
    )
    sync = [sys.executable, str(tmp_path / "book/_tools/sync.py")]
    subprocess.run(sync, check=True)
    monkeypatch.setattr(chapters, "SLOW", 0.25)
    for _ in range(2):  # a cell that says so already is found again
        chapters.record_timings(["one"])
        subprocess.run(sync, check=True)
        notebook = nbformat.read(tmp_path / "book/one.ipynb", as_version=4)
        slow, quick = (cell.source for cell in notebook.cells[-2:])
        assert slow.startswith("# @title Solution\n# takes about 0 s on two cores\nimport time")
        assert quick == "print('quick')"


# --- the device -----------------------------------------------------------------------------------


def test_a_gpu_that_was_not_used_is_not_named(monkeypatch):
    memory = [0, 0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: memory[index])
    assert " CPU core" in device_used()
    memory[1] = 512
    assert device_used() == "GPU 1"


# --- what is recorded is read -------------------------------------------------------------------


def test_provenance_names_seed_and_copies_and_older_records_their_seeds():
    record = {"date": "2026-01-02", "commit": "abc", "device": "a CPU", "seconds": 9}
    said = "Recorded 2026-01-02 at commit abc on a CPU"
    assert recorded.provenance(record) == f"{said}, 9 s in all."
    old = record | {"seeds": [0, 1]}
    assert recorded.provenance(old) == f"{said}, seeds 0, 1, 9 s in all."
    new = record | {"seeds": [0], "copies": 10}
    assert recorded.provenance(new) == f"{said}, seed 0, 10 copies, 9 s in all."
    one = record | {"seeds": [0], "copies": 1}
    assert recorded.provenance(one) == f"{said}, seed 0, 1 copy, 9 s in all."
    two = recorded.provenance(old, old | {"commit": "abd", "seeds": [2], "date": "2026-01-03"})
    assert two == ("Recorded 2026-01-02 and 2026-01-03 at commits abc, abd on a CPU, "
                   "seeds 0, 1, 2, 18 s in all.")  # fmt: skip
    noted = record | {"note": "when two pages were one"}
    assert recorded.provenance(noted) == f"{said}, 9 s in all, when two pages were one."


def test_recorded_tensors_that_are_cut_off_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"The recorded tensors .*a\.safetensors are damaged"):
        recorded.tensors("a")
    with pytest.raises(FileNotFoundError):
        recorded.tensors("b")


def test_the_command_line_refuses_a_dirty_tree_with_one_sentence(tmp_path):
    """The real command, on a clone of the package with a change."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "src", clone / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "_toc.yml", clone)
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init"], ["add", "."], [*who, "commit", "-m", "all"]):
        subprocess.run(["git", *command], cwd=clone, check=True, capture_output=True)
    with (clone / "src/minimax/scale.py").open("a", encoding="utf-8") as file:
        file.write("\n")
    done = subprocess.run(
        [sys.executable, "-m", "minimax.reproduce", "dcgan", "--data", "digits"],
        env=os.environ | {"PYTHONPATH": str(clone / "src")}, cwd=clone, capture_output=True,
        encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "No commit holds what this tree has: src/minimax/scale.py. Commit it, or pass --dirty."
    )
    assert Path(clone / "src/minimax/recorded/dcgan/mnist.json").exists()
