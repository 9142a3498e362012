"""GLM-4-0414 (`glm4`): GLM-4 with a norm behind each part of a layer too, before its sum."""

from torch import Tensor

from trefoil_kernels.add import add
from trefoil_kernels.rotary import Turn
from trefoil_models.attend import Attend
from trefoil_models.families import glm, llama
from trefoil_models.families.glm import Config, read_config
from trefoil_models.layers import RMSNorm

__all__ = ["Config", "Model", "read_config"]


class Layer(llama.Layer):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__(config, site)
        self.post_self_attn_layernorm = RMSNorm(config.width, config.eps)
        self.post_mlp_layernorm = RMSNorm(config.width, config.eps)

    def forward(self, x_TM: Tensor, turn: Turn | None, attend: Attend) -> Tensor:
        out_TM = self.self_attn(self.input_layernorm(x_TM), turn, attend)
        normed_TM, x_TM = self.post_attention_layernorm.after(self.post_self_attn_layernorm(out_TM), x_TM)
        return add(x_TM, self.post_mlp_layernorm(getattr(self, self.mlp_name)(normed_TM)))


class Model(glm.Model):
    """GLM-4's with these layers."""

    layer = Layer
