"""What a user may choose about how a stack is composed; it travels in kedit.lock, so that a stack is solved the same way elsewhere.

StackSettings(mode="joint", budget=0.1, site_budget=0.2)
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kedit_hub.errors import KeditError

Mode = Literal["gated", "joint", "sum"]
Preconditioning = Literal["second-moment", "identity", "null-space", "hybrid"]


class StackSettings(BaseModel):
    """Everything but the patches and their order, weights and pins, which are the stack's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    mode: Literal["auto", "gated", "joint", "sum"] = "auto"
    rows: Literal["means", "contexts"] = "means"  # of a solve: a row's mean key, or each of its contexts' own
    preconditioner: Preconditioning = "second-moment"  # what a solve holds to be ordinary text
    budget: float | None = Field(
        default=None, gt=0, allow_inf_nan=False
    )  # predicted drift on text; None = as the base profile says
    site_budget: float | None = Field(
        default=None, gt=0, allow_inf_nan=False
    )  # the same at site positions; None = no second gate
    protection: float = Field(
        default=1.0, gt=0, le=1e6, allow_inf_nan=False
    )  # omega of a protected key, which is asked not to move
    refresh: bool = False  # measure the keys of upper layers anew over the edits of lower ones, by forward passes

    @classmethod
    def of(cls, **chosen: object) -> "StackSettings":
        """KeditError, quoting what was given, where pydantic would raise."""
        try:
            return cls(**chosen)  # type: ignore[arg-type]
        except ValidationError as cause:
            fault = cause.errors()[0]
            name = ".".join(str(part) for part in fault["loc"])
            raise KeditError(f"{name}={fault['input']!r} is no setting of a stack: {fault['msg']}") from None
