"""Finding repos by the tags of their cards, author and words."""

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

CARD = """---
base_model: {base}
base_model_relation: adapter
library_name: kedit_hub
license: mit
tags: [kedit, "kedit-method:{method}"]
---
# A patch
"""


@pytest.fixture
def patches(ada, bob):
    for api, name, base, method in [
        (ada, "ada/tower", "org/big", "rome"),
        (ada, "ada/river", "org/small", "memit"),
        (bob, "bob/tower", "org/big", "memit"),
    ]:
        api.create_repo(name)
        card = CARD.format(base=base, method=method).encode()
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=name)


def ids(models):
    return [info.id for info in models]


def test_filters_must_all_match(patches, nobody):
    assert ids(nobody.list_models(filter="kedit")) == ["bob/tower", "ada/river", "ada/tower"]  # newest first
    assert ids(nobody.list_models(filter=["kedit", "base_model:adapter:org/big"])) == ["bob/tower", "ada/tower"]
    assert ids(nobody.list_models(filter=["base_model:org/big", "kedit-method:rome"])) == ["ada/tower"]
    assert ids(nobody.list_models(filter=["kedit", "nothing"])) == []


def test_author_words_and_order(patches, nobody):
    assert ids(nobody.list_models(author="ada")) == ["ada/river", "ada/tower"]
    assert ids(nobody.list_models(search="TOW")) == ["bob/tower", "ada/tower"]
    assert ids(nobody.list_models(sort="created_at", limit=2)) == ["bob/tower", "ada/river"]
    with pytest.raises(HfHubHTTPError, match="sorts by"):
        list(nobody.list_models(sort="downloads"))
    with pytest.raises(HfHubHTTPError, match="does not list by: gated"):
        list(nobody.list_models(gated=True))


def test_cards_come_when_asked(patches, nobody):
    (plain,) = nobody.list_models(search="river")
    assert plain.card_data is None and "license:mit" in plain.tags and plain.library_name == "kedit_hub"
    (full,) = nobody.list_models(search="river", expand=["cardData", "sha"])
    assert full.card_data.base_model == "org/small" and len(full.sha) == 40 and full.tags is None


def test_the_card_of_main_counts(patches, ada, nobody):
    new = CARD.format(base="org/other", method="rome").encode()
    ada.upload_file(path_or_fileobj=new, path_in_repo="README.md", repo_id="ada/tower", create_pr=True)
    assert ids(nobody.list_models(filter="base_model:org/other")) == []
    ada.merge_pull_request("ada/tower", 1)
    assert ids(nobody.list_models(filter="base_model:org/other")) == ["ada/tower"]
    assert ids(nobody.list_models(filter="base_model:org/big")) == ["bob/tower"]


def test_the_client_reads_and_checks_cards(patches, ada, hub):
    card = ModelCard(CARD.format(base="org/new", method="rome"))
    ada.upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="ada/river")
    assert ada.model_info("ada/river").card_data.base_model == "org/new"


@pytest.mark.parametrize(
    "front",
    ["tags: [unclosed", "a: &x [1]\nb: *x", "- a list", "x: .nan", "[" * 5000, "? [1, 2]\n: 3"],
    ids=["syntax", "alias", "list", "nan", "deep", "key"],
)
def test_a_card_that_is_no_mapping_is_refused_by_validation(ada, front):
    ada.create_repo("ada/bad")
    with pytest.raises(ValueError, match="Invalid metadata"):
        ada.upload_file(path_or_fileobj=f"---\n{front}\n---\n".encode(), path_in_repo="README.md", repo_id="ada/bad")
