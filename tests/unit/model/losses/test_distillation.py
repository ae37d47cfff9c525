"""Distillation against a plain float64 computation."""

import pytest
import torch
import torch.nn.functional as F

from tessera.model.losses import distillation_loss
from tessera.model.losses.distillation import DistillationLoss
from tessera.model.losses.ranks import Ranks


def features(seed: int, count: int = 7) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 12, generator=draw), dim=1)


def reference(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Both terms, pair by pair."""
    t, s = teacher.double(), student.double()
    count = len(s)
    total = ((s - t) ** 2).sum() / count
    for i in range(count):
        for j in range(count):
            if i != j:
                gap = (s[i] - s[j]).norm() - (t[i] - t[j]).norm()
                total = total + gap**2 / (count * (count - 1))
    return total


def test_value_and_gradient_are_the_reference() -> None:
    teacher, student = features(0), features(1).requires_grad_()
    loss = distillation_loss(teacher, F.normalize(student, dim=1))
    loss.backward()
    copy = student.detach().double().requires_grad_()
    expected = reference(teacher, F.normalize(copy, dim=1))
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(student.grad, copy.grad.float(), atol=1e-5, rtol=1e-4)  # pyright: ignore[reportOptionalMemberAccess]


def test_equal_features_lose_nothing_and_equal_rows_have_a_gradient() -> None:
    same = features(0)
    assert distillation_loss(same, same).item() < 1e-9
    repeated = same[[0, 0, 1]].requires_grad_()
    loss = distillation_loss(features(3, 3), repeated)
    loss.backward()
    assert repeated.grad is not None
    assert bool(repeated.grad.isfinite().all())
    assert bool(distillation_loss(same[:1], features(5)[:1]).isfinite())


def test_the_teacher_gets_no_gradient() -> None:
    teacher, student = features(0).requires_grad_(), features(1).requires_grad_()
    DistillationLoss(Ranks())(teacher, student, torch.tensor(1.0)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"\[7, 12\] and \[6, 12\]"):
        distillation_loss(features(0), features(1)[:6])
