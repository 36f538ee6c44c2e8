"""What reaches a backend by name: the pipeline, attention maps, automatic classes, the `vit` command."""
