"""The DINO loss and its targets against the slow, obvious loops; over two ranks as over one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.dino_loss import DinoLoss, sinkhorn_knopp

VIEWS, GLOBAL_VIEWS, BATCH, PROTOTYPES = 5, 2, 6, 8
ROOT = Path(__file__).resolve().parents[2]


def random_logits(views, seed=0, batch=BATCH):
    return torch.randn(views, batch, PROTOTYPES, generator=torch.Generator().manual_seed(seed))


def literal_loss(student_logits, targets, temperature):
    """The loop of the docstring."""
    q = (student_logits / temperature).softmax(dim=-1)
    total, pairs = 0, 0
    for g in range(len(targets)):
        for v in range(len(student_logits)):
            if v != g:
                total += -(targets[g] * torch.log(q[v])).sum(-1).mean()
                pairs += 1
    return total / pairs


def literal_sinkhorn_knopp(logits, temperature, iterations=3):
    """Rows and columns scaled in turn, in float64 where nothing overflows."""
    assignment = torch.exp(logits.double() / temperature)
    for _ in range(iterations):
        for prototype in range(assignment.shape[1]):
            assignment[:, prototype] /= assignment[:, prototype].sum()
        for image in range(assignment.shape[0]):
            assignment[image] /= assignment[image].sum()
    return assignment.float()


@pytest.mark.parametrize("views", [2, 3, VIEWS])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_and_gradient_equal_the_loop_over_pairs(views, temperature):
    targets = random_logits(GLOBAL_VIEWS, seed=1).softmax(dim=-1)
    logits = [random_logits(views).requires_grad_() for _ in range(2)]
    loss = DinoLoss(PROTOTYPES, temperature)(logits[0], targets)
    expected = literal_loss(logits[1], targets, temperature)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits[0].grad, logits[1].grad)


def test_loss_stays_finite_where_probabilities_underflow():
    logits = (random_logits(VIEWS) * 1000).requires_grad_()
    loss = DinoLoss(PROTOTYPES)(logits, random_logits(GLOBAL_VIEWS).softmax(dim=-1))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_loss_of_half_precision_logits_is_computed_in_float32():
    logits, targets = random_logits(VIEWS).bfloat16(), random_logits(GLOBAL_VIEWS, seed=1).softmax(dim=-1)
    loss = DinoLoss(PROTOTYPES)(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, literal_loss(logits.float(), targets, 0.1))


def test_uniform_student_costs_ln_k():
    loss = DinoLoss(PROTOTYPES)(torch.zeros(VIEWS, BATCH, PROTOTYPES), random_logits(GLOBAL_VIEWS).softmax(dim=-1))
    torch.testing.assert_close(loss, torch.tensor(float(PROTOTYPES)).log())


def test_the_centre_is_used_first_and_updated_after():
    loss, center = DinoLoss(PROTOTYPES, center_momentum=0.9), torch.zeros(PROTOTYPES)
    for step in range(3):
        logits = random_logits(GLOBAL_VIEWS, seed=step)
        targets = loss.targets(logits, 0.04)
        torch.testing.assert_close(targets, ((logits - center) / 0.04).softmax(dim=-1))
        torch.testing.assert_close(loss.center, center)  # until the step is taken
        loss.update_center()
        center = 0.9 * center + 0.1 * logits.mean(dim=(0, 1))
        torch.testing.assert_close(loss.center, center)
    assert loss.state_dict().keys() == {"center"}


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_targets_are_probabilities_without_gradient(centering):
    targets = DinoLoss(PROTOTYPES, centering=centering).targets(random_logits(GLOBAL_VIEWS).requires_grad_(), 0.04)
    torch.testing.assert_close(targets.sum(dim=-1), torch.ones(GLOBAL_VIEWS, BATCH))
    assert not targets.requires_grad and targets.ge(0).all()


def test_sinkhorn_knopp_leaves_the_centre_alone_and_treats_views_apart():
    loss, logits = DinoLoss(PROTOTYPES, centering="sinkhorn_knopp"), random_logits(GLOBAL_VIEWS)
    targets = loss.targets(logits, 0.5)
    assert loss.center.eq(0).all()
    for view in range(GLOBAL_VIEWS):
        torch.testing.assert_close(targets[view], sinkhorn_knopp(logits[view], 0.5))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_knopp_equals_the_loop(temperature, iterations):
    logits = random_logits(1)[0]
    torch.testing.assert_close(
        sinkhorn_knopp(logits, temperature, iterations), literal_sinkhorn_knopp(logits, temperature, iterations)
    )


@pytest.mark.parametrize("temperature", [0.02, 0.04])
@pytest.mark.parametrize("lone", ["prototype", "image"])
def test_sinkhorn_knopp_is_exact_where_one_is_far_from_all(temperature, lone):
    """Cosines as a narrow cone of features gives them: exp(-1.6 / 0.02) is small, but balancing is to scale it up."""
    logits = random_logits(1)[0].tanh()
    logits[1, 1] = 0.98
    far = logits[:, 0] if lone == "prototype" else logits[0]
    far.mul_(0.1).sub_(0.65)
    torch.testing.assert_close(
        sinkhorn_knopp(logits, temperature), literal_sinkhorn_knopp(logits, temperature), atol=1e-4, rtol=1e-3
    )


def test_sinkhorn_knopp_balances_images_and_prototypes():
    assignment = sinkhorn_knopp(random_logits(1, batch=32)[0], 0.5, iterations=50)
    torch.testing.assert_close(assignment.sum(dim=1), torch.ones(32))
    torch.testing.assert_close(assignment.sum(dim=0), torch.full((PROTOTYPES,), 32 / PROTOTYPES), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("scale, temperature", [(1e4, 0.02), (1.0, 1e-3), (1e-6, 0.02), (100.0, 0.04)])
def test_sinkhorn_knopp_rows_sum_to_one_for_any_logits(scale, temperature):
    assignment = sinkhorn_knopp(random_logits(1)[0] * scale, temperature)
    assert assignment.isfinite().all()
    torch.testing.assert_close(assignment.sum(dim=1), torch.ones(BATCH))


RANK_SCRIPT = """
import sys, torch, torch.distributed as dist
from training.dino_loss import DinoLoss

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
logits = torch.load(f"{folder}/logits.pt")  # (steps, G, B, K)
shares = logits.chunk(2, dim=2)[rank]
results = {}
for centering in ("centering", "sinkhorn_knopp"):
    loss = DinoLoss(logits.shape[-1], centering=centering)
    targets = []
    for share in shares:
        targets.append(loss.targets(share, 0.2))
        loss.update_center()
    results[centering] = torch.stack(targets), loss.center
torch.save(results, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_ranks_give_the_targets_of_one_with_the_whole_batch(tmp_path):
    logits = torch.stack([random_logits(GLOBAL_VIEWS, seed=step) for step in range(3)])
    logits[:, :, 0] += 5  # the ranks' largest logits differ
    torch.save(logits, tmp_path / "logits.pt")
    ranks = [subprocess.Popen([sys.executable, "-c", RANK_SCRIPT, str(tmp_path), str(rank)], cwd=ROOT) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for centering in ("centering", "sinkhorn_knopp"):
        loss = DinoLoss(PROTOTYPES, centering=centering)
        expected = []
        for step in logits:
            expected.append(loss.targets(step, 0.2))
            loss.update_center()
        torch.testing.assert_close(torch.cat([result[centering][0] for result in results], dim=2), torch.stack(expected))
        for result in results:
            torch.testing.assert_close(result[centering][1], loss.center)
