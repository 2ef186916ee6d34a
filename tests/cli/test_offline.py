"""A job whose weights are fetched asks no network for anything."""

import socket

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.cli.small import SMALL


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """test_vit's weights as `loffta fetch` leaves them; the hub's client would ask, for nothing calls it offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    file = folder / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    with torch.random.fork_rng():
        save_file(timm.create_model("test_vit").state_dict(), file)


@pytest.fixture
def no_network(monkeypatch):
    """Whatever would open a connection or ask for an address fails, and is remembered: an error may be swallowed."""
    asked = []

    def refuse(*words, **_):
        asked.append(words)
        raise OSError("the network is forbidden")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname", "gethostbyaddr", "getfqdn"):
        monkeypatch.setattr(socket, name, refuse)
    return asked


def test_no_command_of_a_job_asks_the_network(command, quiet_process, fetched, no_network, tmp_path):
    cache, run, cpu = tmp_path / "cache", tmp_path / "run", ["--device", "cpu"]
    net = ["--backbone", "test_vit", "--image-px", "32"]
    for words in (
        ["extract", "demo:digits", "--cache", cache, *net, *SMALL],
        ["extract", "demo:digits", "--cache", cache, *net, *SMALL],  # nothing to do
        ["scan", cache, "--partial", *cpu],
        ["train", cache, "--head", "linear", "--set", "epochs=2", "--partial", "--out", run, *cpu],
        ["evaluate", run, "--split", "train", *cpu],
        ["evaluate", run, "--online", "demo:digits", *cpu],
        ["report", run, "--out", tmp_path / "report.html"],
        ["verify", cache],
    ):
        code, _, err = command(*words)
        assert code == 0, err
    assert no_network == []


def test_that_test_would_notice(command, quiet_process, fetched, no_network, tmp_path):
    """Weights that are not fetched are asked for."""
    net = ["--backbone", "test_resnet", "--image-px", "32"]
    assert command("extract", "demo:digits", "--cache", tmp_path / "cache", *net, *SMALL)[0] == 1
    assert no_network
