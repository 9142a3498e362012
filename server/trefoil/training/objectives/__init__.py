"""The table of objectives: a job's method and hyperparameters to the loss it descends on."""

from collections.abc import Callable, Mapping
from typing import Any

from trefoil import hyperparameters as given_kinds
from trefoil.hyperparameters import Hyperparameters, Sampled
from trefoil.training.data import Reader
from trefoil.training.loop import Objective
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil.training.objectives.classification import Classification
from trefoil.training.objectives.dpo import Dpo
from trefoil.training.objectives.grpo import Grpo
from trefoil.training.objectives.masked_lm import MaskedLM
from trefoil.training.objectives.ppo import Ppo, ValueHead
from trefoil.training.objectives.question_answering import question_answering
from trefoil.training.objectives.reward import reward
from trefoil.training.objectives.sentence_pair import SentencePairs
from trefoil.training.objectives.sft import Sft
from trefoil.training.objectives.span_corruption import SpanCorruption
from trefoil.training.objectives.text_infilling import TextInfilling
from trefoil.training.objectives.token_classification import token_classification
from trefoil.training.plain_text import frame
from trefoil.training.practice import Policy
from trefoil_models.checkpoint import Model
from trefoil_models.config_keys import CheckpointError


def objective_of(given: Hyperparameters, reader: Reader) -> Objective[Any]:
    """The loss that these hyperparameters ask for. Raises CheckpointError where the tokenizer lacks what it needs."""
    return OBJECTIVES[type(given)](given, reader)


def policy_of(given: Sampled, model: Model) -> Policy:
    """The same for a model that learns from its own answers."""
    return POLICIES[type(given)](given, model)


def _ppo(given: Any, model: Model) -> Policy:
    weight = model.lm_head.weight
    return Ppo(
        ValueHead(weight.shape[1], weight.device),
        clip_range=given.clip_range,
        kl_coef=given.kl_coef,
        temperature=given.temperature,
        value_coef=given.value_coef,
        value_clip_range=given.value_clip_range,
        gamma=given.gamma,
        gae_lambda=given.gae_lambda,
    )


def _grpo(given: Any, _model: Model) -> Policy:
    return Grpo(
        num_answers=given.num_generations,
        clip_range=given.clip_range,
        kl_coef=given.kl_coef,
        temperature=given.temperature,
        loss_type=given.loss_type,
        scale_rewards=given.scale_rewards,
    )


POLICIES: Mapping[type[Sampled], Callable[[Any, Model], Policy]] = {given_kinds.Ppo: _ppo, given_kinds.Grpo: _grpo}


def _sft(given: Any, _reader: Reader) -> Objective[Any]:
    return Sft(given.label_smoothing)


def _dpo(given: Any, _reader: Reader) -> Objective[Any]:
    return Dpo(given.beta, given.loss_type, given.label_smoothing, given.length_normalized)


def _pretrain(given: Any, reader: Reader) -> Objective[Any]:
    match given.objective:
        case "mlm":
            return _masked(given, reader)
        case "mlm+nsp" | "mlm+sop":
            return SentencePairs(_masked(given, reader))
        case "span_corruption":
            return _spans(given, reader)
        case "text_infilling":
            return _infilling(given, reader)
        case _:
            return causal_lm


def _masked(given: Any, reader: Reader) -> MaskedLM:
    tokenizer = reader.tokenizer
    if tokenizer.mask_id is None:
        raise CheckpointError("the base model's tokenizer has no mask token")
    return MaskedLM(tokenizer.mask_id, tokenizer.vocab_len, tokenizer.special_ids, given.mlm_probability)


def _spans(given: Any, reader: Reader) -> SpanCorruption:
    sentinels = reader.tokenizer.sentinel_ids
    if len(sentinels) < 2 or reader.start_id is None:
        raise CheckpointError("the base model's tokenizer has no sentinels (<extra_id_0> and so on)")
    density, span_len = given.noise_density, given.mean_noise_span_length
    return SpanCorruption(sentinels, reader.start_id, reader.end_ids[0], density, span_len)


def _infilling(given: Any, reader: Reader) -> TextInfilling:
    mask_id = reader.tokenizer.mask_id
    if mask_id is None or reader.start_id is None:
        raise CheckpointError("the base model's tokenizer has no mask token")
    before, after = frame(reader)
    eos_id = reader.end_ids[0]
    density, span_len = given.noise_density, given.mean_noise_span_length
    return TextInfilling(mask_id, reader.start_id, eos_id, tuple(before), tuple(after), density, span_len)


OBJECTIVES: Mapping[type[Hyperparameters], Callable[[Any, Reader], Objective[Any]]] = {
    given_kinds.Supervised: _sft,
    given_kinds.Dpo: _dpo,
    given_kinds.Pretrain: _pretrain,
    given_kinds.Reward: lambda given, reader: reward,
    given_kinds.Classification: lambda given, reader: Classification(given.problem_type),
    given_kinds.TokenClassification: lambda given, reader: token_classification,
    given_kinds.QuestionAnswering: lambda given, reader: question_answering,
}
