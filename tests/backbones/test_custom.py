"""Functions of users as backbones: the example of docs/weights.md as it stands, and one fault at a time."""

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from loffta.backbones import Backbone, TapTokens, WeightsSource, custom
from loffta.backbones.load import load_backbone, stamp_files
from loffta.backbones.weights import digest_state_dict
from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import LofftaError, UsageError
from loffta.extraction.extract import run
from loffta.images.geometry import PixelGeometry
from loffta.machine.process import StopFlag
from loffta.tokens import TokenSpec

DOCS = Path(__file__).parents[2] / "docs" / "weights.md"
PIXELS = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def my_nets(tmp_path, monkeypatch):
    """The documentation's example as a module in the current folder, forgotten afterwards."""
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert len(example.splitlines()) <= 20
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "my_nets.py").write_text(example)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("my_nets", None)


def example_weights(path):
    torch.manual_seed(1)
    net = nn.ModuleList([nn.Conv2d(3, 16, 8, stride=8), nn.Conv2d(16, 32, 3, padding=1)])
    torch.save(net.state_dict(), path)
    return net.eval().requires_grad_(False)


def test_the_documented_example(my_nets):
    net = example_weights(my_nets / "net.pth")
    name = "custom:my_nets:small_net"
    backbone = load_backbone(name, weights="net.pth")
    assert isinstance(backbone, Backbone)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    stem = net[0]((PIXELS / 255 - mean) / std)
    result = backbone(PIXELS, ["deep", "stem"])
    assert list(result) == ["deep", "stem"]
    torch.testing.assert_close(result["stem"].grid, stem.permute(0, 2, 3, 1))
    torch.testing.assert_close(result["deep"].grid, net[1](stem.relu()).permute(0, 2, 3, 1))
    assert result["deep"].prefix.shape == (3, 0, 32)
    assert backbone.specs == (TokenSpec("stem", 8, 8, 0, 16), TokenSpec("deep", 8, 8, 0, 32))
    assert (backbone.name, backbone.geometry.image_px) == (name, 64)
    file = (my_nets / "net.pth").stat()
    expected = WeightsSource(
        "net.pth", digest_state_dict(net.state_dict()), str(my_nets / "net.pth"), file.st_size, file.st_mtime_ns
    )
    assert backbone.weights == expected
    assert stamp_files(name, "net.pth") == {
        "path": expected.path,
        "size": expected.size,
        "mtime_ns": expected.mtime_ns,
        "adapter": None,
    }
    assert load_backbone(name, weights="net.pth", image_px=40).specs[0] == TokenSpec("stem", 5, 5, 0, 16)


def test_the_documented_example_is_extracted_and_found_again(my_nets, tmp_path):
    net = example_weights(my_nets / "net.pth")
    wanted = BackboneConfig(name="custom:my_nets:small_net", weights="net.pth", taps="deep")
    config = ExtractConfig(
        source="demo:digits", cache=tmp_path / "cache", backbones=(wanted,), limit=5, device="cpu", dtype="float32"
    )
    assert run(config, StopFlag()).units == 5  # images of a limit are spread over the set
    (my_nets / "my_nets.py").unlink()
    sys.modules.pop("my_nets")
    assert run(config, StopFlag()).units == 0  # the same command needs no module any more
    (metadata,) = (tmp_path / "cache" / "stores").glob("custom-my_nets-small_net-*/zarr.json")
    group = zarr.open_group(metadata.parent, mode="r")
    assert group.attrs["loffta"]["recipe"]["backbone"] == "custom:my_nets:small_net"
    assert group.attrs["loffta"]["recipe"]["weights"] == digest_state_dict(net.state_dict())
    assert group["grid-0"].shape[1:] == (1, 8, 8, 32)
    assert np.isfinite(group["grid-0"][:]).all((1, 2, 3, 4)).sum() == 5


def test_a_prefix_and_the_modules_mode():
    """Batch norm in training mode would make an image depend on the others: wrap_module sets the mode."""
    net = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()

    def tokens(images):
        grid = net(images).permute(0, 2, 3, 1)
        return {"x": (grid, grid.mean((1, 2))[:, None])}

    backbone = custom.wrap_module(net, tokens, image_px=64, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert backbone.specs == (TokenSpec("x", 4, 4, 1, 4),)
    grid = net(PIXELS / 255).permute(0, 2, 3, 1)
    got = backbone(PIXELS, ["x"])["x"]
    torch.testing.assert_close(got.grid, grid)
    torch.testing.assert_close(got.prefix[:, 0], grid.mean((1, 2)))
    assert not net.training
    alone = custom.wrap_module(net, tokens, image_px=64, registers_only=True)
    assert alone.specs == (TokenSpec("x", 4, 4, 1, 4, registers_only=True),)
    assert not any(p.requires_grad for p in net.parameters())


class Plain:
    """A backbone without a state dict, as a user may write it: mean colour per cell."""

    def __init__(self):
        self.name = "plain"
        self.weights = WeightsSource("", hashlib.blake2b(b"mine", digest_size=16).hexdigest())
        self.geometry = PixelGeometry(8)
        self.mean, self.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        self.specs = (TokenSpec("a", 2, 2, 1, 3),)

    def __call__(self, pixels, taps):
        grid = nn.functional.avg_pool2d(pixels.float(), 4).permute(0, 2, 3, 1)
        return {tap: self.alter(TapTokens(grid, grid[:, 0, :1])) for tap in taps}

    def alter(self, tokens):
        return tokens


@pytest.fixture
def load(monkeypatch):
    """Loads what a function returns, through a module of that name."""

    def load(backbone, weights="mine"):
        module = type(sys)("users_module")
        module.make = lambda weights, image_px, device: backbone
        monkeypatch.setitem(sys.modules, "users_module", module)
        return load_backbone("custom:users_module:make", weights=weights)

    return load


def test_own_protocol_keeps_its_own_digest(load):
    backbone = load(Plain())
    assert backbone.weights == WeightsSource("mine", hashlib.blake2b(b"mine", digest_size=16).hexdigest())
    assert backbone.name == "custom:users_module:make"
    pixels = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8)
    assert backbone(pixels, ["a"])["a"].grid[0, 1, 0].tolist() == pixels[0, :, 4:, :4].float().mean((1, 2)).tolist()


ATTRIBUTE_FAULTS = [
    ({"name": None}, "'name' is a NoneType, not a str"),
    ({"weights": "random"}, "'weights' is a str, not a WeightsSource"),
    ({"geometry": 8}, "'geometry' is a int, not a PixelGeometry"),
    ({"mean": [0.0, 0.0, 0.0]}, "'mean' is a list, not a tuple"),
    ({"std": (1.0, 1.0)}, "'std' is (1.0, 1.0), not three floats"),
    ({"mean": (0, 0, 0)}, "'mean' is (0, 0, 0), not three floats"),
    ({"specs": ()}, "'specs' is no tuple of at least one TokenSpec"),
    ({"specs": ("a",)}, "'specs' is no tuple of at least one TokenSpec"),
    ({"specs": (TokenSpec("a", 2, 2, 1, 3),) * 2}, "two taps have one name: a, a"),
    (
        {"specs": (TokenSpec("last", 2, 2, 1, 3),)},
        "'last' cannot name a tap (a set of taps has that name, or it has spaces or commas)",
    ),
    (
        {"specs": (TokenSpec("a,b", 2, 2, 1, 3),)},
        "'a,b' cannot name a tap (a set of taps has that name, or it has spaces or commas)",
    ),
    ({"specs": (TokenSpec("a", 2, 3, 1, 3),)}, "grid of a is [2, 2, 2, 3] for two images, its spec says [2, 2, 3, 3]"),
    ({"specs": (TokenSpec("a", 2, 2, 2, 3),)}, "prefix of a is [2, 1, 3] for two images, its spec says [2, 2, 3]"),
]


def check_fault(caught, fault):
    assert str(caught.value) == (
        f"the function returned no usable backbone: {fault}\n  where:  --backbone custom:users_module:make\n"
        "  remedy: see the protocol Backbone in loffta.backbones, or return loffta.backbones.custom.wrap_module(...)"
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("values", "fault"), ATTRIBUTE_FAULTS)
def test_attributes_of_another_kind(load, values, fault):
    backbone = Plain()
    vars(backbone).update(values)
    with pytest.raises(LofftaError) as caught:
        load(backbone)
    check_fault(caught, fault)


@pytest.mark.parametrize("name", ["name", "weights", "geometry", "mean", "std", "specs"])
def test_attributes_that_are_missing(load, name):
    backbone = Plain()
    delattr(backbone, name)
    with pytest.raises(LofftaError) as caught:
        load(backbone)
    check_fault(caught, f"a Plain without '{name}'")


@pytest.mark.parametrize(
    ("alter", "fault"),
    [
        (lambda t: None, "it gives no TapTokens for its tap a"),
        (lambda t: replace(t, grid=t.grid.double()), "grid of a is torch.float64, not torch.float32"),
        (lambda t: replace(t, prefix=t.prefix / 0), "prefix of a is not finite"),
        (lambda t: replace(t, grid=t.grid * torch.ones(1, requires_grad=True)),
         "grid of a carries a gradient; run the network under torch.no_grad()"),
        (lambda t: replace(t, grid=t.grid - t.grid.mean(0)),
         "grid of a depends on the other images of the batch, or on chance: is it in eval mode?"),
        (lambda t: replace(t, prefix=torch.rand_like(t.prefix)),
         "prefix of a depends on the other images of the batch, or on chance: is it in eval mode?"),
    ],
)  # fmt: skip
def test_tokens_that_are_not_as_promised(load, alter, fault):
    backbone = Plain()
    backbone.alter = alter
    with pytest.raises(LofftaError) as caught:
        load(backbone)
    check_fault(caught, fault)


def test_what_cannot_be_called(load):
    class Mute(Plain):
        __call__ = None

    with pytest.raises(LofftaError) as caught:
        load(Mute())
    check_fault(caught, "a Mute cannot be called")


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("custom:my_nets", "this names no function",
         "write custom:MODULE:FUNCTION, for example custom:nets:resnet"),
        ("custom::f", "this names no function", "write custom:MODULE:FUNCTION, for example custom:nets:resnet"),
        ("custom:no_such_nets:f", "there is no module 'no_such_nets'",
         "run in the folder that holds it, or add that folder to PYTHONPATH"),
        ("custom:torch.no_such:f", "there is no module 'torch.no_such'",
         "run in the folder that holds it, or add that folder to PYTHONPATH"),
        ("custom:my_nets:smal_net", "module 'my_nets' has no function 'smal_net'", "check its spelling"),
        ("custom:my_nets:__name__", "module 'my_nets' has no function '__name__'", "check its spelling"),
    ],
)  # fmt: skip
def test_names_that_lead_nowhere(my_nets, name, what, remedy):
    with pytest.raises(UsageError) as caught:
        load_backbone(name)
    assert str(caught.value) == f"{what}\n  where:  --backbone {name}\n  remedy: {remedy}"
    assert caught.value.exit_code == 2


def test_a_users_bug_keeps_its_traceback(my_nets):
    (my_nets / "my_nets.py").write_text("import no_such_thing\ndef f(weights, image_px, device): return 1 / 0\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        load_backbone("custom:my_nets:f")
    (my_nets / "my_nets.py").write_text("def f(weights, image_px, device): return 1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        load_backbone("custom:my_nets:f", weights="x.pth")
    assert caught.value.__notes__ == ["while --backbone custom:my_nets:f made its backbone from weights 'x.pth'"]


def test_the_current_folder_hides_no_installed_package(my_nets):
    (my_nets / "click.py").write_text("raise SystemExit('the wrong click')")
    code = (
        "import sys; sys.path.pop(0)\n"  # what `python -c` puts first; the installed command has no such entry
        "from loffta.backbones.load import load_backbone\n"
        "print(load_backbone('custom:my_nets:small_net').name)\nimport click\nprint('timm' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "custom:my_nets:small_net\nFalse\n"
