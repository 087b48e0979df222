"""`python -m diffdpo` and `accelerate launch -m diffdpo` are the same program as `diffdpo`."""

from diffdpo.cli import main

if __name__ == "__main__":
    main()
