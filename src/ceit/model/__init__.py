"""The network of the paper, and nothing else. Importing it registers the models with timm; it touches no files."""

from ceit.model.ceit import CeiT, resize_pos_embed
from ceit.model.config import CeiTConfig
from ceit.model.variants import MODELS, config_of, list_models

__all__ = ["MODELS", "CeiT", "CeiTConfig", "config_of", "list_models", "resize_pos_embed"]
