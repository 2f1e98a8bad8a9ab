"""Every bound of a leaderboard in one place. Law: a board of any size and any content is read within these numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Sizes in bytes, counts in pieces."""

    max_files: int = 20_000  # files that are listed, of each folder
    max_submissions: int = 4_096  # of them read, the oldest first
    max_verifications: int = 4_096
    max_submission_bytes: int = 1 << 22
    max_run_bytes: int = 1 << 17  # one line; a score sheet without single outcomes has a tenth of it
    max_runs: int = 1_000  # of one submission
    max_signature_bytes: int = 1 << 12
    max_verification_bytes: int = 1 << 17
    max_total_bytes: int = 1 << 26  # of all that is read: about 15,000 runs, or a minute or two of hostile ones


DEFAULT = Bounds()
