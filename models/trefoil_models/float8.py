"""Weights stored in 8-bit floats with a scale for each block, as DeepSeek-V3's are (arXiv 2412.19437, section 3.3).

They are read as the numbers they stand for; activations keep their dtype, where the original rounds them as well.
"""

import torch
from torch import Tensor

from trefoil_models.config_keys import MOST, CheckpointError, Keys

DEFAULT_BLOCK = [128, 128]


def read_block_size(keys: Keys) -> tuple[int, int]:
    """Rows and columns that share a scale. Raises CheckpointError for any other quantisation."""
    quantization = keys.inside("quantization_config")
    if quantization.text("quant_method") != "fp8":
        keys.refuse("quantization_config")
    quantization.refuse("fmt", "e4m3")
    quantization.refuse("activation_scheme", "dynamic")
    block = quantization.values.get("weight_block_size") or DEFAULT_BLOCK
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and 1 <= n <= MOST for n in block):
        raise CheckpointError(f"config.json: quantization_config.weight_block_size = {block!r} must be two sizes")
    return block[0], block[1]


def whole_blocks(weight_FM: Tensor, scales_XY: Tensor, block: tuple[int, int]) -> Tensor:
    """The weight in float32: each block of it times its scale. Raises CheckpointError."""
    if weight_FM.dim() != 2:
        raise CheckpointError(f"a float8 tensor has shape {list(weight_FM.shape)}; only matrices have scales of blocks")
    rows, columns = weight_FM.shape
    wanted = (-(-rows // block[0]), -(-columns // block[1]))
    if tuple(scales_XY.shape) != wanted:
        raise CheckpointError(f"a float8 weight of {rows} by {columns} has scales of {list(scales_XY.shape)}")
    scales_FM = scales_XY.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight_FM.to(torch.float32) * scales_FM
