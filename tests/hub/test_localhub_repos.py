"""Creating, describing, hiding and deleting repos."""

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError


def test_whoami_tells_the_owner_of_the_token(ada):
    me = ada.whoami()
    assert (me["name"], me["type"], me["auth"]["accessToken"]["role"]) == ("ada", "user", "write")


def test_a_wrong_token_is_told_so(hub):
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.endpoint, token="hf_wrong").whoami()


def test_creating_twice(ada, hub):
    url = ada.create_repo("ada/patch")
    assert (str(url), url.repo_id) == (f"{hub.endpoint}/ada/patch", "ada/patch")
    assert ada.create_repo("ada/patch", exist_ok=True) == url
    with pytest.raises(HfHubHTTPError, match="409"):
        ada.create_repo("Ada/PATCH")  # names are one, whatever their case
    assert ada.create_repo("other").repo_id == "ada/other"  # no namespace: the user's own


def test_a_new_repo_has_a_commit(ada):
    ada.create_repo("ada/patch")
    info = ada.model_info("ada/patch", files_metadata=True)
    assert len(info.sha) == 40 and info.siblings == [] and info.private is False and info.author == "ada"
    assert [commit.commit_id for commit in ada.list_repo_commits("ada/patch")] == [info.sha]


def test_only_the_user_creates_in_a_namespace(ada, bob, nobody):
    ada.create_repo("ada/patch")
    with pytest.raises(HfHubHTTPError, match="no rights in the namespace"):
        bob.create_repo("ada/theft")
    with pytest.raises(HfHubHTTPError, match="needs a token"):
        nobody.create_repo("ada/patch2")
    with pytest.raises(HfHubHTTPError, match="cannot write"):
        bob.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ada/patch")
    with pytest.raises(HfHubHTTPError):
        bob.delete_repo("ada/patch")
    assert ada.repo_exists("ada/patch")


def test_a_read_token_does_not_write(hub, ada):
    ada.create_repo("ada/patch")
    reader = HfApi(endpoint=hub.endpoint, token=hub.create_user("ada", role="read"))
    assert reader.repo_exists("ada/patch")
    with pytest.raises(HfHubHTTPError, match="can only read"):
        reader.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ada/patch")


def test_a_private_repo_is_invisible(ada, bob, nobody):
    ada.create_repo("ada/secret", private=True)
    ada.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ada/secret")
    assert ada.model_info("ada/secret").private is True
    for other in (bob, nobody):
        assert not other.repo_exists("ada/secret")
        assert not other.file_exists("ada/secret", "x.txt")
        assert list(other.list_models(author="ada")) == []
        with pytest.raises(RepositoryNotFoundError):
            other.auth_check("ada/secret")
        with pytest.raises(HfHubHTTPError):
            other.create_pull_request("ada/secret", title="let me in")
    assert [info.id for info in ada.list_models(author="ada")] == ["ada/secret"]


def test_visibility_can_change(ada, nobody):
    ada.create_repo("ada/patch", private=True)
    ada.update_repo_settings("ada/patch", private=False)
    assert nobody.repo_exists("ada/patch")
    ada.update_repo_settings("ada/patch", private=True)
    assert not nobody.repo_exists("ada/patch")


def test_auth_check(ada, bob):
    ada.create_repo("ada/patch")
    ada.auth_check("ada/patch", write=True)
    bob.auth_check("ada/patch")
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.auth_check("ada/patch", write=True)


def test_missing_things_have_the_errors_of_the_hub(ada):
    with pytest.raises(RepositoryNotFoundError):
        ada.model_info("ada/none")
    ada.create_repo("ada/patch")
    with pytest.raises(RevisionNotFoundError):
        ada.model_info("ada/patch", revision="v9.9.9")


def test_deleting_a_repo_deletes_its_contents(ada, hub):
    ada.create_repo("ada/a")
    ada.create_repo("ada/b")
    ada.upload_file(path_or_fileobj=b"shared", path_in_repo="s.txt", repo_id="ada/a")
    ada.upload_file(path_or_fileobj=b"shared", path_in_repo="s.txt", repo_id="ada/b")
    ada.upload_file(path_or_fileobj=b"only here", path_in_repo="o.txt", repo_id="ada/a", create_pr=True)
    ada.delete_repo("ada/a")
    with pytest.raises(RepositoryNotFoundError):
        ada.delete_repo("ada/a")
    ada.delete_repo("ada/a", missing_ok=True)
    stored = [path.read_bytes() for path in (hub.root / "blobs").glob("*/*")]
    assert stored == [b"shared"]


def test_repos_of_other_types(ada):
    url = ada.create_repo("ada/facts", repo_type="dataset")
    assert (url.repo_type, url.repo_id) == ("dataset", "ada/facts")
    assert not ada.repo_exists("ada/facts")
    ada.upload_file(path_or_fileobj=b"[]", path_in_repo="edits.json", repo_id="ada/facts", repo_type="dataset")
    assert ada.list_repo_files("ada/facts", repo_type="dataset") == ["edits.json"]
