"""XLM-RoBERTa (`xlm-roberta`; Conneau et al., arXiv 1911.02116) and multilingual MiniLM: roberta over 100 languages."""

from trefoil_models.families.roberta import Config, Model, read_config

__all__ = ["Config", "Model", "read_config"]
