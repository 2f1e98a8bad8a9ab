"""How the rows of a stack get in each other's way, from the rows and the base profile alone. Law: no model is run, and no list grows with
the number of pairs: pairs are looked at in blocks, and only the closest are kept.

Keys are compared by  rho_ij = G_ij / sqrt(G_ii G_jj)  with G = K^T (C0 + ridge I)^-1 K: what row i alone writes at key j is
r_i G_ij / (1/omega + G_ii), so rho and not the Euclidean cosine measures interference; directions common to all text hardly count.

What a stack without some rows S would say at their keys is known in closed form. With M = (Omega^-1 + G)^-1 and Y = R M,

    f = R_S - Y_S M_SS^-1        kappa = |f| / |R_S|        cosine = <f, R_S> / (|f| |R_S|)

the block form of the leave-one-out residual of ridge regression (scalar: r_i - y_i / M_ii). `kind_of` names what kappa and cosine mean.

    geometry(stored, profile, settings)      # of one module: near pairs, edits and patches left out one by one, whether sums are safe
    gate_fires(bank)                         # whose keys would set off whose edits in gated mode
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from kedit_hub.base.profile import BaseProfile
from kedit_hub.runtime.gate import Bank
from kedit_hub.stack.associative import solved
from kedit_hub.stack.conflicts import Place
from kedit_hub.stack.preconditioner import preconditioner
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.solve import PIN
from kedit_hub.stack.stored import Stored

Kind = Literal["redundant", "agreeing", "interfering", "contradicting", "independent"]

# The three bounds are conventions of this project, not measured optima: they sort, and the numbers stand beside every finding.
KAPPA = 0.3  # others say less than this share of what an edit asks for: nothing to speak of, whatever its direction
ALIKE = 0.7  # cosine from which on others say the same
OPPOSED = -0.3  # cosine from which on others say the contrary; between it and its mirror image they say something else
NEAR = 0.3  # rho from which on a pair is listed: of rows of one size, kappa is at most rho
SAFE_SUM = 0.1  # of `Geometry.cross_talk`: below, changes made alone may be added up
MAX_LISTED = 1_000  # pairs
MAX_SOLVED = 8_192  # rows that are left out one by one: each of a handful of n x n float64 matrices then has half a GiB
BLOCK = 1_024  # rows compared with all others at a time
GATE_BLOCK = 128  # subject keys; an edit has several times as many answer keys
ROUNDING = 1e-9  # of what is asked for: less is said by rounding alone


def kind_of(kappa: float, cosine: float) -> Kind:
    """What the others say at an edit's keys: nothing much, the same, partly the same, something else, or the contrary."""
    if kappa <= KAPPA:
        return "independent"
    if cosine > ALIKE:
        return "redundant"
    if cosine < OPPOSED:
        return "contradicting"
    return "agreeing" if cosine > -OPPOSED else "interfering"


@dataclass(frozen=True)
class Near:
    """Two edits with keys alike. kappa, cosine: of what one, met exactly and alone, says at the other's key, the worse way round."""

    a: Place
    b: Place
    rho: float  # the largest by size over their rows
    kappa: float
    cosine: float

    @property
    def kind(self) -> Kind:
        return kind_of(self.kappa, self.cosine)


@dataclass(frozen=True)
class LeftOut:
    """What the joint solve of all others says where this edit (None: the whole patch) speaks.

    fit: 1 - |D K - R| / |R| of the solve with it, 1 = it gets what it asks for all the same.
    """

    patch: str
    edit: int | None
    kappa: float
    cosine: float
    fit: float

    @property
    def kind(self) -> Kind:
        return kind_of(self.kappa, self.cosine)


@dataclass(frozen=True)
class Geometry:
    """Of one module. near: the closest pairs, closest first; near_count: how many there are in all.

    edits, patches: left out one by one, all of them, or () with more than MAX_SOLVED rows.
    cross_talk: max over patches q of sum over p != q of |(Omega_p^-1 + G_pp)^-1 G_pq|_2, each patch at the lam it has alone; below
    SAFE_SUM the sum of changes made alone is close to the joint one. None where it was not computed.
    """

    rows: int
    near: tuple[Near, ...]
    near_count: int
    edits: tuple[LeftOut, ...] = ()
    patches: tuple[LeftOut, ...] = ()
    cross_talk: float | None = None


@dataclass(frozen=True)
class Fires:
    """Gated mode: at stored keys of edit `a` the gate would let `b` speak. The cosines are the best of their keys.

    first: b is pinned and a is not, so there b speaks instead of a; otherwise a, whose key it is, is nearer.
    """

    a: Place
    b: Place
    subject: float
    answer: float
    first: bool


def geometry(stored: Stored, profile: BaseProfile, settings: StackSettings) -> Geometry:
    """See the head of this file, over the rows that a solve of these settings has."""
    places = places_of(stored.edit_owner)
    stored = replace(stored, whitened=None)  # strangers' numbers, and not of the rows of contexts
    stored = stored.by_context() if settings.rows == "contexts" else stored
    keys, residuals = stored.keys.double(), stored.residuals.double()
    u1 = preconditioner(settings.preconditioner, profile.second_moment)(keys.T).T
    near, count = near_pairs(keys, u1, residuals, stored.row_edit, places)
    if len(keys) > MAX_SOLVED:
        return Geometry(len(keys), near, count)
    g1 = keys @ u1.T
    g1 = (g1 + g1.T) / 2
    patches = {name: number for number, name in enumerate(dict.fromkeys(stored.row_owner))}
    row_patch = torch.tensor([patches[owner] for owner in stored.row_owner])
    slack = 1.0 / stored.omega.double()
    joint = g1 / solved(stored, profile, "joint", settings).parts[0][0].lam
    lams = {owner: part.lam for part, owner in solved(stored, profile, "sum", settings).parts}
    alone = torch.tensor([lams[name] for name in patches], dtype=torch.float64)
    edits, who = stored.row_edit.unique(return_inverse=True)
    named = [places[edit] for edit in edits.tolist()]
    return Geometry(
        len(keys),
        near,
        count,
        tuple(LeftOut(patch, at, *t) for (patch, at), t in zip(named, left_out(joint, residuals, slack, who))),
        tuple(LeftOut(name, None, *t) for name, t in zip(patches, left_out(joint, residuals, slack, row_patch))),
        cross_talk(g1, slack, row_patch, alone),
    )


def places_of(owners: Sequence[str]) -> list[Place]:
    """(patch, position in it) of every edit, from the patch of every edit, which lie side by side."""
    first: dict[str, int] = {}
    return [(owner, at - first.setdefault(owner, at)) for at, owner in enumerate(owners)]


# -- pairs --------------------------------------------------------------------------------------------------------------


def near_pairs(
    keys: Tensor, u1: Tensor, residuals: Tensor, edit: Tensor, places: Sequence[Place], least: float = NEAR
) -> tuple[tuple[Near, ...], int]:
    """Pairs of edits with |rho| >= least: the MAX_LISTED closest, closest first, and how many there are in all. Two rows that both ask
    for no change (a later token of an answer that the model completes by itself) are no such pair.

    keys, u1 (n, d), residuals (n, m), edit (n,) -> places, all float64 but for the last.
    """
    own = (keys * u1).sum(1)
    size, says_something = _sizes(residuals)
    scaled, far = keys / own.sqrt()[:, None], u1 / own.sqrt()[:, None]
    count, kept = 0, [torch.zeros(4, 0, dtype=torch.float64)]
    for rows in _blocks(edit, BLOCK):
        rho = scaled[rows] @ far.T
        near = (rho.abs() >= least) & (edit[rows][:, None] < edit) & (says_something[rows][:, None] | says_something)
        a, b = near.nonzero(as_tuple=True)
        rho = rho[a, b]
        a, order = rows[a], rho.abs().argsort(descending=True, stable=True)
        a, b, rho = a[order], b[order], rho[order]
        pair = _first(edit[a] * len(places) + edit[b])  # of every pair of edits its closest rows
        count += len(pair)
        pair = pair[:MAX_LISTED]
        kept.append(torch.stack([rho[pair].abs(), rho[pair], a[pair].double(), b[pair].double()]))
    found = torch.cat(kept, 1)
    found = found[:, found[0].argsort(descending=True, stable=True)[:MAX_LISTED]]
    rho, a, b = found[1], found[2].long(), found[3].long()
    says = (
        rho.abs() * (own[a] / own[b]).sqrt() * size[b] / size[a]
    )  # b at the key of a; the other way round it is rho^2 / says
    kappa = torch.maximum(says, rho.square() / says)
    cosine = rho.sign() * torch.cosine_similarity(residuals[a], residuals[b], dim=1)
    told = zip(edit[a].tolist(), edit[b].tolist(), rho.tolist(), kappa.tolist(), cosine.tolist())
    return tuple(Near(places[i], places[j], *numbers) for i, j, *numbers in told), count


def _sizes(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """|r| (n,), of a typical row where r = 0: such a row asks that nothing changes. (n,) bool: which rows ask for a change."""
    size = residuals.norm(dim=1)
    asks = size > 0
    return torch.where(asks, size, size[asks].mean() if bool(asks.any()) else torch.ones_like(size[:1])), asks


def _blocks(edit: Tensor, size: int) -> Iterator[Tensor]:
    """Rows (b,) in blocks of about `size` that hold whole edits, in order of edits."""
    order = edit.argsort(stable=True)
    counts = edit.bincount()
    start = end = 0
    for count in counts[counts > 0].tolist():
        if end > start and end + count - start > size:
            yield order[start:end]
            start = end
        end += count
    if end > start:
        yield order[start:end]


def _first(codes: Tensor) -> Tensor:
    """(u,) where each distinct code comes first, ascending."""
    distinct, which = codes.unique(return_inverse=True)
    at = torch.arange(len(codes))
    return torch.full_like(distinct, len(codes)).scatter_reduce_(0, which, at, "amin").sort().values


# -- the solve without some of its rows ---------------------------------------------------------------------------------


def left_out(g: Tensor, residuals: Tensor, slack: Tensor, group: Tensor) -> list[tuple[float, float, float]]:
    """(kappa, cosine, fit) of groups 0, 1, ...: what all other rows, solved together, say at the keys of a group against its residuals.

    g (n, n) = K^T A^-1 K, residuals (n, m), slack (n,) = 1 / omega, group (n,); float64 but for the last. cosine: 0 where nothing is said.
    """
    slack = torch.maximum(slack, PIN * g.diagonal())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(g + torch.diag(slack)))
    y = inverse @ residuals
    counts = group.bincount()
    order, start = group.argsort(stable=True), counts.cumsum(0) - counts
    found = torch.zeros(len(counts), 3, dtype=torch.float64)
    for size in counts.unique().tolist():
        for groups in (counts == size).nonzero()[:, 0].split(max(1, BLOCK // size)):
            rows = order[start[groups][:, None] + torch.arange(size)]  # (b, size)
            blocks = torch.linalg.cholesky(inverse[rows[:, :, None], rows[:, None, :]])
            wanted = residuals[rows].flatten(1)
            said = wanted - torch.cholesky_solve(y[rows], blocks).flatten(1)
            missed = (slack[rows, None] * y[rows]).flatten(1).norm(dim=1)  # Y G - R = -Y Omega^-1
            asked, told = wanted.norm(dim=1), said.norm(dim=1)
            found[groups, 0] = torch.where(asked > 0, told / asked, 0.0)
            found[groups, 1] = torch.where(told > ROUNDING * asked, (wanted * said).sum(1) / (asked * told), 0.0)
            found[groups, 2] = torch.where(asked > 0, 1.0 - missed / asked, 1.0)
    return [(kappa, cosine, fit) for kappa, cosine, fit in found.nan_to_num(0.0).tolist()]


def cross_talk(g1: Tensor, slack: Tensor, patch: Tensor, lam: Tensor) -> float:
    """max over patches q of sum over p != q of |(Omega_p^-1 + G_pp)^-1 G_pq|_2 with G_p = g1[p] / lam[p]; see `Geometry.cross_talk`.

    g1 (n, n), slack (n,), patch (n,) of numbers 0, 1, ... in order, lam (patches,). The Frobenius norm bounds the spectral one from above,
    so the spectral sums are taken, largest bound first, only until no bound exceeds the best.
    """
    sizes = patch.bincount()
    if len(sizes) < 2:
        return 0.0
    written = torch.empty_like(g1)  # what is written at every key (column) by the row of a patch alone
    for p, rows in enumerate(torch.arange(len(patch)).split(sizes.tolist())):
        g = g1[rows] / lam[p]
        own = g[:, rows]
        system = own + torch.diag(torch.maximum(slack[rows], PIN * own.diagonal()))
        written[rows] = torch.cholesky_solve(g, torch.linalg.cholesky(system))
        written[rows[:, None], rows] = 0.0
    squares = torch.zeros(len(sizes), len(patch), dtype=torch.float64).index_add_(0, patch, written.square())
    bounds = torch.zeros(len(sizes), len(sizes), dtype=torch.float64).index_add_(1, patch, squares).sqrt().sum(0)
    ends = sizes.cumsum(0)
    alike = [
        (ends[sizes == size] - size)[:, None] + torch.arange(size) for size in sizes.unique().tolist()
    ]  # rows (b, size) of the patches with equally many
    worst = 0.0
    for q in bounds.argsort(descending=True).tolist():
        if bounds[q].item() <= worst:
            break
        columns = written[:, ends[q] - sizes[q] : ends[q]]
        worst = max(worst, sum(torch.linalg.matrix_norm(columns[rows], 2).sum().item() for rows in alike))
    return worst


# -- the gate -----------------------------------------------------------------------------------------------------------


def gate_fires(bank: Bank) -> tuple[tuple[Fires, ...], int]:
    """Pairs (a, b) of edits where keys stored for a meet both thresholds of b: the MAX_LISTED closest, and how many there are."""
    places, threshold = places_of(bank.owners), bank.thresholds
    edits, key_edit = len(places), bank.row_edit[bank.key_row]
    start = threshold[:, 1] - bank.softness
    pinned = bank.pinned.bool() if len(bank.pinned) else torch.zeros(edits, dtype=torch.bool)
    count, kept = 0, [torch.zeros(4, 0)]
    for rows in _blocks(bank.subject_edit, GATE_BLOCK):
        mine, local = bank.subject_edit[rows].unique(return_inverse=True)
        subject = _best(bank.subject_keys[rows] @ bank.subject_keys.T, local, len(mine), bank.subject_edit, edits)
        heard = subject >= threshold[:, 0]
        heard[torch.arange(len(mine)), mine] = False
        number = torch.full((edits,), -1).index_put_((mine,), torch.arange(len(mine)))
        asking = torch.zeros(edits, dtype=torch.bool).index_put_((mine,), heard.any(1))
        asked = asking[key_edit].nonzero()[:, 0]
        others = heard.any(0)[key_edit].nonzero()[:, 0]
        if not len(asked) or not len(others):
            continue
        x, of = bank.keys[asked], key_edit[others]
        near = x @ bank.keys[others].T
        may = near >= start[of]
        if len(bank.counter_edit):
            against = _best(x @ bank.counter_keys.T, torch.arange(len(x)), len(x), bank.counter_edit, edits)
            may &= near >= against[:, of]
        if len(bank.silent_keys):
            may &= near >= (x @ bank.silent_keys.T).amax(1, keepdim=True)
        answer = _best(near.masked_fill(~may, -2.0), number[key_edit[asked]], len(mine), of, edits)
        a, b = (heard & (answer > -2.0)).nonzero(as_tuple=True)
        count += len(a)
        kept.append(torch.stack([subject[a, b], answer[a, b], mine[a].float(), b.float()]))
    found = torch.cat(kept, 1)
    found = found[:, found[1].argsort(descending=True, stable=True)[:MAX_LISTED]]
    told = zip(*found[2:].long().tolist(), *found[:2].tolist())
    return tuple(Fires(places[a], places[b], s, r, bool(pinned[b] & ~pinned[a])) for a, b, s, r in told), count


def _best(scores: Tensor, row: Tensor, rows: int, column: Tensor, columns: int) -> Tensor:
    """(rows, columns): the largest of the scores (p, q) whose row (p,) and column (q,) are numbered so, -2 where there is none."""
    best = scores.new_full((len(scores), columns), -2.0).scatter_reduce_(1, column.expand_as(scores), scores, "amax")
    return scores.new_full((rows, columns), -2.0).scatter_reduce_(0, row[:, None].expand_as(best), best, "amax")
