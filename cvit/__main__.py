"""`python -m cvit` is the command `cvit`, for an installation whose scripts are not on the path."""

from cvit.command import main

if __name__ == "__main__":
    main()
