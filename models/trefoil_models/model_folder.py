"""What a model folder says of itself, read without torch: config.json, generation_config.json, where it lies.

Weights are `checkpoint`'s business, text is `tokenizer`'s.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from trefoil_models.config_keys import CheckpointError, Keys

MOST_LABELS = 1_000_000
ADAPTER_CONFIG = "adapter_config.json"
FILES_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What generation_config.json asks for where a request is silent; None: the route's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class DecoderStart:
    """How an encoder-decoder's answers begin, and what is forced as their first token and as the last at the limit."""

    start_id: int
    forced_first_id: int | None = None
    forced_last_id: int | None = None


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A Hugging Face checkpoint folder."""

    path: Path
    config: Keys
    generation: Keys

    @classmethod
    def read(cls, path: Path) -> "ModelFolder":
        """Raises CheckpointError where config.json is absent or no JSON object."""
        if not path.is_dir():
            raise CheckpointError(f"no such model folder: {path}")
        config = read_json(path / "config.json")
        generation_file = path / "generation_config.json"
        generation = read_json(generation_file) if generation_file.is_file() else {}
        return cls(path, Keys(config), Keys(generation, file=generation_file.name))

    @property
    def model_type(self) -> str:
        return self.config.text("model_type")

    @property
    def architectures(self) -> list[str]:
        """The classes of transformers that the folder was saved from."""
        return self.config.strings("architectures", [])

    @property
    def architecture(self) -> str:
        return self.architectures[0] if self.architectures else self.model_type

    @property
    def labels(self) -> tuple[str, ...]:
        """What the outputs of a classifying head are called."""
        has_one = self.is_reward_model and "id2label" not in self.config
        return ("LABEL_0",) if has_one else read_labels(self.config)

    @property
    def is_reward_model(self) -> bool:
        """Is it of InternLM 2's class, whose one output is read at a token that asks for it?"""
        return self.architecture.endswith("ForRewardModel")

    @property
    def dtype_name(self) -> str:
        """The dtype the weights were saved in, by either dialect."""
        return self.config.text("dtype", self.config.text("torch_dtype", "float32")).removeprefix("torch.")

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """generation_config.json wins over config.json; one id or a list. A reward model's texts end otherwise."""
        if self.is_reward_model:
            return _ids(self.config, "reward_token_id")
        return self._named_ids("eos_token_id")

    @property
    def decoder_start(self) -> DecoderStart:
        """generation_config.json wins over config.json. Raises CheckpointError where nothing says how answers begin."""
        names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
        start = next((ids[0] for name in names if (ids := self._named_ids(name))), None)
        if start is None:
            raise CheckpointError("config.json: decoder_start_token_id is missing")
        first, last = self._named_ids("forced_bos_token_id"), self._named_ids("forced_eos_token_id")
        return DecoderStart(start, first[0] if first else None, last[0] if last else None)

    def generation_keys(self, task: str = "") -> Keys:
        """What the folder asks of generation for a task: by task, else in general, else in the words of older files."""
        by_task = self.config.inside("task_specific_params").values.get(task)
        return Keys({**self.config.values, **self.generation.values, **(by_task if isinstance(by_task, dict) else {})})

    @property
    def defaults(self) -> GenerationDefaults:
        """Raises CheckpointError where a value is of the wrong type."""
        keys = self.generation
        numbers = {name: keys.number(name) for name in ("temperature", "top_p", "min_p", "typical_p") if name in keys}
        if "repetition_penalty" in keys:
            numbers["repetition_penalty"] = keys.number("repetition_penalty")
        whole = {name: keys.integer(name) for name in ("top_k", "max_new_tokens") if name in keys}
        return GenerationDefaults(**numbers, **whole)  # type: ignore[arg-type]

    def _named_ids(self, name: str) -> tuple[int, ...]:
        return _ids(self.generation, name) or _ids(self.config, name)


def find_folder(source: str) -> Path:
    """A local folder, or a Hub id whose files are downloaded (with progress bars) and cached.

    Raises CheckpointError naming what was asked for and why it could not be had.
    """
    path = Path(source).expanduser()
    if source and path.is_dir():
        return path.resolve()
    if path.exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise CheckpointError(f"no such model folder: {source!r}")
    try:
        folder = Path(snapshot_download(source, allow_patterns=FILES_WANTED))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(source, allow_patterns=["*.bin"])
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{source!r} is no local folder and could not be downloaded: {reason}") from error
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises CheckpointError naming the file."""
    value = _parsed(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object")
    return value


def read_json_list(path: Path) -> list[Any]:
    """One JSON list. Raises CheckpointError naming the file."""
    value = _parsed(path)
    if not isinstance(value, list):
        raise CheckpointError(f"{path.name} must hold a JSON list")
    return value


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing in {path.parent}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is damaged: {error}") from error


def read_labels(keys: Keys) -> tuple[str, ...]:
    """id2label in order; where it is absent LABEL_0, LABEL_1 and so on. Raises CheckpointError."""
    named = keys.inside("id2label").values
    if not named:
        return tuple(f"LABEL_{number}" for number in range(keys.size("num_labels", 2, most=MOST_LABELS)))
    if set(named) != {str(number) for number in range(len(named))} or not all(map(_is_text, named.values())):
        raise CheckpointError(f"{keys.file}: id2label must name the labels 0 to {len(named) - 1}")
    return tuple(named[str(number)] for number in range(len(named)))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _ids(keys: Keys, name: str) -> tuple[int, ...]:
    value = keys.values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise CheckpointError(f"{keys.file}: {name} = {value!r} must be a token id or a list of them")
    return tuple(ids)
