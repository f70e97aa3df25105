"""The ``evaltools`` program: thin commands over library functions."""
