"""Docstrings as Markdown: an extension of griffe that mkdocs.yml names."""
import re
import textwrap

from griffe import Extension

ROLE = re.compile(r':(?:class|func|data|meth|mod|attr):`~?([\w.]+)`')


def to_markdown(text: str, module: str) -> str:
    """Turn the roles and literal blocks of reStructuredText that the docstrings use into Markdown.

    Args:
        text: a docstring.
        module: dotted name of the module it stands in, for roles that name something beside it.
    """
    def link(match: re.Match) -> str:
        target = match[1] if '.' in match[1] else f'{module}.{match[1]}'
        return f'<autoref identifier="{target}" optional><code>{match[1]}</code></autoref>'  # no link where no entry is

    # griffe takes what stands before a colon in "Returns" for a type, and each line of several sentences for an item.
    text = re.sub(r'^(Returns|Yields):\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)', lambda match: (
        f'**{match[1]}:**\n\n{textwrap.dedent(match[2])}'), text, flags=re.MULTILINE)
    before, mark, block = text.partition('::\n\n')
    if mark and not block.startswith(' '):  # the block ends the text, and its indent was taken for the margin
        text = before + mark + textwrap.indent(block, '    ')
    return re.sub(r'::$', ':', ROLE.sub(link, text), flags=re.MULTILINE)


class Markdown(Extension):
    """Rewrites every docstring of the package before it is parsed."""

    def on_instance(self, *, obj, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value, obj.module.path)
