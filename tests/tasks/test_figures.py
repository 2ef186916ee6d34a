"""One way to print a metric."""

import pytest

from loffta.tasks.figures import (
    in_words,
    metric_head,
    metric_name,
    show,
    show_difference,
    show_interval,
    show_spread,
)


def test_shares_are_percent_with_one_decimal_and_log_loss_is_not():
    assert (show("top1", 0.67669), show("kappa", -0.25), show("log_loss", 0.67669)) == ("67.7", "-25.0", "0.677")
    assert show_spread("top1", 0.9302, 0.0071) == "93.0 ± 0.7"
    assert show_spread("top1", 0.9302, None) == "93.0"
    assert show_interval("roc_auc", (0.91, 0.947)) == "91.0\u201394.7"
    assert in_words("top1", {"mean": 0.9302, "std": 0.0071}) == "top-1 93.0 ± 0.7 %"
    assert in_words("log_loss", {"mean": 0.5, "std": None}) == "log-loss 0.500"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.12, "+12.0"), (-0.004, "\N{MINUS SIGN}0.4"), (0.0, "0.0"), (-0.0004, "0.0")]
)
def test_a_difference_has_its_sign(value, shown):
    assert show_difference("top1", value) == shown


def test_names_in_words():
    assert metric_name("roc_auc", first=True) == "ROC AUC"
    assert metric_head("balanced_accuracy", first=True) == "Balanced accuracy %"
    assert (metric_head("log_loss"), metric_name("new_one")) == ("log-loss", "new_one")
