"""Text encoders that are not CLIP's: language models and sentence encoders in local folders.

transformers and peft are imported when one is opened; nothing is downloaded, and no code or pickle
of a folder is run.
"""

from tessera.model.text_encoders.encoder import Pooling, TextEncoder, TokenBatch
from tessera.model.text_encoders.opening import open_text_encoder

__all__ = ["Pooling", "TextEncoder", "TokenBatch", "open_text_encoder"]
