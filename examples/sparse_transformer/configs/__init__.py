"""The configurations: one CONFIG a file, found by the file's name."""
