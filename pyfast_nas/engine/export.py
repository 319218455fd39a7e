"""A trained network in two files that need nothing of this package.

``network.pt2`` is the whole program, written by ``torch.export``::

    import torch
    network = torch.export.load("network.pt2").module()
    logits = network(images)  # float32 [batch, channels, height, width], normalised

``weights.npz`` holds parameters and buffers by name, as plain arrays.
"""

import io

import numpy as np
import torch
from torch import Tensor, nn

from pyfast_nas.engine.run_files import RunFiles

__all__ = ["write_network"]


def write_network(files: RunFiles, network: nn.Module, example: Tensor) -> None:
    """Write ``network.pt2`` and ``weights.npz`` of a network in evaluation mode.

    Args:
        files: Where to.
        network: Plain layers of ``torch.nn``; left in evaluation mode.
        example: Input of at least two samples; the batch size stays free.

    Raises:
        OSError: If a file cannot be written.
    """
    if files.folder is None:
        return
    network.eval()
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    content = io.BytesIO()
    torch.export.save(program, content)
    files.write_bytes("network.pt2", content.getvalue())
    arrays = {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    files.write_bytes("weights.npz", content.getvalue())
