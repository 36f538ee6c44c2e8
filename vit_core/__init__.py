"""The framework-neutral half of vit-trio: configuration, parameter table, preprocessing, checkpoints, hub."""
