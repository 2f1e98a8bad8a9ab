"""Every bound of the development hub in one place. Law: no request makes the hub hold more than these numbers say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HubBounds:
    """Sizes in bytes, texts in Unicode code points, counts in pieces."""

    max_json_bytes: int = 1 << 22  # body of every request but a commit
    max_commit_bytes: int = 1 << 30  # body of one commit, base64 included
    max_file_bytes: int = 1 << 29  # one file, decoded; also bounds what one upload holds in memory
    max_commit_changes: int = 1_000  # operations of one commit
    max_files: int = 10_000  # files of one revision
    max_path_chars: int = 512
    max_title_chars: int = 200
    max_text_chars: int = 65_536  # descriptions, comments, tag messages
    max_card_bytes: int = 1 << 16  # YAML front matter of README.md
    page: int = 1_000  # entries of one page of a listing
    expanded_page: int = 50  # files of one page of a tree that names the last commit of each
    max_connections: int = 64
    idle_seconds: float = 30.0  # a connection that is silent for so long is closed
