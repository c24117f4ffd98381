"""The command line: one file a group of commands, in the table of `deft.commands.app`."""
