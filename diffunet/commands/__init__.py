"""What each command does: call one function, print. They import torch inside, so that `--help` answers at once."""
