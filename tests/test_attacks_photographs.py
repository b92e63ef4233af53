"""What the network says of a photograph, of the perturbation alone, and of noise of its size."""

import torch
from torch import nn

from minimax.attacks import input_gradient
from minimax.attacks.photographs import EPSILONS, attack_photograph
from minimax.data import Pretrained
from minimax.evaluation import predict_proba


def tiny(classes=12):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
    return Pretrained(network, [f"label {k}" for k in range(classes)], "drawn")


def test_the_sign_has_its_own_label():
    pretrained, photograph = tiny(), torch.rand(3, 8, 8)
    found = attack_photograph(pretrained, photograph)
    x = photograph[None]
    sign = input_gradient(pretrained.network, x, predict_proba(pretrained.network, x).argmax(1))
    answer = predict_proba(pretrained.network, (sign.sign() + 1) / 2)[0]
    label, sure = found["sign_says"]
    assert label == f"label {answer.argmax()}"
    assert abs(sure - answer.max()) < 1e-6
    assert [row["epsilon"] for row in found["rows"]] == list(EPSILONS)
    assert torch.equal(found["sign"], sign.sign()[0])
