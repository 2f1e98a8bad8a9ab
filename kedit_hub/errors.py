"""Every error a user can meet. Law: one base class; each message quotes the user's own input and names the remedy.

try:
    kedit_hub.apply("user/patch")
except kedit_hub.KeditError as error:
    print(error)
"""


class KeditError(Exception):
    """Base of every error raised on purpose."""


# --- requests -----------------------------------------------------------------------------------------------------


class EditError(KeditError):
    """A malformed edit: empty target, subject not in the prompt, a record that cannot be read.

    `rejected` lists (where, reason) of every record of a file that could not be read.
    """

    def __init__(self, message: str, rejected: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.rejected = rejected


# --- the artifact -------------------------------------------------------------------------------------------------


class PatchFormatError(KeditError):
    """Patch files that are unreadable, malformed or hostile: truncated, NaN, bad header, schema violation."""


class UnknownFormatError(PatchFormatError):
    """A format_version or delta kind that this version of kedit_hub does not know."""


class LimitError(PatchFormatError):
    """A bound of kedit_hub.limits is exceeded."""


class SignatureError(PatchFormatError):
    """A signature that does not hold: malformed, by another key, or over other files than these."""


class TrustError(KeditError):
    """A trust policy refuses a patch, or cannot be read."""


# --- the model ----------------------------------------------------------------------------------------------------


class WrongBaseError(KeditError):
    """The patch was made for another base model."""


class UnsupportedModelError(KeditError):
    """A model_type outside the family table, or a module of a class that cannot be patched."""


class ProfileError(KeditError):
    """A base profile that is missing, unreadable, or belongs to another base."""


# --- making, applying and stacking --------------------------------------------------------------------------------


class EditFailedError(KeditError):
    """The value optimisation did not reach the requested target."""


class NotReachedError(KeditError):
    """An attached patch was never reached by a forward pass."""


class ConflictError(KeditError):
    """Two patches of one stack want different targets for one (subject, relation)."""


class PlaceboError(KeditError):
    """What is installed has no placebo."""


# --- measuring ----------------------------------------------------------------------------------------------------


class CrewError(KeditError):
    """Another process of a benchmark that runs on several has failed, or has ended."""


# --- sharing ------------------------------------------------------------------------------------------------------


class HubError(KeditError):
    """Not found, no access, stale parent commit, offline, ..."""
