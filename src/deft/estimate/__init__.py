"""What a run will take, before it starts: what `deft train --dry-run` answers from."""
