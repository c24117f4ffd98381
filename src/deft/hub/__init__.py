"""Where models come from: known names, folders, the hub and its cache, embedded models. No torch."""
