"""`python -m diffunet` and `accelerate launch -m diffunet` run the command line."""

from diffunet.commands.cli import main

if __name__ == "__main__":
    main()
