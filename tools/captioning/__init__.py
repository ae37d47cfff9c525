"""Parts of tools/rewrite_captions.py and tools/recaption.py: prompts, local models, output.

    samples ▸ materials (caption, description) ▸ prompts ▸ model ▸ outcome, judged ▸ JSON lines

A block of samples is worked on together and stored together, so a run that was cut off goes on at
a block's start and gives what an unbroken run gives.
"""
