"""Data sets to measure on: by name, by Hub id, or from a file. Law: what was read is named by the digest of its bytes, and
every record that could not be read stands in an error or in `Loaded.rejected`.

    loaded = read_dataset("knowedit-recent", split="test")        # the Hub's file, at the commit `loaded.revision`
    loaded = read_dataset("QAEdit.json", rejected="collect")      # a file of yours; what cannot be read is in loaded.rejected
    with_labels(loaded.edits, read_labels("labels.json"))         # true paraphrases and the raw field become two numbers

Nothing of a data set comes with kedit_hub, and no loading script is ever run: the files are JSON, JSON lines or Parquet.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from kedit_hub import strictjson
from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import EditError, HubError, LimitError
from kedit_hub.hub.catalogue import DATASETS, Source
from kedit_hub.hub.client import Token, client, commit_named, hub_errors
from kedit_hub.hub.localhub.gitids import blob_id
from kedit_hub.hub.parquet import read_rows
from kedit_hub.limits import DEFAULT
from kedit_hub.records.extras import Extras, Record
from kedit_hub.records.read import Located, SortedOut, locate, read_bytes, sort_out
from kedit_hub.records.shapes import SHAPES

SUFFIXES = (".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Loaded:
    """What was read. rejected: (where, reason) of every record that could not be.  total: records there were, those included.

    id: Hub id, or the name of the file; revision: commit, None for a file of yours; sha256: of the file's bytes.
    """

    records: tuple[Record, ...]
    rejected: tuple[tuple[str, str], ...]
    total: int
    id: str
    file: str
    sha256: str
    revision: str | None = None
    split: str | None = None

    @cached_property
    def edits(self) -> list[Edit]:
        return [record.edit for record in self.records]

    @cached_property
    def extras(self) -> list[Extras]:
        """One for each edit."""
        return [record.extras for record in self.records]

    def source(self) -> dict[str, str]:
        """id, revision and sha256, as a patch's provenance and a results file name a data set."""
        found = {"id": self.id, "revision": self.revision, "sha256": self.sha256}
        return {name: value for name, value in found.items() if value is not None}


def read_dataset(
    name: str | os.PathLike[str],
    *,
    split: str | None = None,
    limit: int | None = None,
    shape: str = "auto",
    revision: str | None = None,
    rejected: Literal["error", "collect"] = "error",
    token: Token = None,
    endpoint: str | None = None,
) -> Loaded:
    """Read a data set.

    name: a name of DATASETS, a file (.json, .jsonl, .parquet), or a Hub id. split: one of the data set's; for another Hub
    repo the file in it, or a word that one file's name holds. limit: read the first records only. shape: a name of SHAPES.
    revision: branch, tag or commit, of the Hub alone. rejected: what becomes of records that cannot be read.
    Raises EditError (rejected records, no such data set, split or shape), HubError, LimitError.
    """
    if shape != "auto" and shape not in SHAPES:
        raise EditError(f"Unknown record shape {shape!r}. Known: auto, {', '.join(SHAPES)}.")
    if limit is not None and limit < 1:
        raise EditError(f"limit is {limit}; read at least one record, or give None for all.")
    if rejected not in ("error", "collect"):
        raise EditError(f"rejected is {rejected!r}; write 'error' or 'collect'.")
    text = os.fspath(name)
    known = DATASETS.get(text)
    if known is not None and known.hub is None:
        raise EditError(
            f"{text!r} is not on the Hub in a form that is read here. Fetch it from {known.origin}; then give the file's path."
        )
    if known is None and (Path(text).suffix in SUFFIXES or not re.fullmatch(r"[\w.-]+/[\w.-]+", text)):
        if split is not None or revision is not None:
            raise EditError(f"{text!r} is a file: it has neither splits nor revisions. Leave split= and revision= out.")
        if not Path(text).exists():
            raise EditError(f"No data set and no file is called {text!r}. Known by name: {', '.join(DATASETS)}.")
        path = Path(text)
        data, place = read_bytes(path), repr(text)
        origin: dict[str, Any] = {"id": _plain_name(path.name), "file": path.name}
    else:
        repo_id = text if known is None or known.hub is None else known.hub
        file, commit, data = _from_hub(repo_id, known, split, revision, token, endpoint)
        place = f"{file!r} of {repo_id!r}"
        origin = {"id": repo_id, "file": file, "revision": commit}
        origin["split"] = (split or next(iter(known.files))) if known else split
    located = _located(data, place, Path(origin["file"]).suffix, limit)
    sorted_out = sort_out(place, located, shape)
    if rejected == "error":
        sorted_out = _or_error(sorted_out)
    return Loaded(sorted_out.records, sorted_out.rejected, sorted_out.total, sha256=sha256(data).hexdigest(), **origin)


def _or_error(found: SortedOut) -> SortedOut:
    try:
        return found.or_error()
    except EditError as cause:
        raise EditError(f"{cause}\nOr read the rest with rejected='collect'.", cause.rejected) from None


def _plain_name(name: str) -> str:
    """The name of a file as provenance can hold it."""
    return re.sub(r"([.-])[.-]+", r"\1", re.sub(r"[^A-Za-z0-9._-]+", "-", name)).strip("._-")[:96] or "file"


# --- files --------------------------------------------------------------------------------------------------------


def _located(data: bytes, name: str, suffix: str, limit: int | None) -> list[Located]:
    if suffix == ".parquet":
        return [
            (f"record {i}", _as_json(row, f"{name} record {i}")) for i, row in enumerate(read_rows(data, name, limit))
        ]
    if suffix not in SUFFIXES:
        raise EditError(f"{name} is none of {', '.join(SUFFIXES)}. Save its records as one of these.")
    return locate(data, name, suffix, limit)


def _as_json(row: dict[str, Any], name: str) -> Any:
    """A row under the laws of JSON, or the error it is rejected with: no bytes, dates, NaN, half surrogates, piles of marks."""
    try:
        written = strictjson.canonical(row)
        return strictjson.loads(written, what=name, max_bytes=DEFAULT.max_records_bytes, error=EditError)
    except (EditError, LimitError) as cause:
        return cause
    except (TypeError, ValueError, RecursionError) as cause:
        return EditError(f"The row holds what JSON cannot say: {str(cause)[:200]}.")


# --- the Hub ------------------------------------------------------------------------------------------------------


def _from_hub(
    repo_id: str, known: Source | None, split: str | None, revision: str | None, token: Token, endpoint: str | None
) -> tuple[str, str, bytes]:
    """(file, commit, its bytes). What was read once at a commit is read again without a hub."""
    api = client(endpoint, token)
    with hub_errors(repo_id, revision=revision, endpoint=endpoint, token=token):
        commit = commit_named(api, repo_id, revision, repo_type="dataset")
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise HubError(f"The hub answers {commit[:80]!r} for {repo_id!r}, which is no commit. Check endpoint=.")
        file = _file(api, repo_id, commit, known, split)
        try:
            path = _fetched(api, repo_id, commit, file)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            raise EditError(f"{repo_id!r} has no file {file!r} at {commit}. Name another with split=.") from None
    blob = Path(os.path.realpath(path))
    data = read_bytes(blob)
    digest = blob.name  # the cache names its blobs by what the hub said of them
    told = (
        {64: sha256(data).hexdigest(), 40: blob_id(data)}.get(len(digest))
        if re.fullmatch("[0-9a-f]+", digest)
        else None
    )
    if told not in (None, digest):
        raise HubError(f"The cached copy of {file!r} of {repo_id!r} is damaged. Delete '{blob}' and read it again.")
    return file, commit, data


def _file(api: HfApi, repo_id: str, commit: str, known: Source | None, split: str | None) -> str:
    """The file of a split."""
    if known is not None:
        wanted = next(iter(known.files)) if split is None else split
        if wanted not in known.files:
            raise EditError(f"{repo_id!r} has no split {wanted!r}. It has {', '.join(known.files)}.")
        pattern = known.files[wanted]
        if "*" not in pattern:
            return pattern
        found = [file for file in _listed(api, repo_id, commit) if fnmatchcase(file, pattern)]
    elif split is not None and Path(split).suffix in SUFFIXES:
        return split
    else:
        listed = _listed(api, repo_id, commit)
        found = [file for file in listed if split is None or split in re.split(r"[^A-Za-z0-9]+", file)]
        if not found:
            raise EditError(f"{repo_id!r} has no file for the split {split!r}. Its files of records: {_some(listed)}.")
    if len(found) != 1:
        raise EditError(
            f"{repo_id!r} has {len(found)} files of records to choose from: {_some(found)}. Name one with split=."
        )
    return found[0]


def _some(files: Sequence[str]) -> str:
    more = f" and {len(files) - 20} more" if len(files) > 20 else ""
    return (", ".join(repr(file) for file in files[:20]) or "none") + more


def _listed(api: HfApi, repo_id: str, commit: str) -> list[str]:
    """The files of records in a repo."""
    files = api.list_repo_files(repo_id, repo_type="dataset", revision=commit)
    return sorted(file for file in files if Path(file).suffix in SUFFIXES)


def _fetched(api: HfApi, repo_id: str, commit: str, file: str) -> str:
    """Where the file lies in the cache. A file beyond the bound is not fetched."""
    cached = try_to_load_from_cache(repo_id, file, repo_type="dataset", revision=commit)
    if isinstance(cached, str):
        return cached
    for info in api.get_paths_info(repo_id, file, repo_type="dataset", revision=commit):
        if isinstance(info, RepoFile) and info.size > DEFAULT.max_records_bytes:
            raise LimitError(
                f"{file!r} of {repo_id!r} has {info.size:,} bytes; at most {DEFAULT.max_records_bytes:,} are read."
            )
    return api.hf_hub_download(repo_id, file, repo_type="dataset", revision=commit)


# --- which rephrases ask the fact ---------------------------------------------------------------------------------

Label = Literal["template", "generation-form", "none"]
RAW = "rephrase_raw"  # the portability kind of rephrases that are no true paraphrases


def read_labels(path: str | os.PathLike[str]) -> dict[str, tuple[str, Label]]:
    """{id of an edit: (relation, what its rephrase is)} from a JSON object of lists of two. Raises EditError."""
    place = repr(os.fspath(path))
    labels = strictjson.loads(read_bytes(Path(path)), what=place, max_bytes=DEFAULT.max_records_bytes, error=EditError)
    if not isinstance(labels, dict):
        raise EditError(f"{place} holds a {type(labels).__name__}, not an object of labels by case_id.")
    for name, label in labels.items():
        fine = isinstance(label, list) and len(label) == 2 and all(isinstance(part, str) for part in label)
        if not fine or label[1] not in get_args(Label):
            raise EditError(
                f"{place} labels {name[:80]!r} with {str(label)[:80]!r}; write [relation, one of {', '.join(get_args(Label))}]."
            )
    return {name: (relation, kind) for name, (relation, kind) in labels.items()}


def with_labels(edits: Sequence[Edit], labels: Mapping[str, tuple[str, Label]]) -> list[Edit]:
    """The same edits, their rephrases sorted by whether they ask the fact, and their relations filled in.

    "template" is a true paraphrase and stays in `rephrases`. "generation-form" (asks the fact as a text to go on with) and
    "none" (asks something else) become portability probes of kind RAW. So `generalization` is measured on true paraphrases, and
    the raw field of the file, which most published numbers are about, is `rephrases` and RAW together.
    Raises EditError for an edit that has no label.
    """
    missing = [edit.id for edit in edits if edit.id not in labels]
    if missing:
        raise EditError(
            f"{len(missing)} of {len(edits)} edits have no label, the first is {missing[0]!r}: label them all."
        )
    return [_labelled(edit, *labels[edit.id or ""]) for edit in edits]


def _labelled(edit: Edit, relation: str, label: Label) -> Edit:
    edit = replace(edit, relation=edit.relation or relation)
    if label == "template":
        return edit
    raw = tuple(Probe(text, edit.target, RAW, edit.subject, aliases=edit.aliases) for text in edit.rephrases)
    return replace(edit, rephrases=(), portability=(*edit.portability, *raw))
