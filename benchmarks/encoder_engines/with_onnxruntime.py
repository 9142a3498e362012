"""ONNX Runtime: exported, fused by its own optimizer for BERT and, for int8, quantised dynamically per channel."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
import worker
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxRuntime:
    def __init__(self, folder: Path, dtype: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = worker.THREADS
        self.session = onnxruntime.InferenceSession(exported(folder, dtype), options)

    def vectors(self, sentences: Sequence[str], ids: Sequence[list[int]]) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        for members in worker.batches(ids):
            rows, mask = worker.padded([ids[number] for number in members])
            (hidden,) = self.session.run(None, dict(zip(INPUTS, (rows, mask, np.zeros_like(rows)), strict=True)))
            found.update((n, own[: len(ids[n])].mean(0)) for n, own in zip(members, hidden, strict=True))
        return np.stack([found[number] for number in range(len(ids))])


class Rows(torch.nn.Module):
    """The hidden rows alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        return self.model(ids, attention_mask=mask, token_type_ids=types).last_hidden_state


def exported(folder: Path, dtype: str) -> str:
    """The model's file, made on first use beside the folder."""
    path = folder.with_name(f"{folder.name}-{dtype}.onnx")
    if path.exists():
        return str(path)
    if dtype == "int8":
        quantize_dynamic(
            exported(folder, "float32"),
            str(path),
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # the fused nodes have no inferred one
        )
        return str(path)
    raw = folder.with_name(f"{folder.name}-raw.onnx")
    config = transformers.AutoConfig.from_pretrained(folder)
    sample = torch.ones(2, 9, dtype=torch.int64)
    torch.onnx.export(
        Rows(folder),
        (sample, sample, sample),
        str(raw),
        input_names=list(INPUTS),
        output_names=["rows"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in (*INPUTS, "rows")},
        opset_version=17,
        dynamo=False,
    )
    fused = optimizer.optimize_model(
        str(raw), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    fused.save_model_to_file(str(path))
    return str(path)


if __name__ == "__main__":
    worker.serve(OnnxRuntime)
