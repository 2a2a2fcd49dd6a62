"""The operators in torch: loads their library and declares the shapes of their results to tensors without data."""

from pathlib import Path

import torch

from cvit.native.library import Unavailable


def load(path: Path) -> None:
    """Loads the library, so that `torch.ops.cvit` has the operators.

    Raises:
        Unavailable: the file is no library, or not one of this version of torch.
    """
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded ({error}); python -m cvit.native makes it anew") from error
