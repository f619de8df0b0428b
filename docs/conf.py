"""Settings of the documentation (Sphinx)."""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.builders.text import TextBuilder

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
sys.path.insert(0, str(ROOT))

from docs import api_pages, llms  # noqa: E402  # the path comes first
from trio_ckpt._runs import code, lifecycle, open_collection  # noqa: E402

# What they import for type checkers alone, so that signatures show the values of a `Literal`.
for module in (lifecycle, open_collection):
    module.Code, module.OnCodeChange = code.Code, code.OnCodeChange

project = "trio_ckpt"
author = PROJECT["authors"][0]["name"]
copyright = author
version = release = PROJECT["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = False  # docs/api_pages.py writes the pages
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
autodoc_typehints = "signature"
napoleon_use_ivar = True  # else an attribute that is also a property has two entries
napoleon_use_rtype = False

# No other project's inventory is fetched, so that the pages build without a network: a name
# of another library is text, not a link.  Names of ours that are not public are text, too.
# Several attributes on one line ("confirmed, left: ...") are taken for names of other classes.
suppress_warnings = ["ref.python"]
nitpick_ignore_regex = [
    ("py:class", r"Abstract(Async)?ContextManager"),
    (r"py:.*", r"(asyncio|collections|contextlib|datetime|enum|os|pathlib|ssl|typing|types)\..*"),
    (r"py:.*", r"(attrs|msgspec|trio)\..*"),
    (r"py:.*", r"(trio_ckpt\.)?(\w+\.)*_\w+(\.\w+)*"),
    (r"py:exc", r".*, .*"),  # several errors of one reason
    (r"py:class", r"(trio_ckpt\.abc\.)?[A-Z]|Ts|Any\w*|Items|Number|Path|StreamKey|Validate"),
    # For type checkers alone:
    (r"py:class", r"JobArguments|Lag|Observer|Plain|Tracer|TracerProvider"),
    (r"py:class", r"[a-z]\w*"),  # the second and third of several attributes on one line
]

html_theme = "furo"
html_title = f"{project} {release}"

OVERVIEW = "reference/api"
PUBLIC = ("abc", "outputs", "stores", "testing")
SAYS = re.compile(r"(Cancellation|Durability): (.*)")


def set_apart(_app: Any, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Make paragraphs of what a docstring says of cancellation and durability."""
    if what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)  # napoleon takes it for a type
    done: list[str] = []
    is_inside = False
    for line in lines:
        match = SAYS.fullmatch(line)
        if match:
            done += ["", f"**{match[1]}:** {match[2]}"]
        else:
            is_inside = is_inside and line.startswith(" ")
            done.append(line.strip() if is_inside else line)
        is_inside = is_inside or match is not None
    lines[:] = done


def show_as_context_manager(
    _app: Any, _what: str, _name: str, obj: Any, _options: Any, signature: str, returns: str | None
) -> tuple[str, str] | None:
    """Say of what is used in ``async with`` that it is, not that it is a generator inside."""
    inner = re.fullmatch(r".*Async(?:Generator|Iterator)\[(.*?)(?:, None)?\]", returns or "")
    if inner is None or not inspect.isasyncgenfunction(inspect.unwrap(obj)):
        return None
    return signature, f"~contextlib.AbstractAsyncContextManager[{inner[1]}]"


def find_public(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Lead a reference to ``trio_ckpt._room.CheckpointToken`` to ``trio_ckpt.CheckpointToken``."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not re.match(r"trio_ckpt\.(\w+\.)?_", target):
        return None
    last = target.rsplit(".", 1)[-1]
    for module in ("trio_ckpt", *(f"trio_ckpt.{name}" for name in PUBLIC)):
        found = env.domains["py"].resolve_xref(
            env, node["refdoc"], app.builder, node["reftype"], f"{module}.{last}", node, content
        )
        if found is not None:
            return found
    return None


def write_api_pages(app: Any) -> None:
    """Write a page for each public name."""
    api_pages.write_pages(Path(app.srcdir) / "reference")


def read_overview(_app: Any, docname: str, source: list[str]) -> None:
    """Show names that lead to their pages where `api.md` has the directives."""
    if docname == OVERVIEW:
        source[0] = api_pages.overview(source[0])


def write_markdown(app: Any, error: Exception | None) -> None:
    """Write `llms.txt`, and each page as Markdown beside its HTML."""
    if error is not None or app.builder.format != "html":
        return
    pages = [page_of(app.env, name) for name in sorted(app.env.found_docs)]
    app.outdir.joinpath("llms.txt").write_text(llms.index(project, pages), encoding="utf-8")
    summaries = {page.name.rpartition("/")[2]: page.summary for page in pages}
    as_text: Any = TextBuilder(app, app.env)
    as_text.secnumbers = {}
    for page in pages:
        source = app.env.doc2path(page.name)
        if source.suffix == ".md":
            text = source.read_text(encoding="utf-8")
        else:
            tree = app.env.get_doctree(page.name)
            translator = as_text.create_translator(tree, as_text)
            tree.walkabout(translator)
            text = llms.as_markdown(page.title, translator.body)
        if page.name == OVERVIEW:
            text = api_pages.listing(text, summaries)
        app.outdir.joinpath(f"{page.name}.md").write_text(text, encoding="utf-8")


def page_of(env: Any, name: str) -> llms.Page:
    """What is said of a page in `llms.txt`; the status of a decision is not how it begins."""
    paragraphs = (part.astext() for part in env.get_doctree(name).findall(nodes.paragraph))
    begins = next(text for text in paragraphs if not text.startswith("Status:"))
    return llms.Page(name, env.titles[name].astext(), llms.first_sentence(begins))


def lead_to_markdown(
    _app: Any, name: str, _template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Say in the head of a page where it is as Markdown."""
    if doctree is not None:
        page = name.rpartition("/")[2]
        link = f'<link rel="alternate" type="text/markdown" href="{page}.md">'
        context["metatags"] = context.get("metatags", "") + link


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_api_pages)
    app.connect("source-read", read_overview)
    app.connect("html-page-context", lead_to_markdown)
    app.connect("build-finished", write_markdown)
    app.connect("autodoc-process-docstring", set_apart, priority=400)  # before napoleon's 500
    app.connect("autodoc-process-signature", show_as_context_manager)
    app.connect("missing-reference", find_public)
