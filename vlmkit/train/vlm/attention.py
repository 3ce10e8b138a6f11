"""Who attends to whom in packed rows, as FlexAttention's blocks or as a mask of all pairs.

A token attends to the prefix of its segment and to its own branch before it (see `packing`). Padding attends to itself:
a softmax over nothing is NaN. FlexAttention (Dong and others, 2024) skips blocks of 128 x 128 pairs that do not attend,
and never holds a matrix of all pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # tokens
FLEX = "flex_attention"  # the name that transformers knows it by


def choose_attention(language_model: Any, wanted: str, device: str) -> None:
    """Set the attention of `language_model`: for `wanted` auto, FlexAttention where the GPU and the model have it."""
    if wanted == "mask" or (wanted == "auto" and not _has_flex(device)):
        return
    if language_model._supports_flex_attn and not getattr(language_model.config, "attention_dropout", 0):
        language_model.set_attn_implementation(FLEX)


def _has_flex(device: str) -> bool:
    """Whether FlexAttention is compiled for the device and can be trained through: by Triton, from Ampere on."""
    from torch.utils._triton import has_triton

    return device == "cuda" and torch.cuda.get_device_capability() >= (8, 0) and has_triton()


def uses_flex(language_model: Any) -> bool:
    return language_model.config._attn_implementation == FLEX


def packed_attention_mask(segment_ids: Tensor, branch_ids: Tensor) -> Tensor:
    """(R, L, L): which tokens each token attends to, where `segment_ids` (R, L) are -1 at padding."""
    order = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    shared = (branch_ids[:, None, :] == 0) | (branch_ids[:, :, None] == branch_ids[:, None, :])
    filled = (segment_ids >= 0)[:, :, None] | (order[:, None] == order)
    return (same & shared & (order[:, None] >= order)) & filled


def packed_block_mask(segment_ids: Tensor, branch_ids: Tensor) -> BlockMask:
    """The same mask as blocks, of rows whose length is a multiple of BLOCK.

    Segments stand in a row in ascending order, so a block of queries meets those blocks of keys before it whose first
    segment is no later than its own last one, and the other way round. The memory it takes grows with the square of
    the number of blocks, not of tokens.
    """
    rows, length = segment_ids.shape
    count = length // BLOCK
    ordered = torch.where(segment_ids < 0, length, segment_ids).view(rows, count, BLOCK)  # padding comes last
    first, last = ordered[..., 0], ordered[..., -1]  # (R, N)
    meet = (first[:, :, None] <= last[:, None, :]) & (first[:, None, :] <= last[:, :, None])
    meet = meet.tril() | torch.eye(count, dtype=torch.bool, device=meet.device)  # (R, N, N)
    numbers = meet.sum(-1, dtype=torch.int32)[:, None]  # (R, 1, N)
    indices = torch.argsort(meet.int(), dim=-1, descending=True, stable=True).int()[:, None]  # (R, 1, N, N)

    def attends(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own, other = segment_ids[row, query], segment_ids[row, key]
        branch = branch_ids[row, key]
        visible = (own == other) & ((branch == 0) | (branch == branch_ids[row, query])) & (query >= key)
        return (visible & (own >= 0)) | (query == key)

    return BlockMask.from_kv_blocks(numbers, indices, BLOCK_SIZE=BLOCK, mask_mod=attends, seq_lengths=(length, length))
