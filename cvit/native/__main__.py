"""Compiles the fused operators for CPUs anew, as set-up does: python -m cvit.native"""

from cvit.native.library import Unavailable, library

try:
    print(f"Fused operators for CPUs: {library(anew=True)}")
except Unavailable as reason:
    print(f"Without the fused operators for CPUs, training is slower: {reason}.")
