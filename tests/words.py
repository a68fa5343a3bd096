#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The words of the library: its comments, its names and its documents.

Found wrong in a comment or a document: a sentence that opens with Who, What,
Whoever or Nobody and is no question; more than one of who, whoever, nobody and
somebody in 1,000 words of all that is read; a line of more than 80 columns. Found
wrong in C: a static function whose name is one word, and a name of a static
function that another file has, too.

usage: words.py FILE...          # C (.c, .h), Markdown, manual pages, plain text
       words.py files SOURCE     # those that a tree has to be read: lib/, nbd/,
                                 # include/, the manual and the documents
       words.py twins            # texts that are wrong in each of these ways
"""

import glob
import os
import re
import sys

COLUMNS = 80
VAGUE = 1		# in 1,000 words
VAGUE_WORDS = re.compile(r"\b(who|whoever|nobody|somebody)\b", re.I)
OPENING = re.compile(r"(?:\A\s*|[.:;!?)]\s+|\n\s*\n\s*|\n- )(Who|What|Whoever|Nobody)\b"
                     r"([^.?!:;]*[.?!:;]?)")
STATIC = re.compile(r'^static (?:inline )?[^;={]*?\b(\w+)\([^;{]*\)\s*\{', re.M)


def is_c(name):
    return name.endswith(('.c', '.h'))


def comments(text):
    """Each comment's text, with the line that it begins at."""
    for match in re.finditer(r'/\*(.*?)\*/|"(?:\\.|[^"\\\n])*"', text, re.S):
        if match[1] is not None:
            words = re.sub(r'^[ \t]*\*? ?', '', match[1], flags=re.M)
            yield text.count('\n', 0, match.start()) + 1, words.strip()


def paragraphs(name, text):
    """What a document says: without its code, tables' rules and markup."""
    if name.endswith('.md'):
        text = re.sub(r'^```.*?^```', lambda m: '\n' * m[0].count('\n'), text,
                      flags=re.M | re.S)
        text = re.sub(r'^(?:    |\t).*$', '', text, flags=re.M)
    elif re.search(r'\.[1-8]$', name):
        text = re.sub(r'^\.Bd.*?^\.Ed', lambda m: '\n' * m[0].count('\n'), text,
                      flags=re.M | re.S)
        text = re.sub(r'^\.(?:Sh|Ss|Pp|It|Dd|Dt|Os|\\").*$', '', text,
                      flags=re.M)
        text = re.sub(r'^\.\w+ ?', '', text, flags=re.M)
    yield 1, text


def prose(name, text):
    return comments(text) if is_c(name) else paragraphs(name, text)


def openings(name, text):
    for line, words in prose(name, text):
        for match in OPENING.finditer(words):
            if not match[2].endswith('?'):
                at = line + words.count('\n', 0, match.start(1))
                yield f'{name}:{at}: a sentence opens with "{match[1]}"'


def long_lines(name, text):
    skip = False
    for number, line in enumerate(text.split('\n'), 1):
        skip ^= line.startswith('```')
        if skip or '://' in line or line.startswith(('|', '.', '    ')):
            continue
        if is_c(name) and '"' in line:	# a text for people is one string
            continue
        if len(line.expandtabs(8)) > COLUMNS:
            yield f'{name}:{number}: more than {COLUMNS} columns'


def statics(texts):
    where = {}
    for name, text in texts.items():
        if not is_c(name):
            continue
        for function in STATIC.findall(text):
            if '_' not in function:
                yield f'{name}: static {function}() is one word'
            other = where.setdefault(function, name)
            if other != name:
                yield f'{name}: static {function}() is in {other}, too'


def vague(texts):
    found, words = [], 0
    for name, text in texts.items():
        for line, comment in prose(name, text):
            words += len(comment.split())
            found += [
                f'{name}:{line + comment.count(chr(10), 0, match.start())}: '
                f'"{match[0]}"' for match in VAGUE_WORDS.finditer(comment)]
    if len(found) * 1000 > VAGUE * words:
        yield (f'{len(found)} of who, whoever, nobody, somebody in '
               f'{words} words, and {VAGUE} in 1,000 is enough:')
        yield from found


def wrong(texts):
    found = []
    for name, text in texts.items():
        found += openings(name, text)
        found += long_lines(name, text)
    return found + list(statics(texts)) + list(vague(texts))


def files(source):
    for pattern in ('lib/*/*.[ch]', 'nbd/*.[ch]', 'include/*.h', 'doc/man/*.[1357]', '*.md',
                    'doc/*.md', 'tests/README.md', 'tests/vm/README.md', 'NEWS'):
        yield from sorted(glob.glob(os.path.join(source, pattern)))


GOOD = {'a.c': '/* The caller holds the lock. What is it for? */\n'
               'static int page_take(void)\n{\n	return 0;\n}\n',
        'b.md': 'A page is fetched once.\n\n    who whoever nobody somebody\n'}
TWINS = {
    'opens with "Who"': {'a.c': '/* It ends. Who waits is told. */\n'},
    'opens with "What"': {'b.md': 'It ends.\n\nWhat came is there.\n'},
    'opens with "Nobody"': {'a.7': '.Sh X\nNobody reads it.\n'},
    'columns': {'a.c': '/* ' + 'x ' * 40 + '*/\n'},
    'is one word': {'a.c': 'static int take(void)\n{\n}\n'},
    'too': {'c.c': 'static int page_take(void)\n{\n}\n'},
    'in 1,000': {'b.md': 'The thread, who has the page, waits.\n'},
}


def main():
    if sys.argv[1:] == ['twins']:
        assert not wrong(GOOD), wrong(GOOD)
        for what, texts in TWINS.items():
            found = wrong(GOOD | texts)
            assert any(what in text for text in found), (what, found)
        print(f'words: {len(TWINS)} twins are found wrong')
        return
    if len(sys.argv) == 3 and sys.argv[1] == 'files':
        print('\n'.join(files(sys.argv[2])))
        return
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    texts = {}
    for name in sys.argv[1:]:
        with open(name, encoding='utf-8') as file:
            texts[name] = file.read()
    found = wrong(texts)
    for text in found:
        print('words:', text, file=sys.stderr)
    if found:
        sys.exit(1)
    print(f'words: {len(texts)} files are read')


if __name__ == '__main__':
    main()
