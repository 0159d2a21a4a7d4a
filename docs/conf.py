"""How Sphinx builds these pages: `sphinx-build -W -n docs docs/_build`."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import degu

project = 'degu'
author = 'the degu authors'
version = release = degu.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc']
source_suffix = {'.md': 'markdown'}
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'degu {release}'
html_show_copyright = False

myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3

default_role = 'code'  # docstrings write `name`
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autoclass_content = 'both'
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
nitpicky = True
nitpick_ignore_regex = [
    ('py:.*', r'(?!degu).*'),  # no network, so no inventories of other projects
    ('py:.*', r'degu\.channel\..*|.*\._.*'),  # internal, and named in a signature all the same
]

_DRAWN = re.compile(r'^[├└│]|\S {3,}\S', re.MULTILINE)
_LIST = re.compile(r'(\d+\.|-) ')


def mark_literals(_app, _what, _name, _obj, _options, lines):
    """Make indented blocks, columns and trees of a docstring literal; leave prose as it is."""
    if lines and lines[0].startswith('Alias for field number'):  # collections.namedtuple says so
        lines.clear()
    paragraphs = '\n'.join(lines).split('\n\n')
    marked = []
    for before, paragraph in zip(['', *paragraphs], paragraphs, strict=False):
        if _DRAWN.search(paragraph) and not paragraph.startswith(' '):
            paragraph = '\n'.join(f'    {line}' for line in paragraph.split('\n'))
        is_block = paragraph.startswith('    ')
        if is_block and not before.startswith((' ', '::')) and not _LIST.match(before):
            marked.append('::')
        marked.append(paragraph)
    lines[:] = '\n\n'.join(marked).split('\n')


def setup(app):
    """Connect the above; called by Sphinx."""
    app.connect('autodoc-process-docstring', mark_literals)
