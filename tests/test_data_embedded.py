import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from minimax.data import Data, load, names
from minimax.data.messages import TOPICS


@pytest.mark.parametrize("size", [8, 28])
def test_digits(size):
    train, test = load("digits", size=size), load("digits", split="test", size=size)
    assert len(train) + len(test) == 1797
    for data in (train, test):
        assert data.x.shape[1:] == (1, size, size)
        assert data.x.dtype == torch.float32
        assert data.x.min() == 0 and 0.99 < data.x.max() <= 1
        assert set(data.y.tolist()) == set(range(10))
    seen = {image.numpy().tobytes() for image in train.x}
    assert not any(image.numpy().tobytes() in seen for image in test.x)


def test_data_feeds_a_data_loader():
    data = load("digits")
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    x, y = next(iter(loader))
    assert x.shape == (32, 1, 8, 8) and torch.equal(y, data.y[:32])
    assert isinstance(data, Data)


def test_photographs():
    data = load("photographs")
    assert data.x.shape == (2, 3, 224, 224)
    assert 0 <= data.x.min() < 0.05 and 0.95 < data.x.max() <= 1


def test_ring_has_eight_distinct_modes():
    data = load("ring", count=2500)
    centres = data.extras["centres"]
    apart = torch.cdist(centres, centres) + 9 * torch.eye(8)
    assert len(centres) == 8
    assert apart.min() > 0.7  # an inclusive linspace would put two of them at the same place
    assert centres.norm(dim=1) == pytest.approx(torch.ones(8))
    assert len(data.y.unique()) == 8


@pytest.mark.parametrize(("name", "modes"), [("ring", 8), ("grid", 25)])
def test_two_dimensional_mixtures_have_the_papers_spread(name, modes):
    data = load(name, count=50_000)
    sd = {"ring": 0.01, "grid": 0.05}[name]
    noise = (data.x - data.extras["centres"][data.y]) / sd
    assert noise.std() == pytest.approx(1, abs=0.02)
    # Perfect samples: 1 − exp(−4.5) lie within three standard deviations.
    assert (noise.norm(dim=1) < 3).float().mean() == pytest.approx(0.9889, abs=0.002)
    assert torch.cdist(data.x, data.extras["centres"]).argmin(1).equal(data.y)
    assert len(data.extras["centres"]) == modes


def test_high_dimensional_is_what_makes_within_ten_deviations_impossible():
    data = load("high_dimensional", count=2000)
    delta = data.x - data.extras["centres"][data.y]
    assert data.x.shape == (2000, 1200)
    assert delta[:, 700:].abs().max() < 1e-6  # the 500 dimensions without noise
    assert delta.norm(dim=1).mean() == pytest.approx(26.4, abs=0.1)
    assert (delta.norm(dim=1) < 10).sum() == 0
    assert torch.cdist(data.x, data.extras["centres"]).argmin(1).equal(data.y)


def test_a_likeness_of_it_has_fewer_axes():
    data = load("high_dimensional_120", count=500)
    delta = data.x - data.extras["centres"][data.y]
    assert data.x.shape == (500, 120) and len(data.extras["centres"]) == 10
    assert delta[:, 70:].abs().max() < 1e-6 < delta[:, 69].std()
    with pytest.raises(ValueError, match="axes is 11"):
        load("high_dimensional", axes=11)


def test_one_dimensional_mixture():
    data = load("one_dimensional", count=50_000, means=(-1, 3), sds=(0.5, 1), weights=(1, 3))
    assert data.x.shape == (50_000, 1)
    assert data.y.float().mean() == pytest.approx(0.75, abs=0.01)
    assert data.x[data.y == 1].mean() == pytest.approx(3, abs=0.03)
    assert data.x[data.y == 0].std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", ["ring", "messages"])
def test_splits_differ_and_repeat(name):
    def content(split):
        data = load(name, split=split, count=50)
        return data.texts if name == "messages" else data.x.tolist()

    assert content("train") == content("train")
    assert content("train") != content("test")


def test_messages_come_from_the_documented_model():
    data = load("messages", count=4000)
    assert data.y.float().mean() == pytest.approx(0.4, abs=0.03)
    spam_words = set(" ".join(TOPICS["spam"].values()).split())
    assert not spam_words & set(" ".join(TOPICS["ham"].values()).split())
    share = {0: [], 1: []}
    for text, label in zip(data.texts, data.y.tolist(), strict=True):
        words = text.split()
        assert 6 <= len(words) <= 18
        share[label].append(sum(word in spam_words for word in words) / len(words))
    # from the message's own topic, and the spam half of "any topic"
    expected = 0.45 + 0.05 * 120 / 260
    assert sum(share[1]) / len(share[1]) == pytest.approx(expected, abs=0.03)
    assert sum(share[0]) / len(share[0]) < 0.05


BAD = [
    (("cifar",), {}, "name is 'cifar'; it has to be one of 'digits'"),
    (("digits",), {"split": "valid"}, "split is 'valid'; it has to be one of 'train', 'test'"),
    (("digits",), {"colour": 1}, r"load\('digits'\) has no option 'colour'; it takes: size"),
    (("mnist",), {"size": 3}, "has no option 'size'; it takes: none"),
    (("digits",), {"size": 4}, "size is 4; it has to be a whole number of at least 8"),
    (("ring",), {"count": 0}, "count is 0"),
    (("ring",), {"sd": -1}, "sd is -1"),
    (("ring",), {"modes": 0}, "modes is 0"),
    (("one_dimensional",), {"means": (1, 2, 3)}, r"\(means, sds, weights\) is \(3, 2, 2\)"),
    (("one_dimensional",), {"weights": (0, 0)}, "weights is .*positive"),
    (("one_dimensional",), {"means": (float("nan"), 1)}, "means is .*finite"),
    (("ring",), {"radius": float("inf")}, "radius is inf"),
    (("digits",), {"size": 16.0}, "size is 16.0; it has to be a whole number"),
    (("messages",), {"count": 2.5}, "count is 2.5"),
    (("messages",), {"count": 0}, "count is 0"),
    (("faces",), {"size": 8}, "size is 8; it has to be a whole number of at least 16"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), BAD)
def test_bad_arguments_get_one_clear_sentence(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        load(*arguments, **options)


@pytest.mark.parametrize(
    "name", ["digits", "ring", "messages", "faces", "scenes", "signs", "eyes", "turning_faces"]
)
def test_numbers_of_numpy_are_numbers(name):
    option = "size" if name == "digits" else "count"
    data = load(name, **{option: np.int64(16)})
    assert data.x.shape[-1] == 16 if name == "digits" else len(data) == 16


def test_every_fifth_digit_is_for_test():
    digits = load_digits()
    expected = torch.from_numpy(digits.images[::5]).float().div(16).unsqueeze(1)
    assert torch.equal(load("digits", split="test").x, expected)


def test_names_are_all_documented():
    for name in names():
        assert name in load.__doc__


def test_faces_have_the_attributes_that_they_are_drawn_with():
    faces, unseen = load("faces", count=40), load("faces", split="test", count=40)
    assert faces.x.shape == (40, 3, 32, 32) and faces.x.min() >= 0 and faces.x.max() <= 1
    assert torch.equal(faces.y, faces.extras["glasses"].long())
    assert not torch.equal(faces.x, unseen.x)
    dark = (faces.x.amax(1) < 0.12).flatten(1).float().mean(1)  # glasses are nearly black
    assert dark[faces.y == 1].min() > dark[faces.y == 0].median()
    yaw, look = faces.extras["yaw"], faces.extras["look"]
    assert torch.equal(yaw.div(0.6).round().long(), look)


def test_scenes_are_painted_by_their_label_maps():
    scenes = load("scenes", count=50)
    assert scenes.x.shape == (50, 3, 32, 32) and scenes.y.shape == (50, 32, 32)
    assert scenes.x.min() >= 0 and scenes.x.max() <= 1
    assert [name for name in scenes.classes if (scenes.y == scenes.classes.index(name)).any()] == [
        *scenes.classes
    ]
    _, green, blue = scenes.x.unbind(1)
    for name, brightest in (("sky", blue), ("grass", green), ("window", blue)):
        mask = scenes.y == scenes.classes.index(name)
        assert (brightest == scenes.x.amax(1))[mask].float().mean() > 0.95, name
    again = load("scenes", count=50)
    assert torch.equal(scenes.x, again.x) and torch.equal(scenes.y, again.y)
    assert load("scenes", count=2, size=64).x.shape == (2, 3, 64, 64)


def test_one_label_map_has_many_pictures():
    """Colours are drawn by lot: given the map, walls still differ in colour from house to house."""
    scenes = load("scenes", count=200)
    wall = (scenes.y == scenes.classes.index("wall"))[:, None]
    mean = (scenes.x * wall).sum((2, 3)) / wall.sum((2, 3))
    assert mean.std(0).min() > 0.05


def test_stacked_digits_spell_their_label():
    digits, stacked = load("digits"), load("stacked_digits", count=300)
    assert stacked.x.shape == (300, 3, 8, 8)
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(digits.x, digits.y, strict=True)
    }
    for x, y in zip(stacked.x, stacked.y, strict=True):
        spelled = [known[channel[None].numpy().tobytes()] for channel in x]
        assert spelled == [int(digit) for digit in stacked.classes[y]]


def test_turning_faces_go_on_in_the_direction_in_which_they_began():
    films = load("turning_faces", count=60)
    assert films.x.shape == (60, 3, 3, 32, 32) and films.x.min() >= 0 and films.x.max() <= 1
    first, then = films.extras["yaw"].diff(dim=1).unbind(1)
    assert torch.equal(first > 0, films.y == 1) and first.abs().min() >= 0.2
    share = then / first
    assert share.min() >= 0 and share.max() <= 2 and share.std() > 0.4
    assert not torch.equal(films.x, load("turning_faces", split="test", count=60).x)


@pytest.mark.parametrize("style", ["synthetic", "real"])
def test_eyes_look_where_their_gaze_says(style):
    eyes = load("eyes", count=1500, style=style)
    gaze = eyes.extras["gaze"]
    assert eyes.x.shape == (1500, 1, 24, 40) and eyes.x.min() >= 0 and eyes.x.max() <= 1
    assert eyes.y.unique().tolist() == [["synthetic", "real"].index(style)]
    assert gaze[:, 0].abs().max() <= 25 and gaze[:, 1].abs().max() <= 18
    pixels = eyes.x.flatten(1)
    linear = Ridge(10.0).fit(pixels[:1000], gaze[:1000])
    assert linear.score(pixels[1000:], gaze[1000:]) > 0.8


def test_the_two_styles_of_eyes_differ_in_texture_and_gaze():
    synthetic, real = load("eyes", count=50), load("eyes", count=50, style="real")
    corner = (slice(None), 0, slice(0, 4), slice(0, 6))
    assert synthetic.x[corner].flatten(1).std(1).max() < 0.02
    assert real.x[corner].flatten(1).std(1).min() > 0.01
    assert not torch.equal(synthetic.extras["gaze"], real.extras["gaze"])
    with pytest.raises(ValueError, match=r"style.*synthetic"):
        load("eyes", style="photograph")
