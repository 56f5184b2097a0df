"""Criteria by name."""

from collections.abc import Callable

import pytest
import torch

from nervure.errors import ArgumentError
from nervure.graph.types import Graph, Group
from nervure.scores import CRITERIA, Scores, random_scores, score
from nervure.scores import criteria as lookup

GRAPH = Graph((Group("a", 3, "channels", ()),))


def test_a_criterion_is_given_what_its_parameters_name() -> None:
    assert torch.equal(score("random", GRAPH, {}, seed=3)["a"], random_scores(GRAPH, seed=3)["a"])


def test_a_new_criterion_is_one_line_and_its_options_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(graph: Graph, *, value: float = 1.0) -> Scores:
        return {g.name: torch.full((g.size,), value) for g in graph.prunable}

    monkeypatch.setattr(lookup, "CRITERIA", {**CRITERIA, "constant": constant})
    assert score("constant", GRAPH, {}, value=2.0)["a"].tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(ArgumentError, match="constant has no option 'valeu'. Did you mean 'value'"):
        score("constant", GRAPH, {}, valeu=2.0)


def test_evidence_that_is_missing_and_names_that_are_unknown_are_said() -> None:
    with pytest.raises(ArgumentError, match="'magnitud' is unknown. Did you mean 'magnitude'"):
        score("magnitud", GRAPH, {})


def test_a_criterion_that_needs_evidence_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needy: Callable[..., Scores] = lambda graph, stats: {}  # noqa: E731
    monkeypatch.setattr(lookup, "CRITERIA", {"needy": needy})
    with pytest.raises(ArgumentError, match="needy needs evidence gathered on data: run measure"):
        score("needy", GRAPH, {})
