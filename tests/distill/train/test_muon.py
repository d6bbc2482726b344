import re

import torch
from torch import nn

from pocketfocus.distill.train.muon import Muon, orthogonal
from pocketfocus.distill.train.schedule import OPTIMIZERS, VALUES, Schedule
from pocketfocus.models.loading import load_reference
from pocketfocus.models.student import build_student

LAST = r"\.(dioptres|position)\."


def test_singular_values_come_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((8, 72), (72, 8), (32, 32)):
        matrices = torch.randn(3, rows, columns, generator=generator)
        made = orthogonal(matrices).float()
        assert made.shape == matrices.shape
        values = torch.linalg.svdvals(made)
        assert values[:, : min(rows, columns) // 2].min() > 0.5
        assert values.max() < 1.35


def test_directions_stay() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(6, 20, generator=generator)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    expected = left @ right
    made = orthogonal(matrix[None])[0].float()
    cosine = (made * expected).sum() / (made.norm() * expected.norm())
    assert cosine > 0.95


def test_it_learns_a_convolution() -> None:
    torch.manual_seed(0)
    wanted, made = (torch.nn.Conv2d(4, 8, 3, bias=False) for _ in range(2))
    optimizer = Muon(made.parameters(), lr=0.05)
    x = torch.randn(16, 4, 8, 8)
    losses = []
    for step in range(60):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 60)
        loss = (made(x) - wanted(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_parameters_of_one_shape_are_updated_as_if_alone() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(2, 6, 12)
    together = [torch.nn.Parameter(torch.ones(6, 12)) for _ in range(2)]
    alone = torch.nn.Parameter(torch.ones(6, 12))
    for parameter, gradient in zip(together, gradients, strict=True):
        parameter.grad = gradient
    alone.grad = gradients[1]
    Muon(together, lr=0.1).step()
    Muon([alone], lr=0.1).step()
    torch.testing.assert_close(together[1], alone, atol=1e-3, rtol=0)


def test_layers_that_end_a_network_are_named_as_they_are() -> None:
    """One that is renamed would be left to Muon, unseen."""
    networks = (build_student("tiny"), load_reference("default").unet)
    names = {
        part for network in networks for n, _ in network.named_parameters() for part in n.split(".")
    }
    assert names >= VALUES


def test_layers_that_end_a_network_and_vectors_are_adamws() -> None:
    """Each parameter moves as its own optimizer alone would move it."""
    torch.manual_seed(0)
    student = build_student("micro")
    named = dict(student.named_parameters())
    alone = {n: nn.Parameter(p.detach().clone()) for n, p in named.items()}
    together = OPTIMIZERS["muon"](named, Schedule(learning_rate=1e-3))
    own = [p for n, p in alone.items() if p.ndim == 4 and not re.search(LAST, n)]
    rest = [p for p in alone.values() if all(p is not q for q in own)]
    assert len(own) > 5 < len(rest)
    optimizers = (Muon(own, 1e-3), torch.optim.AdamW(rest, 1e-3, (0.9, 0.99), weight_decay=0.01))
    for _ in range(3):
        for name, parameter in named.items():
            parameter.grad = torch.randn_like(parameter)
            alone[name].grad = parameter.grad.clone()
        for optimizer in (together, *optimizers):
            optimizer.step()
    assert len(together.state) == len(named)
    for name, parameter in named.items():
        assert torch.equal(parameter, alone[name]), name


def test_one_rate_is_for_all_its_groups() -> None:
    named = dict(build_student("micro").named_parameters())
    optimizer = OPTIMIZERS["muon"](named, Schedule())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {n: p.detach().clone() for n, p in named.items()}
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in named.items())
