"""`python -m trefoil`."""

from trefoil.cli.main import main

if __name__ == "__main__":
    main()
