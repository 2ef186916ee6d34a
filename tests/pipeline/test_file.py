"""Pipeline files to command lines and back."""

from importlib.resources import as_file, files
from pathlib import Path

import pytest
from loffta_cli.main import cli

from loffta import augment
from loffta.config import BackboneConfig, ExtractConfig, OnlineConfig, TrainConfig, parse
from loffta.dataset.command_lines import extract_arguments, train_arguments
from loffta.errors import LofftaError, UsageError
from loffta.heads import HEADS
from loffta.pipeline.file import PipelineConfig, choose, overrule_recipes, read_pipeline
from loffta.pipeline.plan import make_pipeline

EXTRACTIONS = [
    {"source": "demo:digits", "cache": "some cache", "backbones": [{"name": "a"}]},
    {"source": "demo:digits", "cache": "c", "backbones": [{"name": "a", "image_px": 64}, {"name": "b"}]},
    {
        "source": "folder:my pictures",
        "cache": "c",
        "backbones": [
            {"name": "a", "weights": "random:0", "taps": "all", "image_px": 64},
            {"name": "b", "weights": "w.safetensors", "taps": "s.1,last", "image_px": 32},
        ],
        "kinds": ["mean"],
        "resize": "crop",
        "background": "#102030",
        "range": "0..4095",
        "interpolation": "bilinear",
        "pool": [2, 3],
        "views": 4,
        "view_seed": 5,
        "precision": "bf16",
        "dtype": "float32",
        "batch_size": 7,
        "device": "cpu",
        "unit_images": 8,
        "share": [1, 4],
        "splits": "train+val",
        "limit": 100,
        "gone": "drop",
        "targets": ["mask", "boxes"],
        "target_px": 64,
        "palette": "colours.csv",
        "max_bad_frac": 0.5,
        "ignore_space": True,
    },
    {"source": "s", "cache": "c", "backbones": [{"name": "a"}], "share": "auto", "help_others": False, "stagger": 9.5},
    {"source": "s", "cache": "c", "backbones": [{"name": "a"}], "share": [0, 2], "help_others": True},
]
TRAININGS = [
    {"cache": "some cache", "head": "linear"},
    {
        "cache": "c",
        "head": "combo",
        "features": ["a:last", "b-12345678:s.1,s.2"],
        "labels": "mine",
        "task": "classification",
        "train_on": "train+val",
        "validate_on": "val2",
        "holdout": 0.3,
        "test_on": "val",
        "seeds": 3,
        "data_seed": 4,
        "recipe": {"lr": 1e-05, "epochs": 12, "grid": None, "precision": "bf16"},
        "augment": {"preset": "loff-ta", "scale": [0.9, 1.1], "fill": "border", "mixup_alpha": None},
        "order": "windowed",
        "search": True,
        "select": 1,
        "checkpoint_s": 2.5,
        "stage_dir": "$NODE/x",
        "device": "cpu",
        "feed": "stream",
        "partial": True,
        "one_class": True,
        "protocol": "linear-fixed",
        "views": True,
    },
    {"cache": "c", "head": "loff", "augment": "trivial", "recipe": {"epochs": 3}},
    {"cache": "c", "head": "loff", "augment": {"hflip_p": 0.5}},
    {"cache": "c", "head": "linear", "folds": 5, "group": "patient"},
    {"cache": "c", "head": "linear", "shots": [1, 2, 16], "draws": 3},
    {
        "cache": "table:my data/images.csv",
        "head": "online-linear",
        "seeds": 2,
        "online": {
            "source": "table:my data/images.csv",
            "backbone": {"name": "a", "weights": "random:3", "taps": "final", "image_px": 64},
            "unfrozen": True,
            "pooling": "mean",
            "resize": "crop",
            "background": "black",
            "range": "-1..1",
            "augment": "none",
            "lr_backbone": 3e-06,
            "max_bad_frac": 0.25,
        },
    },
    {"cache": "folder:x", "head": "combo", "online": {"source": "folder:x", "backbone": {"name": "a", "taps": ""}}},
    {"cache": "folder:x", "head": "combo", "online": {"source": "folder:x", "backbone": {"name": "a"}}},
]


class Called(Exception):
    pass


@pytest.fixture
def config_of(monkeypatch):
    """What the command line really parses to: the command runs up to its one call of the library."""

    def call(arguments):
        found = []

        def note(config, *rest):
            found.append(config)
            raise Called

        monkeypatch.setattr("loffta.door.train.run", note)
        monkeypatch.setattr("loffta.extraction.extract.run", note)
        monkeypatch.setattr("loffta.machine.process.StopFlag.listen", lambda self: self)
        with pytest.raises(Called):
            cli.main(arguments, standalone_mode=False, obj={"verbose": False})
        return found[0]

    return call


@pytest.mark.parametrize("values", EXTRACTIONS)
def test_extract_arguments_come_back(values, config_of):
    config = parse(ExtractConfig, values, where="test")
    assert config_of(extract_arguments(config)) == config


@pytest.mark.parametrize("values", TRAININGS)
def test_train_arguments_come_back(values, config_of):
    config = parse(TrainConfig, values, where="test")
    back = config_of(train_arguments(config, Path("runs/x")))
    assert augment.resolve(back.augment) == augment.resolve(config.augment)
    assert back.model_copy(update={"augment": config.augment}) == config
    assert {key: type(value) for key, value in back.recipe.items()} == {
        key: type(value) for key, value in config.recipe.items()
    }


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (ExtractConfig, EXTRACTIONS[2:]),
        (TrainConfig, TRAININGS),
        (OnlineConfig, [TRAININGS[6]["online"]]),
        (BackboneConfig, [TRAININGS[6]["online"]["backbone"]]),
    ],
)
def test_the_round_trips_leave_no_field_out(model, values):
    """Every field has a value there that is not its default; a field that `*_arguments` forgets does not come back."""
    configs = [parse(model, given, where="test") for given in values]
    for name, field in model.model_fields.items():
        if name in ("images_digest", "backbone_hash"):  # no options: `train` puts them in
            continue
        assert name == "task" or any(getattr(config, name) != field.default for config in configs), name
        assert any(name in given for given in values), name


def test_demo_loads():
    with as_file(files("loffta_pipelines") / "demo.yaml") as path:
        config = read_pipeline(path)
        pipeline = make_pipeline(config, Path("out"), where=path)
        full = make_pipeline(overrule_recipes(config, {"epochs": 100}), Path("out"), where=path)
    names = ["linear-last-tap", "linear-all-taps", "combo-one-backbone", "combo-top2"]
    assert [stage.name for stage in pipeline.stages] == ["extract", "scan", *names]
    assert [stage.needs for stage in pipeline.stages] == [()] + [("extract",)] * 5
    assert pipeline.stages[1].command == "loffta scan out/cache --out out/scan.html"
    assert [stage.name for stage in pipeline.stages if stage.shows] == ["scan"]
    assert pipeline.reports == {Path("out/report.html"): [Path("out/runs") / name for name in names]}
    last = pipeline.stages[-1].command
    assert last == (
        "loffta train out/cache --head combo --out out/runs/combo-top2 --set epochs=12 --set grid=4 "
        "--seeds 3 --select 2"
    )
    assert full.stages[-1].command == last.replace("epochs=12", "epochs=100")
    assert full.stages[2] == pipeline.stages[2]  # a recipe that does not name its epochs stays
    for stage in pipeline.stages[2:]:
        config = TrainConfig(cache="c", head=stage.arguments[3])
        parse(HEADS[config.head].recipe, config.recipe, where="test")


def test_each_cache_has_a_scan_of_its_own(tmp_path):
    extract = {name: {"source": "demo:digits", "backbones": [{"name": name}]} for name in ("one", "two")}
    config = PipelineConfig(extract=extract, train={}, scan="layers.csv")
    stages = make_pipeline(config, tmp_path, where=tmp_path).stages
    scans = [stage for stage in stages if stage.arguments[0] == "scan"]
    assert [stage.arguments[-1] for stage in scans] == [str(tmp_path / f"layers-{n}.csv") for n in ("one", "two")]
    assert [stage.needs for stage in scans] == [("extract one",), ("extract two",)]
    assert {need for stage in scans for need in stage.needs} <= {stage.name for stage in stages}
    task = {"name": "t", "source": "demo:digits"}
    online = PipelineConfig(tasks=(task,), extract=extract, train={}, scan="layers.csv", test="online")
    with pytest.raises(UsageError, match="leave scan out"):
        make_pipeline(online, tmp_path, where=tmp_path)


TEMPLATE = """
tasks: sets.yaml
extract:
  small: {backbones: [{name: a, taps: all}, {name: b.c, taps: last}], kinds: [mean]}
  large: {backbones: [{name: a, image_px: 64}]}
train:
  one: {cache: large, head: linear, recipe: {lr: 0.1}}
  each: {cache: small, head: linear, features: ["{backbone}:last"], train_on: val}
"""
SETS = """
tasks:
  - {name: x, source: "vtab:{data}/x", train_on: train+val}
  - {name: y, source: "folder:{data}/y y", test_on: holdout, metric: kappa, group: g}
"""


@pytest.fixture
def template(tmp_path):
    (tmp_path / "p.yaml").write_text(TEMPLATE)
    (tmp_path / "sets.yaml").write_text(SETS)
    return tmp_path / "p.yaml"


def commands(path, **options):
    config = choose(read_pipeline(path), tasks=options.pop("tasks", ()), runs=options.pop("runs", ()))
    config = config.model_copy(update=options)
    pipeline = make_pipeline(config, Path("out"), where=path, data=Path("my data"))
    return pipeline, {stage.name: stage.command for stage in pipeline.stages}


def test_every_task_has_a_folder_of_its_own(template):
    pipeline, found = commands(template)
    assert found == {
        "x/extract small": "loffta extract 'vtab:my data/x' --cache out/x/small --backbone a --weights hub --taps all "
        "--backbone b.c --weights hub --taps last --kinds mean",
        "x/extract large": "loffta extract 'vtab:my data/x' --cache out/x/large --backbone a --weights hub --taps last "
        "--image-px 64",
        "x/one": "loffta train out/x/large --head linear --out out/x/runs/one --set lr=0.1 --train-on train+val",
        "x/each-a": "loffta train out/x/small --head linear --out out/x/runs/each-a --features a:last "
        "--train-on train+val",
        "x/each-b.c": "loffta train out/x/small --head linear --out out/x/runs/each-b.c --features b.c:last "
        "--train-on train+val",
        "y/extract small": "loffta extract 'folder:my data/y y' --cache out/y/small --backbone a --weights hub "
        "--taps all --backbone b.c --weights hub --taps last --kinds mean",
        "y/extract large": "loffta extract 'folder:my data/y y' --cache out/y/large --backbone a --weights hub "
        "--taps last --image-px 64",
        "y/one": "loffta train out/y/large --head linear --out out/y/runs/one --set lr=0.1 --test-on holdout",
        "y/each-a": "loffta train out/y/small --head linear --out out/y/runs/each-a --features a:last "
        "--train-on val --test-on holdout",
        "y/each-b.c": "loffta train out/y/small --head linear --out out/y/runs/each-b.c --features b.c:last "
        "--train-on val --test-on holdout",
    }
    needs = {stage.name: stage.needs for stage in pipeline.stages}
    assert needs["x/one"] == ("x/extract large",)
    assert needs["y/each-a"] == ("y/extract small",)
    assert [(r.task.name, r.name, r.backbone) for r in pipeline.runs[:3]] == [
        ("x", "one", None),
        ("x", "each", "a"),
        ("x", "each", "b.c"),
    ]
    assert list(pipeline.reports) == [Path("out/x/report.html"), Path("out/y/report.html")]


ONLINE = """  bare:
    head: online-linear
    train_on: val
    online: {backbone: {name: a, taps: final}, unfrozen: true}
optional: [bare]
"""


def test_optional_runs_are_made_where_they_are_named(template):
    template.write_text(TEMPLATE + ONLINE)
    _, found = commands(template, tasks=["y"])
    assert not [name for name in found if "bare" in name]
    pipeline, found = commands(template, tasks=["y"], runs=["bare"])
    assert found == {
        "y/bare": "loffta train --head online-linear --out out/y/runs/bare --train-on val --test-on holdout "
        "--online 'folder:my data/y y' --backbone a --taps final --unfrozen"
    }
    assert [stage.needs for stage in pipeline.stages] == [()]
    assert pipeline.reports == {Path("out/y/report.html"): [Path("out/y/runs/bare")]}
    assert pipeline.runs[0].results == Path("out/y/runs/bare/results-holdout.json")


def test_runs_without_a_cache_test_on_the_images_themselves(template):
    """Where the others' test images are not cached, nothing has to be made up for."""
    template.write_text(TEMPLATE + ONLINE)
    _, found = commands(template, tasks=["x"], runs=["bare", "one"], test="online")
    assert list(found) == ["x/extract", "x/one", "x/bare", "x/test"]
    assert "--test-on" not in found["x/bare"]
    assert found["x/test"] == "loffta evaluate out/x/runs/one --online 'vtab:my data/x' --split test"


def test_optional_runs_that_there_are_not(template):
    template.write_text(TEMPLATE + ONLINE.replace("[bare]", "[bear]"))
    with pytest.raises(UsageError, match=r"unknown run 'bear'(.|\n)*p.yaml: optional(.|\n)*did you mean bare"):
        read_pipeline(template)


def test_chosen_tasks_and_runs_bring_their_caches_alone(template):
    _, found = commands(template, tasks=["y"], runs=["one"])
    assert list(found) == ["y/extract", "y/one"]


def test_online_tests_cache_the_training_images_alone(template):
    """The runs of one cache share the pass over the test images."""
    pipeline, found = commands(template, tasks=["x"], test="online")
    assert found["x/extract large"].endswith("--image-px 64 --splits train+val")
    assert found["x/one"].endswith("--train-on train+val --test-on val")  # what there is
    source = "--online 'vtab:my data/x' --split test"
    assert found["x/test large"] == f"loffta evaluate out/x/runs/one {source}"
    assert found["x/test small"] == f"loffta evaluate out/x/runs/each-a out/x/runs/each-b.c {source}"
    last = next(stage for stage in pipeline.stages if stage.name == "x/test small")
    assert last.needs == ("x/each-a", "x/each-b.c")
    assert last.makes == (Path("out/x/runs/each-a/results.json"), Path("out/x/runs/each-b.c/results.json"))


def test_windows_slide_over_test_images_that_are_not_cached(template):
    template.write_text(TEMPLATE + "test: online\nwindows: 512/341\n")
    _, found = commands(template, tasks=["x"])
    assert found["x/test large"].endswith("--split test --windows 512/341")
    template.write_text(TEMPLATE + "test: online\nwindows: 512/9\n")
    with pytest.raises(UsageError, match="no side and stride"):
        commands(template, tasks=["x"])
    template.write_text(TEMPLATE + "windows: 512/341\n")
    with pytest.raises(UsageError, match=r"tests on cached features(.|\n)*windows(.|\n)*add `test: online`"):
        read_pipeline(template)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["z"]}, r"unknown task 'z'(.|\n)*--tasks(.|\n)*known: x, y"),
        ({"runs": ["eech"]}, r"unknown run 'eech'(.|\n)*did you mean each"),
        ({"train": {"one": {"head": "linear"}}}, r"'cache' is missing(.|\n)*train.one(.|\n)*give one of small, large"),
        ({"train": {"one": {"head": "linear", "cache": "lrge"}}}, r"unknown cache 'lrge'(.|\n)*did you mean large"),
        (
            {"train": {"one": {"head": "combo", "cache": "large", "online": {}}}},
            r"'cache' and 'online' exclude(.|\n)*one",
        ),
        ({"train": {"one": {"head": "combo", "online": {}}}}, r"'online.backbone' is missing(.|\n)*train.one"),
    ],
)
def test_what_a_pipeline_cannot_do(template, change, message):
    with pytest.raises(UsageError, match=message):
        commands(template, **change)


def test_data_is_asked_for(template):
    with pytest.raises(UsageError, match=r"vtab:\{data\}/x(.|\n)*--data FOLDER"):
        make_pipeline(read_pipeline(template), Path("out"), where=template)


EXTRACT = "extract: {c: {source: x, backbones: [{name: a}]}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extract: {c: {source: x, backbones: [{name: a}]}}", "'train' is missing"),
        ("extracts: {}\ntrain: {}", r"unknown key 'extracts'(.|\n)*did you mean extract"),
        ("extract: {}\ntrain: {}", "extract: "),
        ("extract: {../c: {source: x}}\ntrain: {}", r"extract.../c"),
        (
            "extract: {c: {source: x, backbones: [{name: a}]}}\ntrain: {}\ntasks: [{name: a/b, source: x}]",
            "tasks.0.name",
        ),
        (
            "extract: {c: {source: x, backbones: [{name: a, tap: all}]}}\ntrain: {}",
            r"'tap'(.|\n)*extract.c: backbones.0.tap",
        ),
        (
            "extract: {c: {source: x, backbones: [{name: a}]}}\ntrain: {one: {head: combo, sedes: 3}}",
            r"unknown key 'sedes'(.|\n)*train.one: sedes(.|\n)*did you mean seeds",
        ),
        (EXTRACT + "train: {one: {head: liner}}", r"unknown head 'liner'(.|\n)*train.one(.|\n)*did you mean linear"),
        (
            EXTRACT + "train: {one: {head: online-linear}}",  # it has no cache
            r"unknown head 'online-linear'(.|\n)*did you mean dense-linear or linear",
        ),
        (
            EXTRACT + "train: {one: {head: online-liner, online: {source: x, backbone: {name: a}}}}",
            r"unknown head 'online-liner'(.|\n)*did you mean online-linear",
        ),
        (
            EXTRACT + "train: {one: {head: linear, recipe: {epoch: 2}}}",
            r"unknown key 'epoch'(.|\n)*p.yaml: train.one.recipe: epoch(.|\n)*did you mean epochs",
        ),
        (
            EXTRACT + "train: {one: {head: online-linear, online: {source: x, backbone: {name: a}}, "
            "recipe: {width: 4}}}",
            r"unknown key 'width'(.|\n)*train.one.recipe: width",
        ),
        (EXTRACT + "train: {one: {head: linear, recipe: {epochs: 0}}}", r"epochs: (.|\n)*train.one.recipe"),
        (
            EXTRACT + "train: {one: {head: loff, augment: {noise: 0.1}}}",
            r"unknown key 'noise'(.|\n)*train.one.augment none: noise(.|\n)*did you mean noise_std",
        ),
    ],
)
def test_files_with_mistakes(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        make_pipeline(read_pipeline(path), tmp_path, where=path)


def test_what_overrules_a_recipe_is_checked_too(template):
    config = overrule_recipes(choose(read_pipeline(template), tasks=["x"]), {"lr": -1})
    with pytest.raises(UsageError, match=r"lr: input should be greater than 0(.|\n)*p.yaml: train.one.recipe"):
        make_pipeline(config, Path("out"), where=template, data=Path("data"))


def test_online_tests_are_of_tasks(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(EXTRACT + "train: {one: {head: linear}}\ntest: online")
    with pytest.raises(UsageError, match=r"this pipeline has none(.|\n)*p.yaml: test(.|\n)*test: cached"):
        make_pipeline(read_pipeline(path), tmp_path, where=path)


def test_a_list_of_tasks_that_is_not_there(template):
    (template.parent / "sets.yaml").unlink()
    with pytest.raises(LofftaError, match=r"sets.yaml"):
        read_pipeline(template)
