"""The parts of tools/gpu_acceptance.py; standard library only, so that it starts anywhere."""
