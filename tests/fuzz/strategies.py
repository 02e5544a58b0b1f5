"""Hypothesis strategies for networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzz.blocks.catalogue import KINDS, DoesNotFit, Kind
from tests.fuzz.data import SETS
from tests.fuzz.known_faults import KnownFault
from tests.fuzz.networks import NAMES, Builder
from tests.fuzz.spec import Block, Network, Value
from tests.fuzz.subject import SETTINGS

SEEDS = st.integers(0, 2**16)

COMPUTED = ("image", "signal", "tokens", "vector", "channels_last", "volume")
"""Layouts of what a network computes, and so returns."""

WEIGHTS = {"convolutions": 10, "norms": 3, "joins": 3, "attention": 4, "dense": 4, "recurrent": 3}
"""How often a family is drawn, where it is not twice; no more often than it has kinds for a value."""

OFTEN = {
    "embedding": 8,
    "conv2d": 4,
    "conv_bn_act": 4,
    "conv_transpose2d": 2,
    "conv1d": 2,
    "linear": 2,
    "attention": 3,
    "masked_attention": 6,
    "padded_attention": 3,
    "mask_tokens": 3,
    "masked_pool": 4,
}
"""How often a kind is drawn within its family, where it is not once."""


def rarely(choices: Sequence[str], times: int = 8) -> SearchStrategy[str]:
    """The first choice, or in one of ``times`` networks another one."""
    return st.integers(0, times - 1).flatmap(
        lambda drawn: st.sampled_from(choices) if drawn == times - 1 else st.just(choices[0])
    )


@st.composite
def networks(draw: DrawFn, known: Sequence[KnownFault] = (), most_blocks: int = 8) -> Network:
    """Networks that run, without what is in ``known``.

    Blocks that do not fit what they would read are left out, so every network that is drawn is valid.
    """

    def allowed(network: Network) -> bool:
        return not any(fault.is_in(network) for fault in known)

    inputs = draw(st.sampled_from([s for s in SETS if allowed(Network(s, (), ()))]))
    network = Network(inputs, (), (), seed=draw(SEEDS))
    builder = Builder(inputs, network.seed)
    for _ in range(draw(st.integers(2, most_blocks))):
        block = draw(blocks(builder.values, _unread(network)))
        if block is None:
            continue
        wider = replace(network, blocks=(*network.blocks, block))
        if allowed(wider) and _added(builder, block):
            network = wider
    if not network.blocks:
        network = _with_any_block(network, builder, allowed)
    plain = _returning_the_last(network, builder)
    network = replace(
        draw(with_outputs(plain, builder)),
        names=draw(rarely(tuple(NAMES), 16)),
        settings=draw(rarely(tuple(SETTINGS), 4)),
    ).without_unread()
    return network if allowed(network) else plain.without_unread()


def _with_any_block(network: Network, builder: Builder, allowed: Callable[[Network], bool]) -> Network:
    """The network with the first block that fits its input."""
    for kind in KINDS.values():
        wider = replace(network, blocks=(Block(kind.name, (0,)),))
        takes = len(kind.reads) == 1 and kind.gives != "answer" and builder.values[0].layout in kind.reads[0]
        if takes and allowed(wider) and _added(builder, wider.blocks[0]):
            return wider
    return network


def _returning_the_last(network: Network, builder: Builder) -> Network:
    """The network with one output, the last value that it computes."""
    last = max((i for i, value in enumerate(builder.values) if value.layout in COMPUTED), default=0)
    return replace(network, outputs=(last,))


def _added(builder: Builder, block: Block) -> bool:
    try:
        builder.add(block)
    except DoesNotFit:
        return False
    return True


def _unread(network: Network) -> list[int]:
    """Values that no block reads yet, the latest last."""
    read = {index for block in network.blocks for index in block.reads}
    return [index for index in range(len(network.inputs) + len(network.blocks)) if index not in read]


@st.composite
def blocks(draw: DrawFn, values: Sequence[Value], unread: Sequence[int]) -> Block | None:
    """A block that reads some of these values; None where no kind reads the one that is drawn.

    Half of the blocks read the latest value, most others what nothing has read yet.
    """
    readable = [i for i, value in enumerate(values) if any(value.layout in kind.reads[0] for kind in KINDS.values())]
    waiting = [index for index in readable if index in unread] or readable
    place = draw(st.integers(0, 7))
    first = readable[-1] if place < 4 else draw(st.sampled_from(waiting if place < 7 else readable))
    families: dict[str, list[Kind]] = {}
    for kind in KINDS.values():
        if kind.gives != "answer" and values[first].layout in kind.reads[0] and _second(kind, values, first):
            families.setdefault(kind.family, []).extend([kind] * OFTEN.get(kind.name, 1))
    if not families:
        return None
    weights = {name: min(len({kind.name for kind in kinds}), WEIGHTS.get(name, 2)) for name, kinds in families.items()}
    family = draw(st.sampled_from([name for name, weight in weights.items() for _ in range(weight)]))
    kind = draw(st.sampled_from(families[family]))
    reads = (first,)
    if len(kind.reads) > 1:
        others = _second(kind, values, first)
        reads = (first, draw(st.sampled_from([index for index in others if index in unread] or others)))
    return Block(kind.name, reads, draw(options(kind)))


def _second(kind: Kind, values: Sequence[Value], first: int) -> list[int]:
    """What a block may read beside the first value; the latest first, and that value itself for want of others
    where two values have to be of one shape."""
    if len(kind.reads) == 1:
        return [first]
    mine = values[first]

    def goes(value: Value) -> bool:
        if value.layout not in kind.reads[1]:
            return False
        if kind.pair == "any":
            return True
        if value.layout != mine.layout:
            return False
        if kind.pair == "equal":
            return value.shape == mine.shape
        axis = len(mine.shape) - 1 if mine.layout in ("tokens", "channels_last", "vector") else 0
        return all(a == b for i, (a, b) in enumerate(zip(mine.shape, value.shape, strict=True)) if i != axis)

    found = [index for index in reversed(range(len(values))) if index != first and goes(values[index])]
    return found or ([first] if goes(mine) and kind.pair != "any" else [])


@st.composite
def options(draw: DrawFn, kind: Kind) -> dict[str, object]:
    """Options that are not the simplest; where a kind has several, half of them are."""
    drawn = {}
    for name, choices in kind.choices.items():
        if len(kind.choices) > 1 and draw(st.booleans()):
            continue
        value = draw(st.sampled_from(choices))
        if value != choices[0]:
            drawn[name] = value
    return drawn


@st.composite
def with_outputs(draw: DrawFn, network: Network, builder: Builder) -> Network:
    """The network with what it returns: the last value, and now and then others, an answer, or one of these twice.

    Args:
        network: With its last value as its one output.
    """
    (last,) = network.outputs
    outputs = [last]
    returns = "tensor"
    if draw(st.integers(0, 3)) == 3:
        first = 0 if draw(st.integers(0, 15)) == 15 else len(network.inputs)  # an input that is returned is refused
        layouts = (*COMPUTED, "mask", "ids")
        usable = [i for i, value in enumerate(builder.values) if i >= first and i != last and value.layout in layouts]
        outputs += draw(st.lists(st.sampled_from(usable or [last]), min_size=1, max_size=2, unique=first > 0))
        returns = draw(rarely(("tuple", "list", "dict", "namedtuple"), 4))
    elif draw(st.integers(0, 5)) == 5:
        kinds = [k for k in KINDS.values() if k.gives == "answer" and builder.values[last].layout in k.reads[0]]
        if kinds:
            kind = draw(st.sampled_from(kinds))
            block = Block(kind.name, (last,), draw(options(kind)))
            if _added(builder, block):
                network = replace(network, blocks=(*network.blocks, block))
                outputs = [last, len(builder.values) - 1] if draw(st.booleans()) else [len(builder.values) - 1]
                returns = "tuple" if len(outputs) > 1 else "tensor"
    return replace(network, outputs=tuple(outputs), returns=returns)
