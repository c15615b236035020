"""Training data: dataset, augmentation, caching, collation, prefetching."""
