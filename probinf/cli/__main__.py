"""`python -m probinf.cli`."""

from probinf.cli import main

if __name__ == "__main__":
    main()
