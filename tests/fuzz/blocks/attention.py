"""Attention in the forms that people write, with every form of mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.blocks.kind import Compute, DoesNotFit, kind
from tests.fuzz.spec import Value

SMALLEST = torch.finfo(torch.float32).min


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        qkv: How queries, keys and values are made and cut into heads.
        core: How they are multiplied.
        mask: The form of a mask over the tokens, constant or (``forward``'s second argument) per sample.
    """

    def __init__(self, width: int, heads: int, qkv: str, core: str, mask: str) -> None:
        super().__init__()
        if width % heads:
            raise DoesNotFit
        self.num_heads, self.qkv_form, self.core, self.mask = heads, qkv, core, mask
        if qkv == "separate":
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width, bias=qkv != "fused_no_bias")
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        q, k, v = self.heads_of(x)
        mask = self.mask_of(x, kept)
        scale = q.shape[-1] ** -0.5
        if self.core == "sdpa":
            causal = self.mask == "is_causal"
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        else:
            if self.core == "einsum":
                scores = torch.einsum("nhsd,nhtd->nhst", q, k) * scale
            else:
                scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            if mask is not None:
                scores = self.masked(scores, mask)
            weights = scores.softmax(-1)
            y = torch.einsum("nhst,nhtd->nhsd", weights, v) if self.core == "einsum" else weights @ v
        return self.output(y.transpose(1, 2).reshape(x.shape))

    def masked(self, scores: Tensor, mask: Tensor) -> Tensor:
        match self.mask:
            case "subtracted":
                return scores * (mask == 0) - mask.abs()
            case "raised":
                return torch.max(scores.masked_fill(~mask, float("-inf")), torch.tensor(SMALLEST))
            case "chosen":
                return torch.where(mask, scores, torch.tensor(-1e9))
        return scores.masked_fill(~mask, self.filler) if mask.dtype == torch.bool else scores + mask

    @property
    def filler(self) -> float:
        return {"fill_inf": float("-inf"), "fill_small": SMALLEST, "fill_1e4": -1e4}.get(self.mask, float("-inf"))

    def heads_of(self, x: Tensor) -> tuple[Tensor, ...]:
        n, t, c = x.shape
        heads = self.num_heads
        match self.qkv_form:
            case "separate":
                parts = (self.query(x), self.key(x), self.value(x))
                return tuple(part.view(n, t, heads, -1).transpose(1, 2) for part in parts)
            case "fused_chunk" | "fused_no_bias":
                return tuple(p.unflatten(-1, (heads, -1)).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
            case "fused_split":
                parts = torch.split(self.qkv(x), c, dim=2)
                return tuple(p.view(n, t, heads, c // heads).transpose(1, 2) for p in parts)
            case "fused_unbind":
                return self.qkv(x).reshape(n, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
        stacked = self.qkv(x).reshape(n, t, heads, 3, c // heads).permute(3, 0, 2, 1, 4)
        return stacked[0], stacked[1], stacked[2]

    def mask_of(self, x: Tensor, kept: Tensor | None) -> Tensor | None:
        tokens = x.shape[1]
        if kept is not None:
            allowed = kept[:, None, None, :]
            match self.mask:
                case "additive_inf":
                    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
                case "additive_small":
                    return (1.0 - allowed.to(x.dtype)) * SMALLEST
                case "additive_1e4" | "subtracted":
                    return (1.0 - allowed.float()) * -1e4
                case "additive_100":
                    return (1.0 - allowed.float()) * -100.0
                case "logarithm":
                    return (allowed.float() + 1e-45).log()
            return allowed
        match self.mask:
            case "none" | "is_causal":
                return None
            case "additive_inf":
                return torch.full((tokens, tokens), float("-inf")).triu(1)
            case "additive_small":
                return torch.full((tokens, tokens), SMALLEST).triu(1)
            case "additive_1e4":
                return torch.full((tokens, tokens), -1e4).triu(1)
            case "bias":
                return torch.linspace(-1, 1, tokens * tokens).view(1, 1, tokens, tokens)
        return torch.ones(tokens, tokens, dtype=torch.bool).tril()


QKV = ("separate", "fused_chunk", "fused_split", "fused_unbind", "fused_index", "fused_no_bias")
MASKS = ("boolean", "additive_inf", "additive_small", "additive_1e4", "fill_inf", "fill_small", "fill_1e4")
SAMPLE_MASKS = (*MASKS, "additive_100", "logarithm", "subtracted", "raised", "chosen")


@kind(
    "tokens",
    heads=(2, 1, 4),
    qkv=QKV,
    core=("sdpa", "matmul", "einsum"),
    mask=("none", *MASKS, "bias", "is_causal"),
    residual=(False, True),
)
def attention(x: Value, heads: int, qkv: str, core: str, mask: str, residual: bool) -> nn.Module:
    if mask == "is_causal" and core != "sdpa":
        raise DoesNotFit
    inner = SelfAttention(x.channels, heads, qkv, core, mask)
    return Compute(lambda self, y: y + self.attention(y), attention=inner) if residual else inner


@kind(
    "tokens", "mask", gives="tokens", pair="any", heads=(2, 1), qkv=QKV[:2], core=("sdpa", "matmul"), mask=SAMPLE_MASKS
)
def masked_attention(x: Value, m: Value, heads: int, qkv: str, core: str, mask: str) -> nn.Module:
    if x.shape[0] != m.shape[0] or (core == "sdpa" and mask in ("subtracted", "raised", "chosen")):
        raise DoesNotFit
    return SelfAttention(x.channels, heads, qkv, core, mask)


@kind("tokens", form=("mha", "mha_causal", "encoder_layer", "encoder_layer_pre_norm", "mha_weights"))
def torch_attention(x: Value, form: str) -> nn.Module:
    """torch's own modules."""
    if x.channels % 2:
        raise DoesNotFit
    if form.startswith("encoder_layer"):
        return nn.TransformerEncoderLayer(
            x.channels, 2, 2 * x.channels, batch_first=True, norm_first=form.endswith("pre_norm")
        )
    inner = nn.MultiheadAttention(x.channels, 2, batch_first=True)

    def forward(self: Any, y: Tensor) -> Tensor:
        if form == "mha_causal":
            mask = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).triu(1)
            return self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return self.attention(y, y, y, need_weights=form == "mha_weights")[0]

    return Compute(forward, attention=inner)


@kind(
    "tokens",
    "mask",
    gives="tokens",
    pair="any",
    form=("padding", "padding_weights", "padding_float", "causal", "causal_weights", "encoder"),
)
def padded_attention(x: Value, m: Value, form: str) -> nn.Module:
    """torch's own modules with padding, which goes through ``baddbmm`` where weights are returned."""
    if x.channels % 2 or x.shape[0] != m.shape[0]:
        raise DoesNotFit
    if form == "encoder":
        layer = nn.TransformerEncoderLayer(x.channels, 2, 2 * x.channels, batch_first=True)
        return Compute(lambda self, y, kept: self.layer(y, src_key_padding_mask=~kept), layer=layer)

    def forward(self: Any, y: Tensor, kept: Tensor) -> Tensor:
        padding = torch.zeros(kept.shape).masked_fill(~kept, float("-inf")) if form == "padding_float" else ~kept
        later = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).triu(1) if form.startswith("causal") else None
        weights = form.endswith("weights")
        return self.attention(y, y, y, key_padding_mask=padding, attn_mask=later, need_weights=weights)[0]

    return Compute(forward, attention=nn.MultiheadAttention(x.channels, 2, batch_first=True))


@kind("tokens", "tokens", gives="tokens", pair="any", core=("sdpa", "matmul"))
def cross_attention(x: Value, y: Value, core: str) -> nn.Module:
    def forward(self: Any, a: Tensor, b: Tensor) -> Tensor:
        q, k, v = self.query(a), self.key(b), self.value(b)
        if core == "sdpa":
            return self.output(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).squeeze(1))
        return self.output(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * 0.35, dim=-1).bmm(v))

    c = x.channels
    return Compute(
        forward,
        query=nn.Linear(c, 8),
        key=nn.Linear(y.channels, 8),
        value=nn.Linear(y.channels, 8),
        output=nn.Linear(8, c),
    )


@kind("image", gives="image", form=("reshape", "non_local", "transposed", "linear"))
def conv_attention(x: Value, form: str) -> nn.Module:
    """Attention over the positions or the channels of a feature map, through 1x1 convolutions."""
    c, h, w = x.shape
    if c % 4 or h * w > 64:
        raise DoesNotFit

    def forward(self: Any, y: Tensor) -> Tensor:
        n = y.shape[0]
        if form == "reshape":
            q, k, v = self.qkv(y).reshape(n, 3, 2, c // 2, h * w).unbind(1)
            z = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        elif form == "non_local":
            q, k, v = (part.flatten(2) for part in self.qkv(y).chunk(3, 1))
            z = torch.bmm(v, (torch.bmm(q.transpose(1, 2), k) * c**-0.5).softmax(-1).transpose(1, 2))
        elif form == "transposed":
            q, k, v = (part.flatten(2) for part in self.qkv(y).chunk(3, 1))
            z = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1) @ v
        else:
            q, k, v = (part.flatten(2) for part in self.qkv(y).chunk(3, dim=1))
            z = (v @ k.softmax(-1).mT) @ q.softmax(1)
        return y + self.output(z.reshape(n, c, h, w))

    return Compute(forward, qkv=nn.Conv2d(c, 3 * c, 1), output=nn.Conv2d(c, c, 1))


@kind("channels_last", gives="channels_last", window=(2, 4), shift=(False, True))
def window_attention(x: Value, window: int, shift: bool) -> nn.Module:
    """Swin's: windows by views and permutes."""
    h, w, c = x.shape
    if h % window or w % window or c % 2:
        raise DoesNotFit

    def forward(self: Any, y: Tensor) -> Tensor:
        z = torch.roll(y, (-1, -1), (1, 2)) if shift else y
        z = z.view(-1, h // window, window, w // window, window, c).permute(0, 1, 3, 2, 4, 5).contiguous()
        z = self.attention(z.view(-1, window * window, c))
        z = z.view(-1, h // window, w // window, window, window, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, c)
        return y + (torch.roll(z, (1, 1), (1, 2)) if shift else z)

    return Compute(forward, attention=SelfAttention(c, 2, "fused_unbind", "matmul", "none"))
