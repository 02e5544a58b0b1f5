import torch
from torch import Tensor, nn

from pipeline.core import TensorSpec
from pipeline.models.capture import capture, count_macs, example_inputs
from pipeline.models.load import from_module
from pipeline.stages.quantize.graph.canonical import canonical_graph

X = TensorSpec(name="x", shape=(3,))


def test_example_inputs_are_the_real_samples_as_often_as_they_are_needed() -> None:
    ids, floats = example_inputs((torch.tensor([[7], [8]]), torch.tensor([0.5, 1.5])), 3)
    assert ids.tolist() == [[7], [8], [7]]
    assert floats.tolist() == [0.5, 1.5, 0.5]


class Squeezing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True).squeeze()


def test_a_captured_squeeze_leaves_a_batch_of_one() -> None:
    program = capture(Squeezing(), (X,)).module(check_guards=False)
    assert program(torch.ones(4, 3)).shape == (4,)
    (squeeze,) = [node for node in program.graph.nodes if "squeeze" in str(node.target)]
    assert list(squeeze.args[1]) == [1]


class Many(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] + xs[1]


def test_capture_keeps_the_batch_dynamic_for_any_number_of_arguments() -> None:
    program = capture(Many(), (X, TensorSpec(name="y", shape=(3,)))).module()
    assert program(torch.ones(5, 3), torch.ones(5, 3)).shape == (5, 3)


class EverySecond(nn.Module):
    """Two of four steps are left, as many as there were samples when it was captured."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, ::2])[0][:, -1]


def test_the_batch_stays_dynamic_beside_an_axis_of_two_where_an_lstm_is_unrolled() -> None:
    torch.manual_seed(0)
    module = EverySecond().eval()
    model = from_module(module, [TensorSpec(name="x", shape=(4, 3))])
    graph = canonical_graph(model)
    for count in (1, 2, 5):
        x = torch.randn(count, 4, 3)
        torch.testing.assert_close(graph(x), module(x))


class Needing(nn.Module):
    """Runs on real tokens only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not x.abs().sum() == 6.0:
            raise ValueError("made up")
        return self.fc(x)


def test_macs_are_counted_on_real_samples() -> None:
    assert count_macs(Needing(), (torch.full((1, 3), 2.0),)) == 6
