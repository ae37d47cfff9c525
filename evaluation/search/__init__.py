"""Search in pictures with a trained model: by text, by picture, in a terminal or on a page."""
