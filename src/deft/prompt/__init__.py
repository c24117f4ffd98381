"""The one place where messages become token ids and labels, and rows become packs."""
