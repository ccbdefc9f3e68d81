"""A copy of the project that may be changed."""

import os
import shutil
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def files(*below):
    """What git knows and is here: all, or what lies below some paths."""
    names = subprocess.run(["git", "ls-files", "-z", *below], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(name for name in names.split("\0") if name and os.path.exists(f"{ROOT}/{name}"))


def copied():
    """What git knows, as it lies here, and the target directory for it, which keeps what was compiled."""
    place = os.path.join(os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"), "mutants")
    tree = f"{place}/tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in files():
        os.makedirs(os.path.dirname(f"{tree}/{name}"), exist_ok=True)
        shutil.copy2(f"{ROOT}/{name}", f"{tree}/{name}")
    return tree, f"{place}/target"
