"""What each process of the tests of gathering runs; importable, so that it can be spawned."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from lossbook import losses
from lossbook.distributed import gather_with_gradient

ROWS, FEATURES = 10, 6
EXACT = {"rtol": 1e-12, "atol": 1e-14}
PROXIES = torch.linspace(-1, 2, 16, dtype=torch.float64).cos().view(4, 4)


def joined_batch():
    """Two views and a class for each example of the whole batch, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, ROWS, FEATURES, generator=generator, dtype=torch.float64)
    return views[0], views[1], torch.arange(ROWS) % 4


def own_rows(rank, processes):
    """A ragged split: each process but the last has one row more than the one before it."""
    edges = [rank * (rank + 1) // 2 for rank in range(1, processes + 1)]
    edges = [0, *edges[:-1], ROWS]
    return slice(edges[rank], edges[rank + 1])


def new_model():
    model = nn.Linear(FEATURES, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 4 * FEATURES).sin().view(4, FEATURES))
    return model


def adaptive(z_a, z_b, target):
    """Two heads of two features, and a temperature of each pair's own."""
    a, b = (z.unflatten(1, (2, 2)).transpose(0, 1) for z in (z_a, z_b))
    return losses.amcl(a, b, 0.5 + (a @ b.mT).sigmoid())


def metrix_of_views(z_a, z_b, target):
    """The partner of each row of the joined batch is the other view of its example."""
    partner = torch.arange(2 * len(target)).roll(len(target))
    options = {"lam": 0.3, "partner": partner, "gamma": 5.0}
    return losses.metrix_embed_loss(torch.cat([z_a, z_b]), torch.cat([target, target]), **options)


def auc(z_a, z_b, y):
    """Scores of examples, of which those of class 0 are the positives; a process may have none of them."""
    score = (z_a * z_b).sum(1)
    return losses.mann_whitney(score[y == 0], score[y != 0], temperature=0.5)


def mixed_pairs(z_a, z_b, y):
    """Pair loss of queries against other passages, some of which are half alike."""
    cosine = functional.normalize(z_a, dim=1) @ functional.normalize(z_b, dim=1).T
    return losses.pair_loss(cosine, (y[:, None] == y) * 0.5, gamma=5.0)


LOSSES = {
    "info_nce": lambda a, b, y: losses.info_nce(a @ b.T, temperature=0.5, mask=y[:, None] != y),
    "nt_xent": lambda a, b, y: losses.nt_xent(a, b),
    "sup_con": lambda a, b, y: losses.sup_con(torch.cat([a, b]), torch.cat([y, y])),
    "nt_xent_decoupled": lambda a, b, y: losses.nt_xent_decoupled(a, b),
    "amcl": adaptive,
    "pcr": lambda a, b, y: losses.pcr(torch.cat([a, b]), PROXIES, torch.cat([y, y])),
    "pcr_with_pairs": lambda a, b, y: losses.pcr_with_pairs(torch.cat([a, b]), PROXIES, torch.cat([y, y])),
    "relation_distillation": lambda a, b, y: losses.relation_distillation(a, b, temperature=0.5),
    "metric_loss": lambda a, b, y: losses.metric_loss(torch.cat([a, b]), torch.cat([y, y])),
    "metrix_embed_loss": metrix_of_views,
    "contrastive": lambda a, b, y: losses.metric_loss(torch.cat([a, b]), torch.cat([y, y]), kind="contrastive"),
    "pair_loss": mixed_pairs,
    "mann_whitney": auc,
    "mann_whitney_retrieval": lambda a, b, y: losses.mann_whitney_retrieval(
        a @ b.T, temperature=0.5, mask=y[:, None] != y
    ),
    "ranknet_retrieval": lambda a, b, y: losses.ranknet_retrieval(a @ b.T, temperature=0.5, mask=y[:, None] != y),
    "siglip": lambda a, b, y: losses.siglip(a @ b.T, temperature=0.5, bias=-1.0, mask=y[:, None] != y),
    "multilabel_softmax": lambda a, b, y: losses.multilabel_softmax(a @ b.T, y[:, None] == y),
    "decoupled_softmax": lambda a, b, y: losses.decoupled_softmax(a @ b.T, y[:, None] == y),
    "soft_topk_loss": lambda a, b, y: losses.soft_topk_loss(a @ b.T, y[:, None] == y, k=2),
}


def gathered_losses_equal_one_process(rank, processes):
    """Value, gradients of the embeddings (times W) and gradients of the parameters (after DDP's average)."""
    a, b, y = joined_batch()
    rows = own_rows(rank, processes)
    for name, loss_of in LOSSES.items():
        model = new_model()
        z_a, z_b = model(a), model(b)
        z_a.retain_grad()
        expected = loss_of(z_a, z_b, y)
        expected.backward()

        parallel = new_model()
        own_a, own_b = parallel(a[rows]), parallel(b[rows])
        own_a.retain_grad()
        loss = loss_of(gather_with_gradient(own_a), gather_with_gradient(own_b), gather_with_gradient(y[rows]))
        loss.backward()
        torch.testing.assert_close(loss, expected, **EXACT, msg=name)
        torch.testing.assert_close(own_a.grad, processes * z_a.grad[rows], **EXACT, msg=name)
        assert z_a.grad.abs().max() > 1e-4, "the comparison must be of something"
        dist.all_reduce(parallel.weight.grad)
        torch.testing.assert_close(parallel.weight.grad / processes, model.weight.grad, **EXACT, msg=name)


LABELS = torch.linspace(-2, 3, 20, dtype=torch.float64).sin().view(5, 4)
# Every process holds all labels, or all logits: each example has a term of its own.
LOCAL = {
    "multilabel_softmax": lambda z, y, r: losses.multilabel_softmax(z @ LABELS.T, right_labels(y), reduction=r),
    "decoupled_softmax": lambda z, y, r: losses.decoupled_softmax(z @ LABELS.T, right_labels(y), reduction=r),
    "soft_topk_loss": lambda z, y, r: losses.soft_topk_loss(z @ LABELS.T, right_labels(y), k=2, reduction=r),
    "pair_loss": lambda z, y, r: losses.pair_loss(z @ LABELS.T, right_labels(y).double(), gamma=5.0, reduction=r),
    "proxy_distillation": lambda z, y, r: losses.proxy_distillation(z, z.detach() ** 2, torch.arange(4), reduction=r),
}


def right_labels(y):
    return (y[:, None] + torch.arange(5)) % 3 == 0


def losses_of_fixed_labels_need_no_gathering(rank, processes):
    """The sum of the own rows times W / N; their own mean is another loss, as the batches are unequal."""
    a, _, y = joined_batch()
    rows = own_rows(rank, processes)
    for name, loss_of in LOCAL.items():
        model, parallel, naive = new_model(), new_model(), new_model()
        loss_of(model(a), y, "mean").backward()
        (loss_of(parallel(a[rows]), y[rows], "sum") * processes / ROWS).backward()
        loss_of(naive(a[rows]), y[rows], "mean").backward()
        for each in (parallel, naive):
            dist.all_reduce(each.weight.grad)
        torch.testing.assert_close(parallel.weight.grad / processes, model.weight.grad, **EXACT, msg=name)
        assert not torch.allclose(naive.weight.grad / processes, model.weight.grad, rtol=1e-3), name


def losses_that_compare_examples_need_it(rank, processes):
    """What each process makes of its own rows alone, averaged, is not the loss of the joined batch."""
    a, b, y = joined_batch()
    share = ROWS // processes
    rows = slice(rank * share, (rank + 1) * share)
    a, b, y = a[: share * processes], b[: share * processes], y[: share * processes]
    for name, loss_of in LOSSES.items():
        model, local = new_model(), new_model()
        loss_of(model(a), model(b), y).backward()
        loss_of(local(a[rows]), local(b[rows]), y[rows]).backward()
        dist.all_reduce(local.weight.grad)
        assert not torch.allclose(local.weight.grad / processes, model.weight.grad, rtol=1e-3), name


def distributed_data_parallel_needs_no_factor(rank, processes):
    a, b, _ = joined_batch()
    rows = own_rows(rank, processes)
    model, parallel = new_model(), DistributedDataParallel(new_model())
    losses.nt_xent(model(a), model(b)).backward()
    own = parallel(torch.cat([a[rows], b[rows]])).chunk(2)
    losses.nt_xent(*map(gather_with_gradient, own)).backward()
    torch.testing.assert_close(parallel.module.weight.grad, model.weight.grad, **EXACT)


def own_anchors_against_all_candidates(rank, processes):
    """With equal shares a process may keep to its own rows of the similarities: the average is the same."""
    a, b, _ = joined_batch()
    share = ROWS // processes
    a, b = a[: share * processes], b[: share * processes]
    rows = slice(rank * share, (rank + 1) * share)
    model, parallel = new_model(), new_model()
    losses.info_nce(model(a) @ model(b).T).backward()
    candidates = gather_with_gradient(parallel(b[rows]))
    sim = parallel(a[rows]) @ candidates.T
    # The positive of row i stands in column i once the own candidates come first.
    losses.info_nce(sim.roll(-rank * share, 1)).backward()
    dist.all_reduce(parallel.weight.grad)
    torch.testing.assert_close(parallel.weight.grad / processes, model.weight.grad, **EXACT)


def upstream_gradients_that_differ_are_summed(rank, processes):
    """Each process weighs the gathered rows differently; a uniform gradient would hide a wrong sum."""
    own = torch.ones(rank + 1, 2, dtype=torch.float64, requires_grad=True)
    gathered = gather_with_gradient(own)
    weight = torch.arange(len(gathered), dtype=torch.float64)[:, None]
    (gathered * (rank + 1) * weight).sum().backward()
    start = rank * (rank + 1) // 2
    total = processes * (processes + 1) / 2
    expected = total * torch.arange(start, start + rank + 1, dtype=torch.float64)[:, None].expand(-1, 2)
    torch.testing.assert_close(own.grad, expected, **EXACT)


def every_dtype_and_no_rows(rank, processes):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool):
        own = torch.full((rank, 3), rank % 2, dtype=dtype)  # the first process has none
        gathered = gather_with_gradient(own)
        expected = torch.cat([torch.full((each, 3), each % 2, dtype=dtype) for each in range(processes)])
        assert gathered.dtype == dtype and torch.equal(gathered, expected), dtype
    strided = torch.arange(6.0).view(2, 3).T.requires_grad_()
    gathered = gather_with_gradient(strided)
    assert torch.equal(gathered, strided.repeat(processes, 1)) and gathered.requires_grad
    with torch.no_grad():
        assert not gather_with_gradient(strided).requires_grad
    low = torch.full((1, 1), 1.0, dtype=torch.bfloat16, requires_grad=True)
    gather_with_gradient(low).sum().backward()
    assert low.grad.dtype == torch.bfloat16 and low.grad.item() == processes


def disagreement_is_refused_everywhere(rank, processes):
    for own in (
        torch.zeros(2, 3 + rank),
        torch.zeros(2, 3, dtype=torch.float64 if rank else torch.float32),
        torch.zeros(2, *[3] * (rank + 1)),
        torch.zeros(2, 3, requires_grad=rank == 0),
    ):
        message = ""
        try:
            gather_with_gradient(own)
        except ValueError as error:
            message = str(error)
        assert "tensor must agree in all processes but for its rows, got" in message
        assert "torch.float32 of shape (2, 3)" in message


def a_group_of_one_and_a_group_of_all(rank, processes):
    groups = [dist.new_group([each]) for each in range(processes)]
    own = torch.full((1, 1), float(rank))
    assert gather_with_gradient(own, groups[rank]) is own
    everyone = dist.new_group(list(range(processes)))
    assert gather_with_gradient(own, everyone).flatten().tolist() == list(range(processes))


ALL = (
    gathered_losses_equal_one_process,
    losses_of_fixed_labels_need_no_gathering,
    losses_that_compare_examples_need_it,
    distributed_data_parallel_needs_no_factor,
    own_anchors_against_all_candidates,
    upstream_gradients_that_differ_are_summed,
    every_dtype_and_no_rows,
    disagreement_is_refused_everywhere,
    a_group_of_one_and_a_group_of_all,
)


def everything(rank, processes):
    """All checks in one set of processes: starting them costs more than running them."""
    for check in ALL:
        check(rank, processes)
