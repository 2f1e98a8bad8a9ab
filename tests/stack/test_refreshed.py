"""StackSettings.refresh through `apply`: rows over a changed lower layer are measured anew there; on one layer nothing changes."""

import torch

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.editors.rebase import rebase
from kedit_hub.patch import LowRank, Patch
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.stack.settings import StackSettings

LOW = "model.layers.0.mlp.down_proj"


def test_rows_over_another_patch_are_those_of_a_rebase():
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    rows = Patch.load("patches/eiffel-tower-in-rome")
    profile = kedit_hub.demo.profile("llama")
    out, width = model.get_submodule(LOW).weight.shape
    g = torch.Generator().manual_seed(0)
    low = LowRank(torch.randn(2, width, generator=g), 0.05 * torch.randn(out, 2, generator=g))
    other = kedit_hub.Edit("Lima lies in", "Peru", "Lima")
    base = rows.manifest.base.model_copy(update={"fingerprint": {LOW: fingerprint(model.get_submodule(LOW))}})
    below = Patch.create(deltas={LOW: low}, edits=[other], base=base, method="mend")

    def keys(pm):
        gate = pm._composition.branches[profile.module][-1]
        return gate.bank.keys

    how = {"model": model, "tokenizer": tokenizer, "profile": profile}
    plain = kedit_hub.apply([rows, below], settings=StackSettings(mode="gated"), **how)
    fresh = kedit_hub.apply([below, rows], settings=StackSettings(mode="gated", refresh=True), **how)
    assert fresh.report["refreshed"] == [profile.module] and "refreshed" not in plain.report
    onto = kedit_hub.apply([below], **how)
    alone = kedit_hub.apply([below, rebase(rows, onto, profile=profile)], settings=StackSettings(mode="gated"), **how)
    assert torch.allclose(keys(fresh), keys(alone), atol=1e-5) and not torch.allclose(
        keys(fresh), keys(plain), atol=1e-3
    )

    one = [kedit_hub.apply([rows], settings=StackSettings(mode="gated", refresh=on), **how) for on in (False, True)]
    assert torch.equal(keys(one[0]), keys(one[1])) and one[1].report["refreshed"] == []
