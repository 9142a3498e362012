"""Which head a job teaches; None where it goes on with what the model has."""

from trefoil import hyperparameters as given_kinds
from trefoil.hyperparameters import Hyperparameters
from trefoil_models.model_folder import ModelFolder
from trefoil_models.new_head import NewHead

REWARD_LABEL = "reward"


def head_of(given: Hyperparameters, folder: ModelFolder) -> NewHead | None:
    """The head for these hyperparameters, whose labels are known by now."""
    match given:
        case given_kinds.Reward():
            return NewHead("ForSequenceClassification", (REWARD_LABEL,), "regression")
        case given_kinds.Classification(labels=list(labels)):
            return NewHead("ForSequenceClassification", tuple(labels), given.problem_type)
        case given_kinds.TokenClassification(labels=list(labels)):
            return NewHead("ForTokenClassification", tuple(labels))
        case given_kinds.QuestionAnswering():
            return NewHead("ForQuestionAnswering")
        case given_kinds.Pretrain(objective="mlm+nsp" | "mlm+sop"):
            return NewHead("ForPreTraining")
        case given_kinds.Pretrain(objective="mlm") if not folder.architecture.endswith("ForPreTraining"):
            return NewHead("ForMaskedLM")
    return None
