"""ChatGLM (`chatglm`): one name for ChatGLM-6B and for what came after it, told apart by config.json."""

from types import ModuleType

from trefoil_models.config_keys import Keys
from trefoil_models.families.chatglm import chatglm_2, chatglm_6b

__all__ = ["pick"]


def pick(keys: Keys) -> ModuleType:
    """The architecture of a config.json."""
    if "position_encoding_2d" in keys or "inner_hidden_size" in keys:
        return chatglm_6b
    return chatglm_2
