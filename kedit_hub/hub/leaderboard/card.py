"""README.md of a board. Law: the Hub's viewer shows the runs as they lie there, whatever their settings and scores hold.

Settings, scores and the like have other fields in every run, which a table with fixed columns cannot hold: they are declared as JSON.
"""

from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

from kedit_hub.evaluate.run import Run
from kedit_hub.hub.leaderboard import submission

_COLUMNS = {bool: "bool", int: "int64", str: "string"}


def features() -> list[dict[str, str]]:
    """Columns of a submission, as the front matter of a dataset card declares them."""
    return [{"name": name, "dtype": _dtype(field.annotation)} for name, field in Run.model_fields.items()]


def _dtype(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kinds = {type(value) for value in get_args(annotation)} if get_origin(annotation) is Literal else {annotation}
    return _COLUMNS.get(kinds.pop(), "json") if len(kinds) == 1 else "json"


def render(repo_id: str) -> bytes:
    """The whole card. repo_id: user/repo, already checked."""
    front = {
        "pretty_name": "Leaderboard of model edits",
        "tags": ["kedit", "kedit-leaderboard", "knowledge-editing"],
        "configs": [
            {
                "config_name": "submissions",
                "default": True,
                "data_files": [{"split": "train", "path": f"{submission.FOLDER}/*.jsonl"}],
            }
        ],
        "dataset_info": [{"config_name": "submissions", "features": features()}],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{_BODY.format(repo=repo_id)}".encode()


_BODY = """# Leaderboard of model edits

Runs of benchmarks of knowledge editing, one file for each submission, one run in each line. Files are only ever added; the name of a
file is the digest of its bytes, and a `.sig.json` beside it says whose it is. Scores are what submitters say, unless somebody
else has measured a run again and signed that (`verifications`).

```bash
kedit leaderboard show {repo}
kedit bench --suite batch --method rome --base org/model --edits edits.jsonl --out results
kedit leaderboard submit results/runs.jsonl {repo} --key ada.pem --pr
```
"""
