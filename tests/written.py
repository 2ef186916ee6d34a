"""What results.json says of the smallest run that there is, for tests that write one by hand."""

from loffta.evaluation.measure import summary


def whole_results(per_seed_of_metric, **more):
    """Results with all keys that must be there; `per_seed_of_metric` is {name: a value for each seed}."""
    return {
        "task": "classification",
        "head": "linear",
        "split": "test",
        "n": 9,
        "metrics": {
            name: summary([float(value) for value in values]) | {"ci95": [0, 1]}
            for name, values in per_seed_of_metric.items()
        },
        "features": [{"store": "net-00ff", "label": "net", "recipe_hash": "00ff", "taps": ["last"]}],
        "images": {"used": 9, "bad": 0},
    } | more
