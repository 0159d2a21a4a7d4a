"""Names that programs have stumbled over: each of them may be that of a file on Linux.

Tests are no package that could be imported: the fixture `names` is NAMES.
"""

from __future__ import annotations

# Controls, each alone and each within; and what terminals do with some.
CONTROLS = [
    b'\x01', b'\x02', b'\x03', b'\x04', b'\x05', b'\x06', b'\x07', b'\x08', b'\t', b'\n', b'\x0b',
    b'\x0c', b'\r', b'\x0e', b'\x0f', b'\x10', b'\x11', b'\x12', b'\x13', b'\x14', b'\x15',
    b'\x16', b'\x17', b'\x18', b'\x19', b'\x1a', b'\x1b', b'\x1c', b'\x1d', b'\x1e', b'\x1f', b' ',
    b'a\x01b', b'a\x07b', b'a\x08b', b'a\tb', b'a\nb', b'a\rb', b'a\x1bb', b'a b', b'a\x7fb',
    b'  ', b' a', b'a ', b'a\n', b'\r\n', b'a\r', b'\x7f', b'\x1b[31mred', b'\x1b]0;title\x07',
    b'\x1b[2J', b'\x9b31m',
]  # fmt: skip
# Options, shells, globs, quotes.
SHELLS = [
    b'-', b'--', b'-rf', b'--help', b'-n', b'+', b'~', b'~root', b'#', b'#a#', b'*', b'?', b'[a]',
    b'[!a]*', b'{a,b}', b'**', b'$HOME', b'${HOME}', b'$(reboot)', b'`reboot`', b';reboot', b'&',
    b'&&', b'|', b'>out', b'<', b'!', b'!!', b'(a)', b'a=b', b'^', b"'", b'"', b"''", b"a'b",
    b'a"b', b"'; DROP TABLE file;--", b'\\', b'\\n', b'\\x00', b'a\\b',
]  # fmt: skip
# Almost special: dots, ours, those of other programs and systems.
ALMOST = [
    b'...', b'.a', b'..a', b'a.', b'a..', b'. ', b'.. ', b'.\n', b'..\n', b'.deg', b'.degu2',
    b'.degu ', b'degu', b'..degu', b'a.note', b'a.note.new', b'staged.0', b'lock', b'tmp',
    b'trash', b'a (conflict 2024-05-17 studio mfrggzdf)', b'.DS_Store', b'desktop.ini',
    b'Thumbs.db', b'lost+found', b'C:', b'C:\\Windows', b'\\\\host\\share', b'a:b', b'a:b:$DATA',
    b'CON', b'con', b'PRN', b'AUX', b'NUL', b'COM1', b'LPT1', b'CON.txt', b'nul.tar.gz', b'CLOCK$',
]  # fmt: skip
# What URLs, JSON, templates and languages mean by it.
MEANT = [
    b'%', b'%%', b'%s', b'%n', b'%2e%2e', b'%2f', b'%00', b'%zz', b'100%', b'a%20b', b'a+b',
    b'a?b', b'a#b', b'a&b=c', b'a;b', b'http:', b'<script>alert(1)<', b'&amp;', b'0', b'-1',
    b'1e309', b'NaN', b'0x0', b'None', b'null', b'undefined', b'true', b'[]', b'{}', b'{"a":1}',
    b'__proto__', b'__init__', b'{0.__class__}', b'{{7*7}}', b'<%= 1 %>', b'%(a)s',
]  # fmt: skip
# Alike, folded or normalized: composed and decomposed, ligatures, cases, width.
ALIKE = [
    '\xe9', 'e\u0301', '\xc5', '\u212b', 'A\u030a', '\ufb01', '\ufb03', '\xdf', '\u1e9e', 'SS',
    '\u0130', '\u0131', 'I', 'i', '\u03a3', '\u03c3', '\u03c2', '\u03a9', '\u2126', '\uac00',
    '\u1100\u1161', 'a\u0323\u0307', 'a\u0307\u0323', '\uff46\uff55\uff4c\uff4c', '\uff0e\uff0e',
    '\uff0f', '\u2215', '\u2044', '\u2025', '\u2026', '\u2024',
]  # fmt: skip
# Seen wrong or not at all: no width, directions, separators.
UNSEEN = [
    '\u200b', 'a\u200bb', '\u200d', '\ufeff', 'a\ufeff', '\u2060', '\xad', '\u180e', '\u115f',
    '\xa0', '\u2003', '\u3000', '\u2028', '\u2029', '\x85', '\u202e', 'a\u202egnp.exe',
    '\u2066a\u2069', '\u200f', '\u061c', '\u0300', 'a' + '\u0301' * 100,
    'Z\u0351\u036b\u0343\u036a\u0302',
]  # fmt: skip
# Scripts and emoji, and what is no character.
SCRIPTS = [
    '\u05e9\u05dc\u05d5\u05dd', '\u0645\u0631\u062d\u0628\u0627', '\u65e5\u672c\u8a9e',
    '\ud55c\uad6d\uc5b4', '\u0e44\u0e17\u0e22', '\u0440\u0443\u0441', '\U0001f600',
    '\U0001f468\u200d\U0001f469\u200d\U0001f467', '\U0001f3f3\ufe0f\u200d\U0001f308',
    '\U0001f1e9\U0001f1ea', '\U0001f44d\U0001f3fd', '1\ufe0f\u20e3', '\U0001d49c', '\U0010ffff',
    '\ufffd', '\ufffe', '\uffff', '\ue000', '\ufdd0',
]  # fmt: skip
# No UTF-8: too long, cut short, surrogates, other encodings.
BROKEN = [
    b'\x80', b'\xff', b'\xfe\xff', b'\xff\xfe', b'\xc0\xaf', b'\xc0\x80', b'\xe0\x80\xaf',
    b'\xed\xa0\x80', b'\xed\xb0\x80', b'\xf4\x90\x80\x80', b'\xf8\x88\x80\x80\x80', b'\xc3',
    b'\xc3(', b'\xe2\x82', b'a\xffb', b'caf\xe9', b'\x83e\x83X', b'\x1b$B%F\x1b(B',
    b'\xef\xbb\xbfa',
]  # fmt: skip
# As long as names can be, or nearly.
LONG = [
    b'x' * 255, b'x' * 254, '\u00e9' * 127, '\u65e5' * 85, '\U0001f600' * 63, b' ' * 255,
    b'.' * 255, b'%' * 255, b'x' * 251 + b'.txt', b'x.' + b'y' * 253, b'\n' * 255, b'\xff' * 255,
]  # fmt: skip

NAMES = sorted(
    name if isinstance(name, bytes) else name.encode()
    for name in CONTROLS + SHELLS + ALMOST + MEANT + ALIKE + UNSEEN + SCRIPTS + BROKEN + LONG
)
