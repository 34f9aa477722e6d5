"""The command line: `main` and one file a group of commands. Loads no tensor library before a command needs it."""
