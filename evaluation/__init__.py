"""What a trained model can do, measured without masking, and shown to a person."""
