"""torch's attention and transformer layers, which torch.fx does not trace into, as what they consist of."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """``nn.MultiheadAttention`` as linear layers and scaled dot products."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first = source.num_heads, source.batch_first
        weights: tuple = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        if source.in_proj_weight is not None:
            weights = source.in_proj_weight.chunk(3)
        biases = [None] * 3 if source.in_proj_bias is None else source.in_proj_bias.chunk(3)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(weights, biases))
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """As :class:`torch.nn.MultiheadAttention`; shapes (N, L, E), (L, N, E) or (L, E)."""
        q, k, v = (self._split(layer(given)) for layer, given in (
            (self.q, query), (self.k, key), (self.v, value)))
        mask: Any = None
        if attn_mask is not None:
            mask = _additive(attn_mask)
            mask = mask.unflatten(0, (-1, self.heads)) if mask.ndim == 3 else mask
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask).unsqueeze(-2).unsqueeze(-2)
            mask = padding if mask is None else mask + padding
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * (self.q.out_features // self.heads) ** -.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            out = weights @ v
            weights = weights.mean(-3) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = self.out_proj(out.transpose(-3, -2).flatten(-2))
        return (out if self.batch_first else out.movedim(-2, 0)), weights

    def _split(self, x: Tensor) -> Tensor:
        """Give each head its part, (N, heads, L, E / heads)."""
        x = x if self.batch_first else x.movedim(0, -2)
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class EncoderLayer(nn.TransformerEncoderLayer):
    """The layer without its shortcut for inference, which decides by values."""

    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        x = src
        if self.norm_first:
            x = x + self._sa_block(self.norm1(x), src_mask, src_key_padding_mask, is_causal=is_causal)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(x + self._sa_block(x, src_mask, src_key_padding_mask, is_causal=is_causal))
        return self.norm2(x + self._ff_block(x))


class DecoderLayer(nn.TransformerDecoderLayer):
    """The layer, to be traced into."""

    forward = nn.TransformerDecoderLayer.forward


class Encoder(nn.TransformerEncoder):
    """The layers without their shortcut for inference."""

    def forward(self, src, mask=None, src_key_padding_mask=None, is_causal=None):
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
        return src if self.norm is None else self.norm(src)


class Decoder(nn.TransformerDecoder):
    """The layers; where a mask is causal its values need not be looked at, since they are added anyway."""

    def forward(self, tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None,
                memory_key_padding_mask=None, tgt_is_causal=None, memory_is_causal=False):
        for layer in self.layers:
            tgt = layer(tgt, memory, tgt_mask=tgt_mask, memory_mask=memory_mask,
                        tgt_key_padding_mask=tgt_key_padding_mask, memory_key_padding_mask=memory_key_padding_mask,
                        tgt_is_causal=bool(tgt_is_causal), memory_is_causal=memory_is_causal)
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(nn.Transformer):
    """Encoder and decoder, without the comparison of their inputs' sizes."""

    def forward(self, src, tgt, src_mask=None, tgt_mask=None, memory_mask=None, src_key_padding_mask=None,
                tgt_key_padding_mask=None, memory_key_padding_mask=None, src_is_causal=None, tgt_is_causal=None,
                memory_is_causal=False):
        memory = self.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal)
        return self.decoder(tgt, memory, tgt_mask=tgt_mask, memory_mask=memory_mask,
                            tgt_key_padding_mask=tgt_key_padding_mask,
                            memory_key_padding_mask=memory_key_padding_mask, tgt_is_causal=tgt_is_causal,
                            memory_is_causal=memory_is_causal)


OPENED: dict[type[nn.Module], type[nn.Module]] = {
    nn.TransformerEncoderLayer: EncoderLayer, nn.TransformerDecoderLayer: DecoderLayer, nn.TransformerEncoder: Encoder,
    nn.TransformerDecoder: Decoder, nn.Transformer: Transformer}


def open_attention(network: nn.Module) -> None:
    """Replace, in place, attention and transformer layers by what they consist of; those with options left as leaves.

    (``add_bias_kv`` and ``add_zero_attn``, which no published network of images uses.)
    """
    for module in network.modules():
        for name, child in list(module.named_children()):
            if type(child) is nn.MultiheadAttention and child.bias_k is None and not child.add_zero_attn:
                setattr(module, name, Attention(child).eval())
        if type(module) in OPENED:
            module.__class__ = OPENED[type(module)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device='meta')
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def _additive(mask: Tensor) -> Tensor:
    """A mask as numbers to add: minus infinity where it is true."""
    if isinstance(mask, Tensor) and mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=torch.get_default_dtype()).masked_fill(mask, -torch.inf)
