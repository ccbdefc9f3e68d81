"""A copy of the project that may be changed."""

import os
import shutil
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def copied():
    """What git has, as it lies here, and the target directory for it, which keeps what was compiled."""
    place = os.path.join(os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"), "mutants")
    tree = f"{place}/tree"
    shutil.rmtree(tree, ignore_errors=True)
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        os.makedirs(os.path.dirname(f"{tree}/{name}"), exist_ok=True)
        shutil.copy2(f"{ROOT}/{name}", f"{tree}/{name}")
    return tree, f"{place}/target"
