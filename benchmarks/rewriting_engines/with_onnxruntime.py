"""ONNX Runtime: exported by optimum with a decoder that takes its past, a plain greedy loop with bound memory.

Keys and values stay where a step has put them and are bound as the next step's inputs. All parts are fused by ONNX
Runtime's own optimizer and, for int8, quantised dynamically per channel.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import worker
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from optimum.exporters.onnx import main_export
from transformers import AutoConfig

ENCODER, FIRST, NEXT = "encoder_model", "decoder_model", "decoder_with_past_model"


def load(folder: Path, precision: str) -> worker.Generate:
    models = exported(folder, precision)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = worker.THREADS
    encoder, first, later = (
        onnxruntime.InferenceSession(str(models / f"{part}.onnx"), options) for part in (ENCODER, FIRST, NEXT)
    )

    def generate(inputs: worker.Batch, max_tokens: int) -> worker.Batch:
        ids_NK, mask_NK = (np.array(rows, np.int64) for rows in worker.padded(inputs))
        hidden = step(encoder, {"input_ids": ids_NK, "attention_mask": mask_NK})["last_hidden_state"]
        mask = onnxruntime.OrtValue.ortvalue_from_numpy(mask_NK)
        ids_N1 = np.full((len(inputs), 1), worker.START_ID, np.int64)
        said, past = [], {}
        for number in range(max_tokens):
            if number == 0:
                found = step(
                    first, {"input_ids": ids_N1, "encoder_attention_mask": mask, "encoder_hidden_states": hidden}
                )
            else:
                found = step(later, {"input_ids": ids_N1, "encoder_attention_mask": mask, **past})
            logits_NV = found.pop("logits").numpy()[:, -1]
            logits_NV[:, worker.END_ID] = -np.inf
            ids_N1 = logits_NV.argmax(-1, keepdims=True)
            past |= {name.replace("present", "past_key_values"): value for name, value in found.items()}
            said.append(ids_N1)
        return np.concatenate(said, 1).tolist()

    return generate


def step(session: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """One run without copies: outputs are left where the session has put them."""
    binding = session.io_binding()
    for name, value in inputs.items():
        bind = binding.bind_cpu_input if isinstance(value, np.ndarray) else binding.bind_ortvalue_input
        bind(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))


def exported(folder: Path, precision: str) -> Path:
    """The folder of the three parts, made on first use beside the model's."""
    path = folder.with_name(f"{folder.name}-onnx-{precision}")
    if path.exists():
        return path
    part = path.with_name(f".{path.name}.part")
    part.mkdir(exist_ok=True)
    if precision == "int8":
        plain = exported(folder, "float32")
        for name in (ENCODER, FIRST, NEXT):
            quantize_dynamic(
                str(plain / f"{name}.onnx"),
                str(part / f"{name}.onnx"),
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # the fused nodes have no inferred one
            )
    else:
        main_export(
            str(folder), output=part, task="text2text-generation-with-past", do_validation=False, no_post_process=True
        )
        config = AutoConfig.from_pretrained(folder)
        # as "t5" it would use RelativePositionBias, which has no CPU kernel; of "bert" the norms are what applies
        for name in (ENCODER, FIRST, NEXT):
            fused = optimizer.optimize_model(
                str(part / f"{name}.onnx"), model_type="bert", num_heads=config.num_heads, hidden_size=config.d_model
            )
            fused.save_model_to_file(str(part / f"{name}.onnx"))
    return part.replace(path)


if __name__ == "__main__":
    worker.serve(load)
