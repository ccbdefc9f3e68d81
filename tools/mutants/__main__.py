#!/usr/bin/python3
"""Takes the program's defences out, one at a time, and looks whether the tests notice.

    tools/mutants                         each defence of the table (table.py)
    tools/mutants WORDS...                those that have one of these words in what they defend, or one of these rows of the fault list
    tools/mutants --all SECONDS WORDS...  all changes that cargo-mutants makes in repo, archive, retention and restore, or those with one
                                          of these words in their names; each meets tests for so many seconds (woven.py)

`make mutants` calls it. It works on a copy in target/mutants, which keeps what was compiled. A defence that no test misses
is an error, and so is one that isn't where the table says: then the table is to be put right.
"""

import os
import sys

import defences
import woven

arguments = sys.argv[1:]
if arguments[:1] == ["--all"] and arguments[1:2] and arguments[1].isdigit():
    sys.exit(1 if woven.run(int(arguments[1]), (os.cpu_count() or 1) + 1, arguments[2:]) else 0)
if any(argument.startswith("-") for argument in arguments):
    sys.exit(__doc__)
sys.exit(1 if defences.run(arguments) else 0)
