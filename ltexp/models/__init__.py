"""Backbones (images to features), classifiers (features to logits), and the model that joins them."""
