"""Fine-tuning and pre-training, whatever the framework: what `vit` and the scripts of examples/ run."""
