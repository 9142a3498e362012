"""From hidden rows to answers. A model returns hidden rows; the caller picks rows and asks a head."""

from torch import Tensor, nn

from trefoil_kernels.token_logprobs import token_logprobs


class NextToken(nn.Module):
    """Scores of every vocabulary entry for the token after each row; its matrix may be the input embedding's."""

    weight: nn.Parameter

    def __init__(self, weight_VM: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VM

    def logits(self, hidden_RM: Tensor) -> Tensor:
        """[R, V] in the model's dtype."""
        return hidden_RM @ self.weight.T

    def logprobs(self, hidden_RM: Tensor, labels_R: Tensor) -> Tensor:
        """log p(label) per row, float32 [R], without keeping the logits."""
        return token_logprobs(hidden_RM, self.weight, labels_R)
