"""`python -m luthier_cli`."""

from luthier_cli.commands import main

if __name__ == "__main__":
    main()
