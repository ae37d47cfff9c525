"""Contrastive tuning of a language model on captions of the same image: LLM2CLIP's first stage."""
