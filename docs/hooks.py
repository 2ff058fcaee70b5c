"""What MkDocs adds to this folder: CONTRIBUTING, the reference of the command line, and pictures of measurements."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: Any) -> None:
    """Add the files that live elsewhere in the repository."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    text = re.sub(r"\[([^]]+)\]\(bench/README\.md\)", r"`\1`", text)  # not a page of the site
    files.append(File.generated(config, "contributing.md", content=text))
    for name in re.findall(r"\]\(\.\./(bench/results/\S+)\)", (ROOT / "docs" / "benchmarks.md").read_text()):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))


def on_page_markdown(markdown: str, page: Any, **unused: Any) -> str:
    """Fill in the commands, and point to the pictures that ``on_files`` adds."""
    if page.file.src_uri == "command-line.md":
        return markdown.replace("<!-- commands -->", commands())
    return (
        markdown.replace("](../bench/results/", "](bench/results/")
        if page.file.src_uri == "benchmarks.md"
        else markdown
    )


def commands() -> str:
    """The reference of every command, as typer writes it, two headings below the page's own."""
    typer = [sys.executable, "-m", "typer", "hrm.cli", "utils", "docs", "--name", "hrm"]
    text = subprocess.run(typer, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout
    return re.sub(r"^#", "##", text.partition("\n## ")[2].join(("## ", "")), flags=re.MULTILINE)
