"""One module per model family: its published config.json and its tensors, as data."""
