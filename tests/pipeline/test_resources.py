"""What jobs ask for: three places, the nearest wins; and nothing that does not belong into a script."""

import pytest

from loffta.config import parse
from loffta.errors import UsageError
from loffta.pipeline.resources import Asked, Resources, Site, read_options, read_site, resolve


def test_the_nearest_word_wins():
    site = Site(partition="s", account="s", mem="1G", time="1", constraint="s", train=Asked(mem="2G", gres="s"))
    pipeline = Resources(account="p", time="2", train=Asked(time="3"))
    options = Asked(constraint="o")
    train = resolve("train", options, pipeline, site)
    assert train == Asked(partition="s", account="p", mem="2G", gres="s", time="3", constraint="o")
    assert resolve("scan", options, pipeline, site) == Asked(
        partition="s", account="p", mem="1G", time="2", constraint="o"
    )


def test_a_site_file(tmp_path, monkeypatch):
    monkeypatch.delenv("LOFFTA_HOME", raising=False)
    assert read_site() == Site()
    monkeypatch.setenv("LOFFTA_HOME", str(tmp_path))
    assert read_site() == Site()
    (tmp_path / "site.yaml").write_text("account: 1234\nmem: 4000\noptions: [--qos=long]\nsetup: |\n  module load x\n")
    assert read_site() == Site(account="1234", mem="4000", options=("--qos=long",), setup="module load x\n")
    (tmp_path / "site.yaml").write_text("partitoin: gpu")
    with pytest.raises(UsageError, match=r"unknown key 'partitoin'(.|\n)*site.yaml(.|\n)*did you mean partition"):
        read_site()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time": 14400}, "write it with quotes"),  # what YAML 1.1 makes of 4:00:00
        ({"time": "4h"}, "time"),
        ({"partition": "a b"}, "partition"),
        ({"partition": "a\n#SBATCH --uid=0"}, "partition"),
        ({"partition": "a\n"}, "partition"),
        ({"gres": "$(id)"}, "gres"),
        ({"mem": "4 GB"}, "mem"),
        ({"cpus": 0}, "cpus"),
        ({"setup": "rm -r x"}, "unknown key 'setup'"),  # shell is the site file's alone
        ({"options": ["--wrap=x"]}, "unknown key 'options'"),
        ({"shards": 0}, "shards"),
        ({"stage_dir": "$(id)"}, "stage_dir"),
        ({"stage_dir": "/tmp\n#SBATCH --uid=0"}, "stage_dir"),
        ({"stage_dir": "a b"}, "stage_dir"),
    ],
)
def test_what_a_pipeline_may_not_ask(values, message):
    with pytest.raises(UsageError, match=message):
        parse(Resources, values, where="p.yaml")


def test_options_of_the_command():
    assert read_options({"time": "5", "mem": None}) == Asked(time="5")
    with pytest.raises(UsageError, match=r"mem(.|\n)*loffta run"):
        read_options({"mem": "lots"})
