"""The YAML front matter of a README.md, and the search tags the Hub derives from it. Law: a card is data, never code.

    ---
    base_model: openai-community/gpt2          ->  base_model:openai-community/gpt2
    base_model_relation: adapter                   base_model:adapter:openai-community/gpt2
    library_name: kedit_hub                        kedit_hub
    tags: [kedit]                                  kedit
    ---

Aliases are refused: a few of them unfold into gigabytes ("billion laughs").
"""

import json
from collections.abc import Iterable
from typing import Any

import yaml

from kedit_hub.hub.localhub.refusal import Refusal


class _Loader(yaml.SafeLoader):
    """Plain scalars, lists and mappings; no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not accepted")
        return super().compose_node(parent, index)


def read_card(text: str, max_bytes: int) -> dict[str, Any]:
    """The front matter as JSON values, {} where there is none; raises Refusal when it is not a YAML mapping."""
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0].strip() != "---":
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        raise Refusal("The front matter of README.md has no closing '---' line.")
    front = "\n".join(lines[1:end])
    if len(front.encode()) > max_bytes:
        raise Refusal(f"The front matter of README.md has more than {max_bytes:,} bytes.")
    try:
        card = yaml.load(front, Loader=_Loader)
        card = json.loads(json.dumps({} if card is None else card, default=str, allow_nan=False))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Refusal(f"The front matter of README.md is not valid YAML: {str(error)[:500]}") from None
    if not isinstance(card, dict):
        raise Refusal("The front matter of README.md must be a mapping (key: value lines).")
    return card


def tags(card: dict[str, Any], paths: Iterable[str]) -> list[str]:
    """The tags by which a repo is found: the card's own, then those derived from its fields and files."""
    found = [*_texts(card.get("tags")), *_texts(card.get("library_name")), *_texts(card.get("pipeline_tag"))]
    found += _texts(card.get("language"))
    found += [f"license:{name}" for name in _texts(card.get("license"))]
    found += [f"dataset:{name}" for name in _texts(card.get("datasets"))]
    for base in _texts(card.get("base_model")):
        found.append(f"base_model:{base}")
        found += [f"base_model:{relation}:{base}" for relation in _texts(card.get("base_model_relation"))]
    if any(path.endswith(".safetensors") for path in paths):
        found.append("safetensors")
    return list(dict.fromkeys(found))


def _texts(value: Any) -> list[str]:
    """A card's field that may be one text or a list of texts."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text]
