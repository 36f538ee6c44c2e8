"""The boxes of docs/torch.md with other libraries, with the releases that stand here: the suite has transformers 5."""

from test_readme import test_torch_guide_with

__all__ = ["test_torch_guide_with"]
