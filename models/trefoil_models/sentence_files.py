"""What a sentence-transformers folder says of one vector for a whole text; read without torch.

modules.json lists the steps after the trunk: pooling (1_Pooling/config.json), perhaps Dense layers and Normalize.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.model_folder import read_json, read_json_list

MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""What each way of pooling is called, and the key of older folders that asks for it; the order is the vector's."""


@dataclass(frozen=True, slots=True)
class SentenceFiles:
    """How hidden rows become a text's vector; no `modes`: the folder does not say, and vectors get unit length."""

    modes: tuple[str, ...] = ()
    dense: tuple[Path, ...] = ()
    normalizes: bool = True
    max_len: int | None = None

    @classmethod
    def read(cls, folder: Path) -> "SentenceFiles":
        """Raises CheckpointError for a step that is not implemented."""
        if not (folder / "modules.json").is_file():
            pooling = folder / "1_Pooling"
            return cls(_modes(pooling), normalizes=False) if pooling.is_dir() else cls()
        steps = list(_steps(folder))
        kinds = [step for step, _ in steps]
        unknown = [step for step in kinds if step not in ("Transformer", "Pooling", "Dense", "Normalize")]
        if unknown or kinds[:2] != ["Transformer", "Pooling"] or "Normalize" in kinds[:-1]:
            raise CheckpointError(f"modules.json: the steps {', '.join(kinds)} are not implemented")
        return cls(
            _modes(steps[1][1]),
            tuple(path for step, path in steps if step == "Dense"),
            normalizes="Normalize" in kinds,
            max_len=_max_len(folder),
        )


def _steps(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each step's name and folder, in order."""
    file = folder / "modules.json"
    listed = read_json_list(file)
    for entry in listed:
        keys = Keys(entry if isinstance(entry, dict) else {}, file=file.name)
        path = (folder / keys.text("path", "")).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise CheckpointError(f"modules.json names a folder outside: {keys.text('path')!r}")
        yield keys.text("type").rpartition(".")[2], path


def _modes(folder: Path) -> tuple[str, ...]:
    file = folder / "config.json"
    keys = Keys(read_json(file), file=f"{folder.name}/{file.name}")
    keys.refuse("include_prompt", True)
    if "pooling_mode" in keys:
        are_several = isinstance(keys.values["pooling_mode"], list)
        modes = tuple(keys.strings("pooling_mode")) if are_several else (keys.choice("pooling_mode", MODES),)
    else:
        modes = tuple(mode for mode, key in MODES.items() if keys.flag(key, False))
    if not modes or not set(modes) <= set(MODES):
        raise CheckpointError(f"{keys.file}: no way of pooling is chosen; known: {', '.join(MODES)}")
    return modes


def _max_len(folder: Path) -> int | None:
    file = folder / "sentence_bert_config.json"
    keys = Keys(read_json(file) if file.is_file() else {}, file=file.name)
    return keys.size("max_seq_length") if "max_seq_length" in keys else None
