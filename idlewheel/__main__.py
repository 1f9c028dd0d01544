"""`python -m idlewheel` is the command line."""

from idlewheel.cli import main

if __name__ == "__main__":
    main()
