"""`python -m deft`."""

from deft.commands.app import main

if __name__ == "__main__":
    main()
