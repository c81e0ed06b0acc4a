"""`python -m ssrseg` and `torchrun -m ssrseg` are the command `ssrseg`."""

from ssrseg.cli import main

if __name__ == "__main__":
    main()
