import torch
from torch import nn

from pipeline.models.digest import key_of, weights_sha256


def test_weights_sha256_changes_when_one_value_a_shape_or_a_name_changes() -> None:
    def linear(change: str) -> nn.Module:
        layer = nn.Linear(4, 2, bias=False)
        nn.init.ones_(layer.weight)
        if change == "value":
            with torch.no_grad():
                layer.weight[0, 0] += 1e-6
        if change == "shape":
            layer.weight = nn.Parameter(torch.ones(2, 4).reshape(4, 2))
        return nn.Sequential(layer) if change == "name" else layer

    hashes = [weights_sha256(linear(change)) for change in ("none", "none", "value", "shape", "name")]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_key_of_changes_when_any_input_changes() -> None:
    assert len({key_of(a=1, b=2), key_of(a=1, b=3), key_of(a=2, b=2), key_of(a=1)}) == 4
