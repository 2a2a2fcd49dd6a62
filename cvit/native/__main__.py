"""Compiles the fused operators for CPUs anew, as set-up does: python -m cvit.native"""

from cvit.native.library import Unavailable, library_file

try:
    print(f"Fused operators for CPUs: {library_file(anew=True)}")
except Unavailable as reason:
    print(reason.notice)
