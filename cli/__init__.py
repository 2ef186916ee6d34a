"""The click commands of `loffta`. The folder is `cli/`, the package `loffta_cli`: a top-level `cli` would clash."""

if __name__ == "cli":
    raise ImportError(
        "`cli` is loffta's source folder, not its package, and cannot be imported under this name.\n"
        "  remedy: import loffta_cli; if that is not installed, run `pip install -e .` in the repository"
    )
