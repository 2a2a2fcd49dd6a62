"""The hooks of the docs' site: pages that are generated from the code, and pages that lie outside docs/.

`mkdocs.yml` names this file. Options and claims are generated, so that no page can disagree with the code.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cvit.analysis.claims import all_claims  # noqa: E402
from cvit.analysis.verdicts_text import rules  # noqa: E402
from cvit.engine.loading import load_sweeps  # noqa: E402
from cvit.engine.scripts import sweep_scripts  # noqa: E402
from cvit.engine.terminal.cli import application  # noqa: E402

ELSEWHERE = {
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "explanation/engine.md": "cvit/engine/README.md",
}
"""Pages of the site whose files lie outside docs/, with their paths in the repository."""
LINK = re.compile(r"(?<!\\)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
PAGE_NAME = re.compile(r"(?<![\[`])`(?P<path>[\w/.-]+\.md)`(?![`\]])")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not lie in docs/."""
    for page, path in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in what is generated. Points links, and names of pages in backticks, at the pages of the site: they are
    written for the repository."""
    for comment, generated in GENERATED.items():
        if comment in markdown:
            markdown = markdown.replace(comment, generated())
    return with_site_links(markdown, page.file.src_uri, {file.src_uri for file in files})


def with_site_links(markdown: str, page: str, pages: set[str]) -> str:
    """The text of a page with its relative links turned from paths of the repository into those of the site. A link to
    a file that the site does not have becomes its text; one to no file at all stays, and `--strict` reports it."""
    folder = posixpath.dirname(ELSEWHERE.get(page, f"docs/{page}"))
    sites = {source: site for site, source in ELSEWHERE.items()} | {f"docs/{site}": site for site in pages}

    def site_path(path: str) -> str | None:
        return posixpath.relpath(sites[path], posixpath.dirname(page) or ".") if path in sites else None

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match["target"]))
        if (target := site_path(path)) is not None:
            return f"[{match['text']}]({target}{match['anchor'] or ''})"
        return match["text"] if (ROOT / path).exists() else match[0]

    def name(match: re.Match[str]) -> str:
        return match[0] if (target := site_path(match["path"])) is None else f"[{match[0]}]({target})"

    parts = FENCE.split(markdown)
    parts[::2] = [PAGE_NAME.sub(name, LINK.sub(link, part)) for part in parts[::2]]
    return "".join(parts)


def options() -> str:
    """Every option of every sweep, as the command line has it."""
    lines = []
    for name, path in sweep_scripts().items():
        sweeps = load_sweeps(path)
        about = "\n\n".join(sweep.question for sweep in sweeps)
        text = application(sweeps, path.name, about).generate_docs(usage_name=f"python sweeps/{path.name}")
        lines += [f"## {name}", *text.splitlines()[1:], ""]
    return "\n".join(lines)


def claims() -> str:
    """Every claim, with the sweep that tests it, and the rules by which they are judged."""
    lines = [
        "| sweep | claim | statement | unit |",
        "|---|---|---|---|",
        *(f"| {sweep} | `{claim.name}` | {claim.statement}. | {claim.unit} |" for sweep, claim in all_claims()),
        "",
        "## How they are judged",
        "",
        "\n\n".join(rules()),
    ]
    return "\n".join(lines)


GENERATED = {"<!-- generated: options -->": options, "<!-- generated: claims -->": claims}
"""The functions that make the text in place of these comments."""
