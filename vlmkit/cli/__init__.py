"""The command line: one file a command, shared options in options.py, the table of commands in app.py."""
