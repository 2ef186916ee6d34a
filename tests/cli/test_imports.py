"""What each command imports, by names: the libraries that others need stay out, whatever is installed."""

import json
import subprocess
import sys

import numpy as np
import pytest
from loffta_cli.main import main
from PIL import Image

RUN = """
import json, sys
from loffta_cli.main import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print(json.dumps([code, sorted(sys.modules)]))
"""
NEVER = {
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow.compute",
    "pyarrow.dataset",
    "kornia",
    "zarr",
    "h5py",
    "datasets",
    "peft",
}
NETWORKS = {"timm", "torchvision", "huggingface_hub", "safetensors.numpy"}
TORCH = {"torch", "jaxtyping", "sympy"}
TABLES = {"numpy", "pyarrow", "psutil", "yaml", "pydantic", "PIL"}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Modules that are there after each command; a later one has those of the commands before it."""
    root = tmp_path_factory.mktemp("imports")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i, name in enumerate("ab" * 4):
            path = root / "images" / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    labels = root / "labels.csv"
    labels.write_text("image,label,split\ntrain/a/0.png,b,train\ntest/b/1.png,a,\n")
    cache, run = str(root / "cache"), str(root / "run")
    options = ["--image-px", "32", "--device", "cpu"]
    extract = ["extract", str(root / "images"), "--cache", cache, "--backbone", "test_vit", "--weights", "random:0"]
    train = ["train", cache, "--head", "linear", "--set", "epochs=1", "--device", "cpu", "--out"]
    assert main([*extract, *options]) == 0
    assert main([*train, run]) == 0
    commands = {
        "--help": ["--help"],
        "models": ["models", "dinov2"],
        "info": ["info", cache],
        "drop": ["drop", cache, "nothing"],
        "label": ["label", cache, str(labels)],
        "scan": ["scan", cache, "--heads", "knn,ncm,ridge,logreg", "--device", "cpu"],
        "audit": ["audit", cache, "--device", "cpu", "--out", str(root / "a.html"), "--fix", str(root / "f.parquet")],
        "evaluate": ["evaluate", run, "--split", "test", "--device", "cpu"],
        "train": [*train, str(root / "other")],
        "predict": ["predict", run, str(path), "--out", str(root / "p.parquet"), "--device", "cpu"],
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(list(commands.values()))], capture_output=True, text=True, check=True
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [code for code, _ in told] == [0, 0, 0, 2, 0, 0, 0, 0, 0, 0], done.stderr
    return {name: set(modules) for name, (_, modules) in zip(commands, told, strict=True)}


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        ("--help", NEVER | NETWORKS | TORCH | TABLES),
        ("models", NEVER | NETWORKS | TORCH | TABLES),
        ("info", NEVER | NETWORKS | TORCH | {"pydantic", "yaml", "PIL"}),
        ("drop", NEVER | NETWORKS | TORCH | {"pydantic", "yaml", "PIL"}),
        ("label", NEVER | NETWORKS | TORCH | {"pydantic", "yaml", "PIL"}),
        ("scan", NEVER | NETWORKS | {"torch._dynamo", "sympy"}),
        ("audit", NEVER | NETWORKS | {"torch._dynamo", "sympy"}),
        ("evaluate", NEVER | NETWORKS | {"torch._dynamo", "sympy"}),
        ("train", NEVER | NETWORKS),
        ("predict", NEVER | {"torch.utils.flop_counter"}),
    ],
)
def test_a_command_imports_what_it_uses(imported, command, absent):
    assert imported[command] & absent == set()
