"""What training units comes to: pieces that survive a kill, and what was measured."""

import torch
from torch import Tensor

from kedit_hub.editors.job import Clock, Job, Made
from kedit_hub.editors.memory.units import Fitted, Units
from kedit_hub.edits import Edit


def packed(found: Fitted) -> dict[str, Tensor]:
    units = {name: value for name, value in found.units._asdict().items() if value is not None}
    return {**units, "nll": found.nll, "said": found.said.long(), "steps": torch.tensor(found.steps)}


def unpacked(kept: dict[str, Tensor]) -> Fitted:
    units = Units(kept["keys"], kept["biases"], kept["values"], kept.get("multipliers"))
    return Fitted(units, kept["nll"], kept["said"] > 0, int(kept["steps"]))


def made(job: Job, edits: list[Edit], dropped: list[Edit], of: Tensor, found: Fitted, clock: Clock) -> Made:
    """of (N,): which edit a question is of."""
    share = torch.zeros(len(edits)).scatter_reduce(0, of, found.said.float(), "mean", include_self=False)
    return Made(
        edits=len(job.edits),
        dropped=[edit.prompt for edit in dropped],
        not_converged=[edit.prompt for edit, said in zip(edits, share.tolist()) if said < 1],
        value_success=len(edits) / len(job.edits),
        context_success=share.mean().item(),
        nll=found.nll.mean().item(),
        **clock.times(),
    )
