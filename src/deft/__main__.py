"""`python -m deft`."""

from deft.cli import main

if __name__ == "__main__":
    main()
