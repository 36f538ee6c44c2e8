"""The boxes of docs/torch.md that need libraries which the suite has not."""

from test_readme import test_torch_guide_with

__all__ = ["test_torch_guide_with"]
