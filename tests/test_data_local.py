"""The real data, where the folder MINIMAX_DATA holds them."""

import pytest
import torch

from minimax.attacks import pgd
from minimax.data import load, squeezenet
from minimax.evaluation import accuracy

pytestmark = pytest.mark.data

SHAPES = {
    "mnist": (60_000, 10_000, (1, 28, 28), 10),
    "fashion_mnist": (60_000, 10_000, (1, 28, 28), 10),
    "cifar10_jpeg": (50_000, 10_000, (3, 32, 32), 10),
    "cifar10_lossless": (3200, 800, (3, 32, 32), 10),
    "gtsrb_subset": (5075, 1140, (3, 32, 32), 43),
    "cmu_faces": (499, 125, (1, 60, 64), 20),
    "facades": (360, 40, (3, 256, 256), 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_images(name):
    *lengths, shape, classes = SHAPES[name]
    seen = set()
    for split, length in zip(("train", "test"), lengths, strict=True):
        data = load(name, split=split)
        assert data.x.shape == (length, *shape)
        assert data.x.dtype == torch.float32
        assert data.x.min() >= 0 and data.x.max() <= 1
        assert data.x.max() > 0.9 and data.x.std() > 0.1
        assert len(data.y) == length
        seen |= set(data.y.tolist())
    assert seen == set(range(classes))


def test_mnist_is_the_original():
    data = load("mnist", split="test")
    assert data.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert load("mnist").x.mean() == pytest.approx(0.1307, abs=1e-4)


def test_the_jpeg_copy_is_close_to_the_lossless_images_and_lossy():
    jpeg, lossless = load("cifar10_jpeg"), load("cifar10_lossless")
    one = lossless.x[0]
    rms = (jpeg.x[jpeg.y == lossless.y[0]] - one).pow(2).flatten(1).mean(1).sqrt()
    assert 0 < rms.min() < 0.08


def test_signs_share_no_track_between_the_splits():
    tracks = []
    for split in ("train", "test"):
        data = load("gtsrb_subset", split=split)
        tracks.append(set(zip(data.y.tolist(), data.extras["track"].tolist(), strict=True)))
    assert not tracks[0] & tracks[1]
    undamaged = load("gtsrb_subset", repaired=False)
    assert len(undamaged) < 5075 and not undamaged.extras["repaired"].any()


def test_faces_of_the_test_split_are_other_people():
    train, test = load("cmu_faces"), load("cmu_faces", split="test")
    assert not set(train.y.tolist()) & set(test.y.tolist())
    assert set(train.extras["pose"]) == {"left", "right", "straight", "up"}
    assert set(train.extras["eyes"]) == {"open", "sunglasses"}


def test_facades_come_with_their_label_maps():
    data = load("facades", split="test")
    train, test = load("facades").extras["labels"], data.extras["labels"]
    assert test.shape == (40, 256, 256)
    # A label map has flat areas; a photograph hardly any.
    flat, photograph = ((part[..., 1:] == part[..., :-1]).float().mean() for part in (test, data.x))
    assert flat > 0.9
    assert flat > 2 * photograph
    # A class means the same in both splits, so that it is about as frequent.
    shares = torch.stack([part.flatten().bincount(minlength=12) / part.numel()
                          for part in (train, test)])  # fmt: skip
    assert shares.min() > 0.005
    assert torch.corrcoef(shares)[0, 1] > 0.95


def test_text_messages():
    train, test = load("sms_spam"), load("sms_spam", split="test")
    assert len(train) + len(test) == 5574
    assert int(train.y.sum() + test.y.sum()) == 747


@pytest.mark.parametrize("version", ["1_0", "1_1"])
def test_squeezenet_knows_the_photographs_and_ten_steps_fool_it(version):
    network, labels, origin = squeezenet(version)
    data = load("imagenet_photographs")
    assert len(labels) == 1000
    assert "copy" in origin
    assert labels[data.y[0]] == "giant panda" == data.extras["names"][0]
    assert accuracy(network, data.x, data.y) == 1  # true by construction: they were chosen so
    attacked = pgd(network, data.x, data.y, 0.007, steps=10, until_fooled=True, batch_size=8)
    assert (attacked - data.x).abs().max() <= 0.007 + 1e-6
    assert accuracy(network, attacked, data.y) == (
        0 if version == "1_1" else pytest.approx(0, abs=0.1)
    )
