"""Sphinx's side of ``library``, ``pages`` and ``drawings``: directives that write from them, checks of completeness.

In Markdown pages::

    ```{optimizer-options} Adam      its options, and their defaults by convention
    ```{optimizer-state} Adam        its state
    ```{rule-source} adam            functions of fastopt.reference
    ```{all-options}                 the same of every optimizer, a section each
    ```{optimizer-index}             the table of optimizers, and their pages in the table of contents
    ```{genealogy-table}             every method by its year; what was new in it
    ```{optimizer-families}          the families and their members
    ```{rule-table}                  the rules of the compiled table, and what each takes
    ```{own-options}                 the options that are fastopt's own, and who has them
    ```{convention-table}            which optimizer exists in which convention
    ```{combinations}                what of low precision combines with what
    ```{narrowed-state}              what becomes of each optimizer's state in fewer bits
    ```{state-meanings}              state that differs by convention, and what a load makes of it
    ```{command-help} info           what a command's --help prints
    ```{drawing} genealogy           a picture of ``drawings``; what is to be seen in it is the content
    ```{schedules}                   a picture for each line, an expression that makes a schedule
    ```{scenes}                      a section for each scene of fastopt compare

In reStructuredText, ``.. torch-classes::`` documents fastopt.torch without importing PyTorch, and
``.. adapter:: keras`` fastopt.keras without importing Keras.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import drawings
import library
import pages
from docutils import nodes
from numpydoc.docscrape_sphinx import SphinxDocString
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

import fastopt
from fastopt import reference, schedules

logger = logging.getLogger(__name__)
GENERATED = "_generated"


# --- Directives


def picture(env: BuildEnvironment, path: Path, alt: str) -> nodes.container:
    """The picture in a file below docs, in a frame that scrolls where it is wider than the screen."""
    image = nodes.image(uri=f"/{path.relative_to(env.srcdir).as_posix()}", alt=alt, loading="lazy")
    return nodes.container("", image, classes=["picture"])


def generated(env: BuildEnvironment, name: str) -> Path:
    """Where a file goes that the build makes."""
    path = Path(env.srcdir, GENERATED, name)
    path.parent.mkdir(exist_ok=True)
    return path


class FromLibrary(SphinxDirective):
    """A directive whose page is read again when the library, or what is here, has changed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for folder in (Path(fastopt.__file__).parent, Path(__file__).parent):
            for source in folder.rglob("*.py"):
                self.env.note_dependency(str(source))


class FromPages(FromLibrary):
    """A directive that writes from the headers of the optimizers' pages; what it holds is for readers of the source."""

    has_content = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for source in pages.FOLDER.glob("*.md"):
            self.env.note_dependency(str(source))


class OptimizerIndex(FromPages):
    """The table of optimizers; their pages become part of the table of contents."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(f"{pages.contents()}\n\n{pages.index()}")


class GenealogyTable(FromPages):
    """Every method by its year."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(pages.genealogy())


class OptimizerFamilies(FromPages):
    """The families and their members."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(pages.families())


class OwnOptions(FromPages):
    """The options that are fastopt's own."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(pages.own_options())


class AllOptions(FromPages):
    """The options of every optimizer, a section each."""

    def run(self) -> list[nodes.Node]:
        sections = []
        for name, cls in fastopt.OPTIMIZERS.items():
            section = nodes.section("", nodes.title("", name), ids=[nodes.make_id(name)], names=[name.lower()])
            section += self.parse_text_to_nodes(library.options(cls))
            sections.append(section)
        return sections


class OptimizerOptions(FromLibrary):
    """The options of an optimizer, and their defaults by convention."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(library.options(fastopt.OPTIMIZERS[self.arguments[0]]))


class OptimizerState(FromLibrary):
    """The state of an optimizer."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(library.state(fastopt.OPTIMIZERS[self.arguments[0]]))


class RuleTable(FromLibrary):
    """The rules of the compiled table, and what each takes."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(library.rules())


class ConventionTable(FromLibrary):
    """Which optimizer exists in which convention."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(library.conventions())


class Combinations(FromLibrary):
    """What of low precision combines with what."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(library.combinations())


class NarrowedState(FromLibrary):
    """What becomes of the state of each optimizer in fewer bits."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(library.narrowed())


class StateMeanings(FromLibrary):
    """State that differs by convention, and what a load makes of it."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(library.meanings())


class RuleSource(FromLibrary):
    """Functions of the reference, as they are written."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        sources = [inspect.getsource(getattr(reference, name)) for name in self.arguments[0].split()]
        text = "\n\n".join(sources).rstrip()
        return [nodes.literal_block(text, text, language="python", classes=["rule-source"])]


class CommandHelp(FromLibrary):
    """What ``fastopt COMMAND --help`` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        shown_commands(self.env).setdefault(self.env.docname, set()).add(self.arguments[0])
        text = library.command_help(self.arguments[0]).rstrip()
        return [nodes.literal_block(text, text, language="text")]


def shown_commands(env: BuildEnvironment) -> dict[str, set[str]]:
    """The commands whose help is shown, by page."""
    if not hasattr(env, "fastopt_commands"):
        env.fastopt_commands = {}
    return env.fastopt_commands


def forget_page(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """A page is about to be read again, or is gone."""
    shown_commands(env).pop(docname, None)


class Drawing(FromPages):
    """A picture of ``drawings``; the content says what is to be seen. Of the family tree, `pages` says it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = generated(self.env, f"{self.arguments[0]}.svg")
        drawings.draw(self.arguments[0], path)
        alt = pages.descent() if self.arguments[0] == "genealogy" else " ".join(self.content)
        return [picture(self.env, path, alt)]


class Schedules(FromLibrary):
    """A picture for each line, an expression over the names of ``fastopt.schedules``."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        names = {name: getattr(schedules, name) for name in schedules.__all__}
        gallery = nodes.container(classes=["gallery"])
        for number, expression in enumerate(self.content):
            path = generated(self.env, f"schedule-{self.lineno}-{number}.svg")
            drawings.schedule(eval(expression, names), path)
            image = nodes.image(uri=f"/{GENERATED}/{path.name}", alt=f"The values of {expression}")
            gallery += nodes.figure("", image, nodes.caption("", "", nodes.literal("", expression)))
        return [gallery]


class Scenes(FromLibrary):
    """A section for each scene of ``fastopt compare``: its story, what was found, the pictures."""

    def run(self) -> list[nodes.Node]:
        from fastopt._compare import pictures, race, scenes

        sections = []
        for scene in scenes.SCENES.values():
            run = race.run_scene(scene)
            section = nodes.section("", nodes.title("", scene.title), ids=[nodes.make_id(scene.name)])
            section += nodes.paragraph("", scene.story)
            section += found(run.found)
            for drawing in pictures.draw(run, generated(self.env, "compare"), formats=("png",)):
                section += picture(self.env, drawing.files[0], f"{drawing.title}. {drawing.alt}")
            sections.append(section)
        return sections


VERDICTS = {True: "yes", False: "no", None: "cannot tell"}


def found(findings: Iterable[Any]) -> nodes.bullet_list:
    """What the notes claim, and whether it was so."""
    items = nodes.bullet_list()
    for finding in findings:
        claim = nodes.strong("", f"{finding.claim}: {VERDICTS[finding.holds]}. ")
        evidence = nodes.Text(f"({finding.source}) {finding.measured}")
        items += nodes.list_item("", nodes.paragraph("", "", claim, evidence))
    return items


class TorchClasses(FromLibrary):
    """The module fastopt.torch, from its source."""

    def run(self) -> list[nodes.Node]:
        texts = library.torch_docstrings()
        lines = [".. py:module:: fastopt.torch", "", *texts.pop("").splitlines(), ""]
        for name in library.torch_names():
            lines += [f".. py:class:: {library.torch_signature(name)}", "   :module: fastopt.torch", ""]
            lines += indented(texts.pop(name))
        signatures = library.torch_methods()
        for name, text in texts.items():
            method = signatures[name]
            lines += [f".. py:property:: {name}" if method is None else f".. py:method:: {method}", "   :no-index:", ""]
            lines += indented(text)
        for signature, text in library.torch_functions().values():
            lines += [f".. py:function:: {signature}", "   :module: fastopt.torch", ""]
            lines += indented(text)
        return self.parse_text_to_nodes("\n".join(lines))


class Adapter(FromLibrary):
    """A module of fastopt that steps for another library, from its source."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        (_, _, text), *entries = library.adapter_entries(name)
        lines = [f".. py:module:: fastopt.{name}", "", *str(SphinxDocString(text)).splitlines(), ""]
        for kind, signature, text in entries:
            where = "   :no-index:" if kind == "method" else f"   :module: fastopt.{name}"
            lines += [f".. py:{kind}:: {signature}", where, ""]
            lines += indented(text)
        parsed = self.parse_text_to_nodes("\n".join(lines))
        for node in parsed:  # its examples need the library: tests/clients runs them
            for block in list(node.findall(nodes.doctest_block)):
                block.replace_self(nodes.literal_block(block.rawsource, block.astext(), language="pycon"))
        return parsed


def indented(docstring: str) -> list[str]:
    """The lines of a docstring, as numpydoc writes them, below a description."""
    return [("   " + line).rstrip() for line in str(SphinxDocString(docstring)).splitlines()] + [""]


# --- Links and tests in the text


class LinkNames(SphinxPostTransform):
    """``fastopt.minimize`` in the text leads to where it is documented."""

    default_priority = 200  # after the references of the author

    def run(self, **kwargs: Any) -> None:
        objects = self.env.get_domain("py").objects
        for literal in list(self.document.findall(nodes.literal)):
            entry = objects.get(literal.astext().removesuffix("()"))
            linked = isinstance(literal.parent, (nodes.reference, nodes.title))
            if entry is None or linked or not literal.astext().startswith("fastopt."):
                continue
            if entry.docname != self.env.docname:
                literal.replace_self(
                    make_refnode(self.app.builder, self.env.docname, entry.docname, entry.node_id, literal.deepcopy())
                )


def leave_foreign_names(app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.Node) -> Any:
    """Single backticks in docstrings, and types, also name things of other libraries; ours have to exist."""
    if node["reftype"] in ("obj", "class") and not node["reftarget"].startswith("fastopt"):
        return content
    return None


def mark_examples(app: Sphinx, doctree: nodes.document) -> None:
    """Make tests of the Python code in the pages: ``sphinx-build -b doctest`` runs it, each page from top to bottom."""
    if app.env.docname in library.NOT_RUN:
        return
    for block in doctree.findall(nodes.literal_block):
        if block.get("language") == "python" and "rule-source" not in block["classes"]:
            block["testnodetype"] = "doctest" if block.astext().startswith(">>>") else "testcode"
            block["groups"] = ["default"]
            block["options"] = {}


# --- Checks


def check_pages(app: Sphinx, env: BuildEnvironment) -> None:
    """Every optimizer has a page, every command its help, every public name its description."""
    for name in fastopt.OPTIMIZERS:
        try:
            pages.page(name)
        except ValueError as error:
            logger.warning("%s", error)
    shown = set().union(*shown_commands(env).values())
    for name in ["fastopt", *library.commands()]:
        if name not in shown:
            logger.warning("no page has ```{command-help} %s", name)
    for name in sorted(library.public_names() - env.get_domain("py").objects.keys()):
        logger.warning("%s is public, and in no page of the API reference", name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register it all."""
    app.add_directive("optimizer-options", OptimizerOptions)
    app.add_directive("optimizer-state", OptimizerState)
    app.add_directive("all-options", AllOptions)
    app.add_directive("optimizer-index", OptimizerIndex)
    app.add_directive("genealogy-table", GenealogyTable)
    app.add_directive("optimizer-families", OptimizerFamilies)
    app.add_directive("own-options", OwnOptions)
    app.add_directive("rule-table", RuleTable)
    app.add_directive("convention-table", ConventionTable)
    app.add_directive("combinations", Combinations)
    app.add_directive("narrowed-state", NarrowedState)
    app.add_directive("state-meanings", StateMeanings)
    app.add_directive("rule-source", RuleSource)
    app.add_directive("command-help", CommandHelp)
    app.add_directive("drawing", Drawing)
    app.add_directive("schedules", Schedules)
    app.add_directive("scenes", Scenes)
    app.add_directive("torch-classes", TorchClasses)
    app.add_directive("adapter", Adapter)
    app.add_post_transform(LinkNames)
    app.connect("env-purge-doc", forget_page)
    app.connect("missing-reference", leave_foreign_names)
    app.connect("doctree-read", mark_examples)
    app.connect("env-check-consistency", check_pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
