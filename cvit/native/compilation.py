"""Compiles the library into a folder and checks it there: python -m cvit.native.compilation FOLDER.

It is a process of its own, because a library that was compiled wrongly may crash the process that loads it.
"""

import os
import sys
from pathlib import Path

from torch.utils import cpp_extension

from cvit import native
from cvit.native.check import check
from cvit.native.library import FLAGS, NAME, sources


def compile_into(folder: Path) -> None:
    """Compiles the library by torch's machinery for extensions, and checks it. Raises what is wrong."""
    ninja = Path(sys.executable).parent  # of the environment, which need not be activated
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(ninja)])
    cpp_extension.load(
        NAME,
        [str(path) for path in sources()],
        extra_cflags=list(FLAGS),
        build_directory=str(folder),
        with_cuda=False,
        is_python_module=False,
    )
    native.use(folder / f"{NAME}.so")
    check()


if __name__ == "__main__":
    compile_into(Path(sys.argv[1]))
