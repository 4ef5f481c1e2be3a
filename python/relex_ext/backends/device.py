"""What the GPU backends share: where sums live, which stream the work is queued on.

The one place, with the backends built on it, that imports torch: for device memory, pinned memory,
streams and events.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class DeviceBackend:
    """A backend whose memory is a torch device's.

    ``device`` may be ``cpu``, where kernels are interpreted or emulated: then nothing is
    asynchronous and the same code runs in order.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # torch.cuda, torch.xpu, …: the same functions for every kind of accelerator.
        self.runtime: ModuleType = torch.get_device_module(device)

    def zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def fetch(self, sums: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = sums.cpu().numpy()
        return found

    def to_device(self, array: NDArray[Any]) -> torch.Tensor:
        """A small host array's copy on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
