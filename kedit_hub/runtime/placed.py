"""Tensors of a branch on the devices they have been needed on, each put there once."""

from collections.abc import Callable

import torch
from torch import Tensor


class Placed(dict[tuple[str, torch.device], Tensor]):
    def get_on(self, device: torch.device, name: str, make: Callable[[], Tensor]) -> Tensor:
        if (name, device) not in self:
            with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be trained through later
                self[name, device] = make().to(device)
        return self[name, device]
