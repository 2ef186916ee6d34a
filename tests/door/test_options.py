"""The front door has the command line's options, under its names, with its defaults, and they come to the same."""

import importlib
import inspect

import pytest
from loffta_cli.main import COMMANDS, main

import loffta
from loffta.errors import UsageError

FUNCTIONS = ("extract", "label", "plan", "scan", "train", "evaluate", "predict", "report", "audit", "pack", "unpack")
OF_COMMANDS = {"json", "config"}  # a program reads no JSON and no YAML: it has objects and keyword arguments
OF_FUNCTIONS = {"progress", "stop"}  # a command always shows the one and always listens for the other

EXTRACT = {
    "cache": "c",
    "backbone": ["vit_tiny_patch16_224", "resnet10t"],
    "weights": ["random:0", "random:1"],
    "taps": "last4",
    "image_px": [64, "native"],
    "kinds": "grid,mean",
    "resize": "crop",
    "interpolation": "bilinear",
    "background": "black",
    "range": "clip",
    "image_root": "pictures",
    "follow_links": True,
    "pool": "2x2",
    "views": 2,
    "view_seed": 3,
    "precision": "bf16",
    "dtype": "int8",
    "batch_size": 16,
    "device": "cpu",
    "unit_images": 64,
    "shard": "1/4",
    "help_others": True,
    "stagger": 30.0,
    "splits": "train+test",
    "limit": 10,
    "gone": "keep",
    "targets": "mask,depth",
    "target_px": 64,
    "palette": "palette.csv",
    "max_bad_frac": 0.5,
    "ignore_space": True,
}
TRAIN = {
    "cache": "c",
    "head": "combo",
    "features": ["a:last", "b"],
    "labels": "mine",
    "task": "classification",
    "train_on": "train+val",
    "validate_on": "val2",
    "holdout": 0.1,
    "test_on": "other",
    "seeds": 3,
    "data_seed": 4,
    "set": {"epochs": 12, "augment.max_degrees": 5},
    "augment": "loff-ta",
    "search": True,
    "select": 2,
    "feed": "host",
    "order": "windowed",
    "checkpoint_s": 5.0,
    "stage_dir": "$NODE_DIR",
    "device": "cpu",
    "partial": True,
    "one_class": True,
    "protocol": "linear-fixed",
    "views": True,
    "folds": 4,
    "group": "patient",
    "shots": "1,2,5",
    "draws": 3,
}
ONLINE = {
    "online": "table.csv",
    "image_root": "pictures",
    "follow_links": True,
    "backbone": "resnet10t",
    "weights": "random:0",
    "image_px": 64,
    "taps": "last",
    "pooling": "mean",
    "resize": "crop",
    "background": "grey",
    "range": "0..255",
    "augment_images": "none",
    "unfrozen": True,
    "lr_backbone": 1e-4,
    "max_bad_frac": 0.5,
    "seeds": 2,
}
SCAN = {
    "features": ["a:last", "b"],
    "labels": "mine",
    "heads": "knn,logreg",
    "pooling": "cls,cls+mean",
    "train_on": "train+val",
    "validate_on": "val2",
    "holdout": 0.1,
    "test_on": "other",
    "folds": 3,
    "group": "patient",
    "shots": "1,5",
    "draws": 3,
    "k": 10,
    "temperature": 0.1,
    "standardise": True,
    "stage_dir": "$NODE_DIR",
    "data_seed": 4,
    "device": "cpu",
    "partial": True,
}


def parameters_of_command(name):
    """By the name that a user types; the option's own for `--shard I/N`, not click's."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module, "loffta_cli"), attribute)
    words = {parameter: max(parameter.opts, key=len).removeprefix("--") for parameter in command.params}
    return {word.replace("-", "_"): parameter for parameter, word in words.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_names_are_those_of_the_command(name):
    of_function = set(inspect.signature(getattr(loffta, name)).parameters)
    assert of_function - OF_FUNCTIONS == set(parameters_of_command(name)) - OF_COMMANDS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_its_types_and_says_what_every_error_is(name):
    function = getattr(loffta, name)
    signature = inspect.signature(function)
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())
    assert "Raises:" in function.__doc__
    assert ">>>" in function.__doc__


class Called(Exception):
    """What a driver was given."""


def words_of(options):
    """As typed."""
    typed = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            typed.append(option)
        elif isinstance(value, dict):
            typed += [word for key, one in value.items() for word in (option, f"{key}={one}")]
        else:
            typed += [word for one in (value if isinstance(value, list) else [value]) for word in (option, str(one))]
    return typed


def given_to(drivers, monkeypatch, call):
    """The configuration that the first of some drivers is called with."""

    def note(config, *rest, **more):
        raise Called(config)

    for driver in drivers:
        monkeypatch.setattr(driver, note)
    with pytest.raises(Called) as caught:
        call()
    return caught.value.args[0]


@pytest.mark.parametrize("name", ["extract", "plan"])
@pytest.mark.parametrize("options", [{"cache": "c", "backbone": "resnet10t"}, EXTRACT])
def test_extract_and_plan_come_to_the_same_configuration(name, options, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.csv").touch()
    function = getattr(loffta, name)
    drivers = f"loffta.extraction.{name}.run", f"loffta.door.{name}.run"
    typed = given_to(drivers, monkeypatch, lambda: main([name, "images.csv", *words_of(options)]))
    called = given_to(drivers, monkeypatch, lambda: function("images.csv", **options))
    assert called == typed
    if options is EXTRACT:
        assert differ_from_defaults(typed) >= set(type(typed).model_fields) - {"share"}
        assert typed.share == (1, 4)


def differ_from_defaults(config):
    return {name for name, field in type(config).model_fields.items() if getattr(config, name) != field.default}


@pytest.mark.parametrize("options", [{"cache": "c", "head": "linear"}, TRAIN, ONLINE])
def test_train_comes_to_the_same_configuration(options, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").touch()
    drivers = "loffta.online.train.train_online", "loffta.training.train.train"
    monkeypatch.setattr("loffta.images.sources.open_source", lambda spec: spec)
    typed = [word for word in words_of(options) if word != "--cache"]  # the first word
    typed = given_to(drivers, monkeypatch, lambda: main(["train", *typed, "--out", "out"]))
    called = given_to(drivers, monkeypatch, lambda: loffta.train(**options, out="out"))
    assert called == typed
    if options is TRAIN:
        assert differ_from_defaults(typed) >= set(type(typed).model_fields) - {"online"}
    if options is ONLINE:
        assert differ_from_defaults(typed.online) >= set(type(typed.online).model_fields) - {
            "images_digest",
            "backbone_hash",
        }


@pytest.mark.parametrize("options", [{}, SCAN])
def test_scan_comes_to_the_same_configuration(options, monkeypatch):
    drivers = ["loffta.door.scan.measure"]
    typed = given_to(drivers, monkeypatch, lambda: main(["scan", "c", *words_of(options)]))
    called = given_to(drivers, monkeypatch, lambda: loffta.scan("c", **options))
    listed = {"heads": ["knn", "logreg"], "pooling": ["cls", "cls+mean"], "shots": [1, 5]}
    as_lists = given_to(drivers, monkeypatch, lambda: loffta.scan("c", **(options | listed if options else {})))
    assert called == typed == as_lists
    assert differ_from_defaults(typed) >= (set(type(typed).model_fields) if options else {"cache"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "c", "head": "linear", "weights": "hub"}, "--weights is for training without a cache"),
        ({"cache": "c", "online": "demo:digits", "backbone": "x"}, "exclude each other"),
        ({"online": "demo:digits"}, "remedy: add --backbone"),
        ({"online": "demo:digits", "backbone": "x", "lr_backbone": 1e-5}, "remedy: add --unfrozen"),
        ({"cache": "c", "head": "linear", "taps": "last"}, "--taps is for training"),
        ({"head": "linear"}, "give cache or online"),
        ({"cache": "c"}, "'head' is missing"),
    ],
)
def test_train_refuses_what_the_command_refuses(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        loffta.train(**options, out=tmp_path / "run")


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"max_bad_frac": 0.5}, {"follow_links": True}])
def test_evaluate_refuses_options_of_images_without_them(options):
    with pytest.raises(UsageError, match="is for --online SOURCE"):
        loffta.evaluate("run", **options)
