import pytest
import torch
from torch import Tensor, nn

from pipeline.core import CheckpointError, StageError, TensorSpec
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


def test_made_up_integers_lie_in_their_range() -> None:
    given = {"ids": (0, 30522), "mask": (0, 1), "lengths": (1, 6), "one": (3, 3)}
    specs = tuple(TensorSpec(name=name, shape=(500,), dtype="int64", range=each) for name, each in given.items())
    found = [(int(value.min()), int(value.max())) for value in example_inputs(specs, 4)]
    assert found[1:] == [(0, 1), (1, 5), (3, 3)]
    assert 0 <= found[0][0] < 100
    assert 30_000 < found[0][1] < 30_522  # so that the size of a vocabulary may be written for its last token
    flags = example_inputs((TensorSpec(name="flags", shape=(50,), dtype="bool", range=(0, 1)),))[0]
    assert flags.dtype is torch.bool
    assert 10 < int(flags.sum()) < 40


class Recurrent(nn.Module):
    """The last step of sequences of given lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.layer(packed)[1][0]  # type: ignore[no-any-return]


def test_a_module_that_looks_at_its_integers_is_loaded_where_their_range_is_given() -> None:
    x, lengths = TensorSpec(name="x", shape=(6, 4)), TensorSpec(name="lengths", shape=(), dtype="int64")
    with pytest.raises(CheckpointError, match="greater than 0"):
        from_module(Recurrent(), (x, lengths))
    assert from_module(Recurrent(), (x, lengths.model_copy(update={"range": (1, 6)}))).outputs == ("output",)


class Generating(nn.Module):
    """Adds tokens until one of them ends the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        while ids.shape[1] < 6 and not bool((ids[:, -1] == 4).all()):
            ids = torch.cat([ids, self.head(self.embed(ids[:, -1:])).argmax(-1)], dim=1)
        return ids


def test_a_loop_that_depends_on_values_is_refused_with_what_to_give_instead() -> None:
    with pytest.raises(StageError, match="cannot capture") as caught:
        capture(Generating(), (TensorSpec(name="ids", shape=(3,), dtype="int64"),))
    assert "give the network of one step" in str(caught.value.fix)
