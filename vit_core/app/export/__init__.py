"""A checkpoint as a file that other runtimes take, each of them verified by running it there."""
