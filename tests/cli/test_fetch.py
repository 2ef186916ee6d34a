"""Fetch on a login node, extract on an offline node: real processes, against a hub that runs here."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import timm
import torch
from loffta_cli.main import main
from safetensors.torch import save

from loffta.backbones import fetch as fetch_module
from loffta.backbones.weights import digest_state_dict

MODEL = "test_vit.r160_in1k"
REPLIES = {  # repository -> what the hub says about it
    "timm/test_vit2.r160_in1k": (403, "GatedRepo"),
    "timm/test_vit3.r160_in1k": (404, "RepoNotFound"),
    "timm/test_convnext.r160_in1k": (404, "EntryNotFound"),
    "timm/test_resnet.r160_in1k": (500, ""),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# runs commands one after the other in one process, as importing torch and timm takes most of the time
RUN = """
import contextlib, io, json, sys
from loffta_cli.main import main
results = []
for args in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return timm.create_model(MODEL).state_dict()


@pytest.fixture
def hub(state):
    """A server that speaks as much of the hub as its client needs for one file; (address, requests, stop)."""
    content, requests = save(state), []

    class Hub(BaseHTTPRequestHandler):
        def answer(self):
            requests.append(f"{self.command} {self.path}")
            repo, _, file = self.path[1:].partition("/resolve/main/")
            status, reason = (200, "") if repo == f"timm/{MODEL}" else REPLIES.get(repo, (404, ""))
            self.send_response(status)
            self.send_header("X-Repo-Commit", COMMIT)
            if reason:
                self.send_header("X-Error-Code", reason)
            body = content if status == 200 and file == "model.safetensors" else b""
            self.send_header("ETag", '"an-etag"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    yield f"http://127.0.0.1:{server.server_port}", requests, stop
    if thread.is_alive():
        stop()


def run(commands, home, **environment):
    """Exit code, stdout and stderr of each command, all in one new process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        env={**kept, "HF_HOME": str(home), "HF_TOKEN": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_fetch_on_a_login_node_and_extract_on_an_offline_node(hub, state, tmp_path):
    address, requests, stop = hub
    home = tmp_path / "hugging face"
    fetch = [["fetch", MODEL, "--json"], ["fetch", MODEL], *(["fetch", repo[5:]] for repo in REPLIES)]
    first, second, gated, nowhere, no_file, broken = run(fetch, home, HF_ENDPOINT=address)

    path = home / "hub" / f"models--timm--{MODEL}" / "snapshots" / COMMIT / "model.safetensors"
    n_bytes = len(save(state))
    assert path.read_bytes() == save(state)
    code, out, _ = first
    assert code == 0
    assert out.splitlines()[:2] == [
        f"{MODEL}: downloaded, {n_bytes / 1e6:.1f} MB, {path}",
        f"on the compute node: export HF_HOME='{home}'",
    ]
    assert json.loads(out.splitlines()[2]) == {
        "fetched": [{"timm_id": MODEL, "path": str(path), "n_bytes": n_bytes, "downloaded": True}],
        "environment": f"HF_HOME='{home}'",
    }
    assert second[:2] == [0, out.replace("downloaded,", "already there,").rpartition("{")[0].rpartition("{")[0]]
    asked = [line for line in requests if MODEL in line]
    assert set(asked) == {f"{method} /timm/{MODEL}/resolve/main/model.safetensors" for method in ("HEAD", "GET")}
    assert sum(line.startswith("GET") for line in asked) == 1

    or_else = "or get the file another way and pass --weights PATH to extract"
    for result, repo, remedy in [
        (gated, "test_vit2", "accept the licence at {page}, log in with `hf auth login` and run this again, "),
        (nowhere, "test_vit3", "look whether {page} is there; if it is private, log in with `hf auth login`; "),
        (no_file, "test_convnext", "see at {page} which files there are: loffta loads no pickles; "),
        (broken, "test_resnet", "run this on a machine with a network and enough disk, "),
    ]:
        code, out, err = result
        assert (code, out) == (1, "")
        assert f"error: cannot fetch the weights of {repo}.r160_in1k: " in err
        assert f"\n  where:  hub file timm/{repo}.r160_in1k/model.safetensors\n" in err
        page = f"{address}/timm/{repo}.r160_in1k"
        assert err.endswith(f"\n  remedy: {remedy.format(page=page)}{or_else}\n")

    stop()
    n_requests = len(requests)
    extract = ["extract", "demo:digits", "--cache", str(tmp_path / "cache"), "--weights", "hub", "--limit", "16"]
    extract += ["--image-px", "32", "--device", "cpu", "--json", "--backbone"]
    again, other, lost, extracted = run(
        [["fetch", MODEL], ["fetch", "clip-b16"], [*extract, "test_resnet.r160_in1k"], [*extract, MODEL]],
        home,
        HF_HUB_OFFLINE="1",
    )
    assert again[:2] == second[:2]
    assert other[0] == 1
    assert f"unset HF_HUB_OFFLINE where there is a network, {or_else}\n" in other[2]
    assert "vit_base_patch16_clip_quickgelu_224.openai: " in other[2]  # the short name is resolved
    assert lost[0] == 1
    assert "remedy: fetch them where there is a network: loffta fetch " in lost[2]
    assert len(requests) == n_requests

    code, out, err = extracted
    assert code == 0, err
    report = json.loads(out.splitlines()[-1])
    assert report["images"] == 16
    (metadata,) = (tmp_path / "cache" / "stores").glob(f"{MODEL}-*/zarr.json")
    recipe = json.loads(metadata.read_text())["attributes"]["loffta"]["recipe"]
    assert digest_state_dict(state) in json.dumps(recipe)
    assert str(path) in metadata.read_text()


def test_a_misspelt_name_downloads_nothing(monkeypatch, capsys):
    monkeypatch.setattr(fetch_module, "fetch", lambda name: pytest.fail(f"{name} was fetched"))
    assert main(["fetch", "dinov2-b", "dinov2-bb"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "error: unknown backbone 'dinov2-bb'\n  where:  loffta fetch\n  remedy: did you mean dinov2-b "
    )


def test_a_name_is_needed(capsys):
    assert main(["fetch"]) == 2
    assert "Missing argument 'BACKBONE...'" in capsys.readouterr().err
