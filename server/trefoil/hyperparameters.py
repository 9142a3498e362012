"""What a training job may be told, by method: each field checked by name, what is not known refused.

`"auto"` stays until the data are counted; `training.autos` then puts numbers in its place.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from trefoil.errors import InvalidRequest

Auto = Literal["auto"]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Chance = Annotated[float, Meta(gt=0, lt=1)]
Labels = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=10_000)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]


class Lora(Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter's shape, by PEFT's words."""

    r: Annotated[int, Meta(ge=1, le=1024)] = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"


class Hyperparameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every method takes. A null `lora` trains all weights; a `learning_rate` wins over its multiplier."""

    n_epochs: Auto | Annotated[int, Meta(ge=1, le=1000)] = "auto"
    batch_size: Auto | Count = "auto"
    learning_rate_multiplier: Auto | Positive = "auto"
    learning_rate: Auto | Annotated[float, Meta(gt=0, le=10)] = "auto"
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Share = 0.03
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    adam_beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Meta(gt=0, le=1)] = 1e-8
    max_grad_norm: Positive = 1.0
    gradient_accumulation_steps: Count = 1
    gradient_checkpointing: bool = False
    bf16: bool = False
    max_length: Count | None = None
    truncation: bool = False
    packing: bool = True
    lora: Lora | None = Lora()
    logging_steps: Count = 1
    eval_steps: Count | None = None
    save_steps: Count | None = None
    save_total_limit: Count = 3


class Supervised(Hyperparameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learn to answer."""

    label_smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class Dpo(Hyperparameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learn to prefer."""

    beta: Auto | Positive = "auto"
    loss_type: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    length_normalized: bool = False


class StillLora(Lora, frozen=True, forbid_unknown_fields=True):
    """An adapter without dropout: an answer's likelihood then and now must differ by what was learned alone."""

    dropout: Annotated[float, Meta(ge=0, le=0)] = 0.0


class Sampled(Hyperparameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What learns from answers of its own. `reward_model` is the name of a model that scores them; of several labels
    it must be told which.
    """

    reward_model: str | None = None
    reward_label: str | None = None
    max_completion_tokens: Count = 128
    temperature: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    num_updates: Annotated[int, Meta(ge=1, le=1000)] = 1
    clip_range: Chance = 0.2
    kl_coef: Annotated[float, Meta(ge=0, le=1000)] = 0.04
    lora: StillLora | None = StillLora()


class Ppo(Sampled, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learn from what each token of an answer is worth."""

    num_updates: Annotated[int, Meta(ge=1, le=1000)] = 4
    kl_coef: Annotated[float, Meta(ge=0, le=1000)] = 0.05
    value_coef: Annotated[float, Meta(ge=0, le=1000)] = 0.1
    value_clip_range: Positive = 0.2
    gamma: Share = 1.0
    gae_lambda: Share = 0.95


class Grpo(Sampled, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learn from which of several answers is better than the others."""

    num_generations: Annotated[int, Meta(ge=2, le=1024)] = 8
    loss_type: Literal["grpo", "dapo"] = "grpo"
    scale_rewards: bool = True


class Pretrain(Hyperparameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learn text: the next token, hidden tokens, whether sentences belong together, or spans taken out or hidden."""

    objective: Auto | Literal["clm", "mlm", "mlm+nsp", "mlm+sop", "span_corruption", "text_infilling"] = "auto"
    mlm_probability: Chance = 0.15
    noise_density: Auto | Chance = "auto"
    mean_noise_span_length: Annotated[float, Meta(ge=1, le=1000)] = 3.0


class OfHead(Hyperparameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What teaches a head of its own, and all weights with it."""

    lora: None = None


class Reward(OfHead, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learn to score answers as people prefer them."""


class Classification(OfHead, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learn the classes of texts."""

    labels: Auto | Labels = "auto"
    problem_type: Auto | Literal["single_label_classification", "multi_label_classification", "regression"] = "auto"


class TokenClassification(OfHead, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learn the tags of words."""

    labels: Auto | Labels = "auto"


class QuestionAnswering(OfHead, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learn where answers stand."""


METHODS: Mapping[str, type[Hyperparameters]] = {
    "supervised": Supervised,
    "dpo": Dpo,
    "ppo": Ppo,
    "grpo": Grpo,
    "pretrain": Pretrain,
    "reward": Reward,
    "classification": Classification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
}


def read_hyperparameters(method: str, values: Mapping[str, Any], *, path: str) -> Hyperparameters:
    """Checked hyperparameters of a known method. Raises InvalidRequest whose `param` begins with `path`."""
    kind = METHODS[method]
    for name in values:
        if name not in kind.__struct_fields__:
            known = ", ".join(sorted(kind.__struct_fields__))
            raise InvalidRequest(
                f"{name!r} is no hyperparameter of the method {method}; known are {known}", param=f"{path}.{name}"
            )
    try:
        return msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        told, _, where = str(error).partition(" - at `$.")
        param = f"{path}.{where.rstrip('`')}" if where else path
        raise InvalidRequest(f"{param}: {told[:1].lower()}{told[1:]}", param=param) from error
