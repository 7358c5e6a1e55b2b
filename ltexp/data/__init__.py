"""Datasets, their long-tailed subsets, and the batches that stages train on."""
