"""One way to print a metric."""

import pytest

from loffta.tasks.figures import (
    best_first,
    end_of_scale,
    in_words,
    metric_head,
    metric_name,
    points,
    possible,
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


def test_errors_have_four_digits_that_count_whatever_their_unit():
    shown = [show("mae", value) for value in (31.415926, 0.00314159, 123456.7, 0, 3.2e9)]
    assert shown == ["31.42", "0.003142", "123457", "0.000", "3.200e+09"]
    assert show_spread("rmse", 31.4159, 0.02718) == "31.42 ± 0.03"
    assert show_interval("mae", (9.8765, 10.1234)) == "9.88\u201310.12"
    assert in_words("r2", {"mean": 0.8765, "std": None}) == "R\N{SUPERSCRIPT TWO} 0.876"
    assert show_interval("r2", (-0.25, 0.1)) == "-0.250 to 0.100"


def test_which_way_is_better_stands_with_the_figure():
    values = [0.3, 0.1, 0.2]
    assert sorted(values, key=lambda value: best_first("mae", value)) == [0.1, 0.2, 0.3]
    assert sorted(values, key=lambda value: best_first("r2", value)) == [0.3, 0.2, 0.1]
    assert (end_of_scale("log_loss"), end_of_scale("top1")) == ("lowest", "highest")
    assert (points("top1"), points("mae")) == (" points", "")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("top1", [0, 1]),
        ("kappa", [-1, 1]),
        ("ari", [-0.5, 1]),
        ("spearman", [-1, 1]),
        ("r2", [-3, 1]),
        ("rmse_pooled", [0, 7]),
        ("log_loss", [0, 7]),
        ("new_one", [0, 1]),
    ],
)
def test_an_interval_ends_where_the_figure_does(name, kept):
    assert possible(name, (-3.0, 7.0)) == kept
    assert possible(name, (0.25, 0.5)) == [0.25, 0.5]
