"""The in-batch softmax against numpy, and its gradient against the formula."""

import numpy as np
import pytest
import torch

from minisearch.objectives import gather_rows, in_batch_softmax, same_items

B, N, D, TEMPERATURE = 5, 3, 4, 0.7


@pytest.fixture
def vectors():
    random = torch.Generator().manual_seed(0)
    return [torch.randn(n, D, generator=random, dtype=torch.float64) for n in (B, B, N)]


def by_hand(queries, items, same=None):
    """Loss and probabilities of every column, in numpy."""
    logits = queries @ items.T / TEMPERATURE
    if same is not None:
        logits[same] = -np.inf
    odds = np.exp(logits)
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    return -np.log(np.diag(probabilities)).mean(), probabilities


def test_equals_numpy_with_and_without_extra_negatives(vectors):
    queries, items, extra = vectors
    expected, _ = by_hand(queries.numpy(), items.numpy())
    assert in_batch_softmax(queries, items, temperature=TEMPERATURE).item() == pytest.approx(
        expected
    )
    expected, _ = by_hand(queries.numpy(), torch.cat([items, extra]).numpy())
    found = in_batch_softmax(queries, items, extra, TEMPERATURE)
    assert found.item() == pytest.approx(expected)


def test_gradient_is_probability_minus_truth(vectors):
    queries, items, extra = (v.requires_grad_() for v in vectors)
    in_batch_softmax(queries, items, extra, TEMPERATURE).backward()
    columns = torch.cat([items, extra]).detach().numpy()
    _, probabilities = by_hand(queries.detach().numpy(), columns)
    error = (probabilities - np.eye(B, B + N)) / (B * TEMPERATURE)
    np.testing.assert_allclose(queries.grad, error @ columns)
    gradient = error.T @ queries.detach().numpy()
    np.testing.assert_allclose(torch.cat([items.grad, extra.grad]), gradient)


def test_same_items_marks_repeats_but_never_the_positive():
    found = same_items(torch.tensor([7, 8, 7]), torch.tensor([8, 9]))
    assert found.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]
    assert same_items(torch.tensor([1, 2])).any().item() is False


def test_a_repeated_positive_is_not_pushed_away(vectors):
    queries, items, extra = vectors
    items = items[[0, 1, 0, 3, 4]].requires_grad_()  # rows 0 and 2 share their item
    same = same_items(torch.tensor([0, 1, 0, 3, 4]), torch.tensor([10, 11, 12]))
    loss = in_batch_softmax(queries, items, extra, TEMPERATURE, same)
    expected, _ = by_hand(queries.numpy(), torch.cat([items.detach(), extra]).numpy(), same.numpy())
    assert loss.item() == pytest.approx(expected)
    assert loss < in_batch_softmax(queries, items, extra, TEMPERATURE)
    # query 0 alone: column 2, its own item once more, must get no gradient from it
    logits = (queries[:1] @ torch.cat([items, extra]).T).masked_fill(same[:1], float("-inf"))
    (gradient,) = torch.autograd.grad(torch.logsumexp(logits, 1).sum(), items)
    assert gradient[2].abs().max() == 0
    assert gradient[1].abs().max() > 0


def test_gather_rows_on_one_process_is_the_rows(vectors):
    assert gather_rows(vectors[0]) is vectors[0]
