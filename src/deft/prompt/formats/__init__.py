"""How models write a conversation: one file a kind, all in the table of `kinds`."""
