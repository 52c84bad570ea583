"""The commands call one function of a room below each, and print. They import torch late: `--help` answers at once."""
